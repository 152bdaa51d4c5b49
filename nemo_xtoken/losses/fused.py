"""The pass over a micro-batch: logits tile by tile, losses and their gradients at once, nothing of size [T, V] kept.

The coefficients of the objective are known beforehand and no chunk is cut, so that the gradient of a tile is complete
when the tile is: the forward pass leaves the gradients by the student's hidden states and output weight, and backward
only scales them.  Each logit is made once.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from nemo_xtoken.losses.base import LossSum, ModelOutput, TeacherSignal
from nemo_xtoken.losses.chunks import ScoredRows
from nemo_xtoken.losses.merge import continuation, later_rows, merge_rows, spread_gradient, sum_later_tokens
from nemo_xtoken.losses.tiles import TeacherRows, Tile, tiles
from nemo_xtoken.parallel.head import accumulation_dtype
from nemo_xtoken.parallel.softmax import all_reduce_sum, log_normalizer, log_normalizer_and_picked

__all__ = ["FusedPass"]


@dataclass
class FusedPass:
    """One pass over a micro-batch; :meth:`run` may be called once.

    Args:
        student: hidden states and output layer.
        rows: the labelled student positions.
        teachers: what is compared, with the rows of each.
        ce_weight, kd_weights: coefficients of the sums in the objective; numbers or scalars on the device.
        tile_rows: student rows in a tile.
    """

    student: ModelOutput
    rows: ScoredRows
    teachers: Sequence[tuple[TeacherSignal, TeacherRows]]
    ce_weight: float
    kd_weights: Sequence[float | Tensor]
    tile_rows: int
    ce: Tensor = field(init=False)
    kd: list[Tensor] = field(init=False)
    metrics: list[Tensor] = field(init=False)

    def run(self) -> Tensor:
        """The objective; differentiable.  The sums are in :meth:`cross_entropy` and :meth:`distillation` then."""
        entries = [signal.entry_weights for signal, _ in self.teachers]
        return _Fused.apply(self, self.student.hidden, self.student.head.weight, *entries)

    def cross_entropy(self) -> LossSum:
        """The sum over the labelled positions."""
        return LossSum(self.ce, self.rows.rows.numel())

    def distillation(self) -> tuple[LossSum, ...]:
        """Each teacher's sum over its chunks."""
        return tuple(
            LossSum(
                total,
                signal.chunks.shape[0],
                dict(zip(signal.divergence.metric_names, metrics.unbind(), strict=True)),
            )
            for (signal, _), total, metrics in zip(self.teachers, self.kd, self.metrics, strict=True)
        )

    def accumulate(self, wanted: bool, by_weight: bool) -> "_Gradients | None":
        """Goes through the tiles; returns the gradients of the objective if they are wanted.

        Args:
            by_weight: by the output weight as well (not where it is frozen).
        """
        hidden, head = self.student.hidden, self.student.head
        dtype = accumulation_dtype(hidden.dtype)
        self.ce = hidden.new_zeros((), dtype=dtype)
        self.kd = [self.ce.clone() for _ in self.teachers]
        self.metrics = [self.ce.new_zeros(len(s.divergence.metric_names)) for s, _ in self.teachers]
        gradients = None
        if wanted:
            entries = [s.entry_weights for s, _ in self.teachers]
            gradients = _Gradients(
                torch.zeros_like(hidden, dtype=dtype),
                torch.zeros_like(head.weight, dtype=dtype) if by_weight else None,
                [None if e is None else torch.zeros_like(e, dtype=dtype) for e in entries],
            )
        for tile in tiles(self.rows, [rows for _, rows in self.teachers], self.tile_rows):
            self._tile(tile, gradients)
        if gradients is not None:
            all_reduce_sum(gradients.hidden, head.shard.group)
        return gradients

    def _tile(self, tile: Tile, gradients: "_Gradients | None") -> None:
        head, wanted = self.student.head, gradients is not None
        rows, labels = self.rows.rows[tile.rows], head.columns_of(self.rows.labels[tile.rows])
        h = self.student.hidden.index_select(0, rows)
        softmaxes = _Softmaxes(head.logits(h), labels, self, tile)
        slope = head.slope(softmaxes.z) if wanted else None
        p, log_p = softmaxes.at(1.0)
        self.ce -= log_p.sum()
        dz = None
        if wanted:
            dz = p * self.ce_weight
            softmaxes.add_at_labels(dz, None, -self.ce_weight)
        for number, part in enumerate(tile.parts):
            if part is not None:
                by_entry = self._teacher(number, *part, softmaxes, dz)
                if by_entry is not None:
                    assert gradients is not None
                    gradients.entries[number] += by_entry
        if gradients is not None:
            assert dz is not None
            gradients.hidden[rows] = head.backward(dz, slope, h, gradients.weight)

    def _teacher(
        self, number: int, student: ScoredRows, teacher: ScoredRows, softmaxes: "_Softmaxes", dz: Tensor | None
    ) -> Tensor | None:
        """Adds one teacher's terms of a tile up; its gradient by the logits to ``dz``.  Returns that by W's entries."""
        signal, _ = self.teachers[number]
        merge, tau = signal.config.merge, signal.config.temperature
        p, log_p = softmaxes.at(tau)
        merged = merge_rows(p, student, merge)
        started = signal.divergence.start(merged, signal.entry_weights)
        p_teacher, log_p_teacher = _teacher_distribution(signal, teacher)
        m, c, c_slope = None, None, None
        if merge == "chain_rule":
            log_m = sum_later_tokens(log_p_teacher, teacher)
            m = log_m.exp()
            c, c_slope = continuation(log_m, sum_later_tokens(log_p, student), teacher.tokens, student.tokens)
        weight = self.kd_weights[number] * tau**2
        coefficients = None
        if dz is not None:
            coefficients = weight * (m if m is not None else log_p.new_ones(student.first.numel()))
        values, g, by_entry = signal.divergence.finish(started, p_teacher, coefficients)
        terms = values[0] if m is None or c is None else m * values[0] + c
        self.kd[number] += tau**2 * terms.sum()
        self.metrics[number] += values[1:].sum(1)
        if dz is None:
            return None
        assert g is not None
        at, g = spread_gradient(g, student, merge)
        p_at = p.index_select(0, at) if merge == "mean" else merged
        # through the softmax: dL/dz = p * (g - sum_v p g)
        inner = all_reduce_sum((p_at * g).sum(1, keepdim=True), self.student.head.shard.group)
        dz.index_add_(0, at, g.sub_(inner).mul_(p_at), alpha=1 / tau)
        if c_slope is not None:
            later = later_rows(student)
            by_label = weight * c_slope[student.chunk[later]] / tau
            dz.index_add_(0, later, p.index_select(0, later) * -by_label.unsqueeze(1))
            softmaxes.add_at_labels(dz, later, by_label)
        return by_entry


@dataclass
class _Gradients:
    """Of the objective, in the accumulation type."""

    hidden: Tensor
    weight: Tensor | None
    entries: list[Any]


class _Softmaxes:
    """The student's probabilities in a tile at each temperature in use, ``[n, V_S/tp]``, and its labels' logarithms."""

    def __init__(self, z: Tensor, labels: Tensor, owner: FusedPass, tile: Tile) -> None:
        self.z, self.labels, self.shard = z, labels, owner.student.head.shard
        group = self.shard.group
        temperatures = {s.config.temperature for (s, _), part in zip(owner.teachers, tile.parts, strict=True) if part}
        norm, picked = log_normalizer_and_picked(z, labels, self.shard, group)
        assert picked is not None
        self._at: dict[float, tuple[Tensor, Tensor]] = {}
        for tau in sorted(temperatures - {1.0}):
            scaled = z / tau
            norm_tau = log_normalizer(scaled, group)
            self._at[tau] = scaled.sub_(norm_tau.unsqueeze(1)).exp_(), picked / tau - norm_tau
        self._one = norm, picked - norm

    def at(self, tau: float) -> tuple[Tensor, Tensor]:
        """``(probabilities, log-probabilities of the labels [n])``; from temperature 1 on ``z`` is overwritten."""
        if tau == 1.0 and tau not in self._at:
            norm, log_p = self._one
            self._at[tau] = self.z.sub_(norm.unsqueeze(1)).exp_(), log_p
        return self._at[tau]

    def add_at_labels(self, dz: Tensor, rows: Tensor | None, values: Tensor | float) -> None:
        """Adds values at the labels of these rows (None: all), where this rank holds them."""
        labels = self.labels if rows is None else self.labels[rows]
        local = labels - self.shard.start
        mine = torch.nonzero((local >= 0) & (local < self.shard.rows)).squeeze(1)
        at = mine if rows is None else rows[mine]
        dz[at, local[mine]] += values if isinstance(values, float) else values[mine]


def _teacher_distribution(signal: TeacherSignal, part: ScoredRows) -> tuple[Tensor, Tensor]:
    """``(merged probabilities [k, V_T/tp], log-probabilities of the labels [m])`` at the temperature."""
    head = signal.output.head
    z = head.logits(signal.output.hidden.index_select(0, part.rows))
    if signal.config.temperature != 1:
        z.div_(signal.config.temperature)
    norm, picked = log_normalizer_and_picked(z, head.columns_of(part.labels), head.shard, head.shard.group)
    assert picked is not None
    return merge_rows(z.sub_(norm.unsqueeze(1)).exp_(), part, signal.config.merge), picked - norm


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, plan: FusedPass, hidden: Tensor, weight: Tensor, *entries: Tensor | None) -> Tensor:
        found = plan.accumulate(any(ctx.needs_input_grad), ctx.needs_input_grad[2])
        if found is not None:
            ctx.found = [
                found.hidden.to(hidden.dtype),
                None if found.weight is None else found.weight.to(weight.dtype),
                *(None if e is None else g.to(e.dtype) for e, g in zip(entries, found.entries, strict=True)),
            ]
        objective = plan.ce * plan.ce_weight
        for w, total in zip(plan.kd_weights, plan.kd, strict=True):
            objective = objective + w * total
        return objective

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        return None, *(None if x is None else x * g for x in ctx.found)

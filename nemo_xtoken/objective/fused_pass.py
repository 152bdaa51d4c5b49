"""The pass over a micro-batch: logits tile by tile, losses and their gradients at once, nothing of size [T, V] kept.

The coefficients of the objective are known beforehand and no chunk is cut, so that the gradient of a tile is complete
when the tile is: the forward pass leaves the gradients with respect to the student's hidden states and output weight,
and backward only scales them.  Each logit is made once.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from nemo_xtoken.kernels.tile_kernels import TileKernels
from nemo_xtoken.losses.base import ChunkDivergence, LaterTerms, LossSum, ModelOutput, TeacherSignal
from nemo_xtoken.losses.chunks import ScoredRows
from nemo_xtoken.objective.merge import continuation, later_rows, merge_rows, spread_gradient, sum_later_tokens
from nemo_xtoken.objective.teacher_weights import sum_statistic
from nemo_xtoken.objective.tiles import TeacherRows, Tile, tiles
from nemo_xtoken.parallel.head import accumulation_dtype
from nemo_xtoken.parallel.softmax import all_reduce_sum, softmax_and_picked
from nemo_xtoken.parallel.vocabulary_shard import VocabularyShard

__all__ = ["FusedPass"]


@dataclass
class FusedPass:
    """One pass over a micro-batch; :meth:`run` may be called once.

    It enters itself through autograd: :meth:`run` applies the function `_Fused` to the tensors that may want a
    gradient, whose forward calls :meth:`accumulate`.  Only there is known which gradients are wanted, and only a
    function can hand gradients that are made already to autograd, which passes them on below the hidden states.

    Args:
        student: hidden states and output layer.
        rows: the labelled student positions.
        teachers: what is compared, with the rows of each.
        ce_weight, kd_weights: coefficients of the sums in the objective; numbers or scalars on the device.
        tile_rows: student rows in a tile.
        kernels: what goes over the tiles.
    """

    student: ModelOutput
    rows: ScoredRows
    teachers: Sequence[tuple[TeacherSignal, TeacherRows]]
    ce_weight: float
    kd_weights: Sequence[float | Tensor]
    tile_rows: int
    kernels: TileKernels
    ce: Tensor = field(init=False)
    kd: list[Tensor] = field(init=False)
    metrics: list[Tensor] = field(init=False)
    statistics: list[Tensor] = field(init=False)
    divergences: list[ChunkDivergence] = field(init=False)

    def run(self) -> Tensor:
        """The objective; differentiable.  The sums are in :meth:`cross_entropy` and :meth:`distillation` then."""
        entries = [signal.entry_weights for signal, _ in self.teachers]
        return _Fused.apply(self, self.student.hidden, self.student.head.weight, *entries)

    def cross_entropy(self) -> LossSum:
        """The sum over the labelled positions."""
        return LossSum(self.ce, self.rows.rows.numel())

    def distillation(self) -> tuple[LossSum, ...]:
        """Each teacher's sum over its chunks; with a statistic, its sum and the student tokens it is of are metrics."""
        sums = []
        for number, (signal, _) in enumerate(self.teachers):
            metrics = dict(zip(signal.divergence.metric_names, self.metrics[number].unbind(), strict=True))
            if signal.statistic is not None:
                metrics |= {"statistic": self.statistics[number], "statistic_tokens": signal.chunks[:, 2].sum()}
            sums.append(LossSum(self.kd[number], signal.chunks.shape[0], metrics))
        return tuple(sums)

    def accumulate(self, wanted: bool, by_weight: bool) -> "_Gradients | None":
        """Goes through the tiles; returns the gradients of the objective if they are wanted.

        Args:
            by_weight: with respect to the output weight as well (not where it is frozen).
        """
        hidden, head = self.student.hidden, self.student.head
        dtype = accumulation_dtype(hidden.dtype)
        self.ce = hidden.new_zeros((), dtype=dtype)
        self.kd = [self.ce.clone() for _ in self.teachers]
        self.metrics = [self.ce.new_zeros(len(s.divergence.metric_names)) for s, _ in self.teachers]
        self.statistics = [self.ce.clone() for _ in self.teachers]
        self.divergences = [s.divergence.for_batch(s.output) for s, _ in self.teachers]
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
        z = head.logits(h)
        slope = head.slope(z) if wanted else None
        at = {1.0} | {s.config.temperature for (s, _), part in zip(self.teachers, tile.parts, strict=True) if part}
        sides = {
            tau: _Side(*softmax_and_picked(z, labels, head.shard, tau, self.kernels), wanted) for tau in sorted(at)
        }
        del z
        self.ce -= sides[1.0].log_p.sum()
        if wanted:
            sides[1.0].by_label -= self.ce_weight
        for number, part in enumerate(tile.parts):
            if part is not None:
                by_entry = self._teacher(number, *part, sides, wanted)
                if by_entry is not None and gradients is not None:
                    gradients.entries[number] += by_entry
        if gradients is not None:
            dz = sides.pop(1.0).by_logits(1.0, labels, head.shard, self.kernels)
            for tau, side in sides.items():
                dz += side.by_logits(tau, labels, head.shard, self.kernels)
            gradients.hidden[rows] = head.backward(dz, slope, h, gradients.weight)

    def _teacher(
        self, number: int, student: ScoredRows, teacher: ScoredRows, sides: "dict[float, _Side]", wanted: bool
    ) -> Tensor | None:
        """Adds one teacher's terms of a tile up, and their gradients to its side; returns the one by W's entries."""
        signal, divergence = self.teachers[number][0], self.divergences[number]
        (merge, _), tau = signal.merges, signal.config.temperature
        side = sides[tau]
        merged = merge_rows(side.p, student, merge)
        started = divergence.start(merged, signal.entry_weights)
        p_teacher, log_p_teacher = self._teacher_rows(number, teacher)
        weight = self.kd_weights[number] * tau**2
        coefficients = None
        if merge == "chain_rule":
            log_m = sum_later_tokens(log_p_teacher, teacher)
            m = log_m.exp()
            log_m_student = sum_later_tokens(side.log_p, student)
            c, slope = continuation(log_m, log_m_student, teacher.tokens, student.tokens)
            if wanted:
                coefficients = weight * m
                rows = later_rows(student)
                side.by_label[rows] += weight * slope[student.chunk[rows]]
        elif wanted:
            coefficients = weight * side.p.new_ones(student.first.numel())
        later = divergence.later_terms(side.p, student, p_teacher, teacher, coefficients)
        merged_teacher = merge_rows(p_teacher, teacher, signal.merges[1])
        values, g, by_entry = divergence.finish(started, merged_teacher, coefficients)
        terms = m * values[0] + c if merge == "chain_rule" else values[0]
        if later is not None:
            terms, values = terms + later.values, torch.cat([values, later.metrics])
            if wanted:
                side.add(later)
        self.kd[number] += tau**2 * terms.sum()
        self.metrics[number] += values[1:].sum(1)
        if g is not None:
            gradient, group = spread_gradient(g, merged, student, merge), self.student.head.shard.group
            side.waiting.append(
                self.kernels.through_softmax(gradient, side.p, lambda inner: all_reduce_sum(inner, group))
            )
        return by_entry

    def _teacher_rows(self, number: int, part: ScoredRows) -> tuple[Tensor, Tensor]:
        """``(probabilities [m, V_T/tp], log-probabilities of the labels [m])`` at the temperature."""
        signal, divergence = self.teachers[number][0], self.divergences[number]
        head, tau = signal.output.head, signal.config.temperature
        z, labels = head.logits(signal.output.hidden.index_select(0, part.rows)), head.columns_of(part.labels)
        p, log_p = softmax_and_picked(z, labels, head.shard, tau, self.kernels)
        if signal.statistic is not None:
            at_one = (p, log_p) if tau == 1 else softmax_and_picked(z, labels, head.shard, kernels=self.kernels)
            self.statistics[number] += sum_statistic(signal.statistic, *at_one, head.shard)
        return divergence.teacher_rows(p), log_p


@dataclass
class _Side:
    """The student in a tile at one temperature, and the gradients that wait for the tile's end.

    Attributes:
        p: ``[n, V_S/tp]`` probabilities.
        log_p: ``[n]``, of the labels.
        by_label: ``[n]``, the objective's derivative with respect to ``log_p``.
        waiting: of the divergences, from ``TileKernels.through_softmax``.
        entries: (rows, columns, the derivative with respect to their log-probabilities as if all were free), of the
            divergences.
        inner: ``[n]``, the sum of these over a row and all ranks.
    """

    p: Tensor
    log_p: Tensor
    wanted: bool
    by_label: Tensor = field(init=False)
    inner: Tensor = field(init=False)
    waiting: list[Any] = field(default_factory=list)
    entries: list[tuple[Tensor, Tensor, Tensor]] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.wanted:
            self.by_label, self.inner = torch.zeros_like(self.log_p), torch.zeros_like(self.log_p)

    def add(self, later: LaterTerms) -> None:
        """Takes the gradients of single entries in."""
        self.entries.append(later.entries)
        self.inner.index_add_(0, *later.inner)

    def by_logits(self, tau: float, labels: Tensor, shard: VocabularyShard, kernels: TileKernels) -> Tensor:
        """The objective's derivative with respect to the logits, ``[n, V_S/tp]``; takes the place of ``p``."""
        dz = kernels.by_logits(self.p, self.by_label, self.inner, labels - shard.start, tau, self.waiting)
        for at, columns, part in self.entries:
            dz.index_put_((at, columns), part / tau, accumulate=True)
        return dz


@dataclass
class _Gradients:
    """Of the objective, in the accumulation type."""

    hidden: Tensor
    weight: Tensor | None
    entries: list[Any]


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

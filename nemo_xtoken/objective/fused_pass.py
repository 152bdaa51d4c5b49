"""The pass over a micro-batch: logits tile by tile, losses and their gradients at once, nothing of size [T, V] kept.

The coefficients of the objective are known beforehand and no chunk is cut, so that the gradient of a tile is complete
when the tile is: the forward pass leaves the gradients with respect to the student's hidden states and output weight,
and backward only scales them.  Each logit is made once.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from nemo_xtoken.kernels.pair_kernels import PairGradient
from nemo_xtoken.kernels.tile_kernels import TileKernels
from nemo_xtoken.losses.base import ChunkDivergence, LossSum, ModelOutput, TeacherSignal
from nemo_xtoken.losses.chunks import Probabilities, ScoredRows
from nemo_xtoken.losses.top_k import compared, paired_rows
from nemo_xtoken.objective.merge import continuation, merge_rows, spread_gradient, sum_later_tokens, to_later_tokens
from nemo_xtoken.objective.teacher_weights import sum_statistic
from nemo_xtoken.objective.tile_side import TileSide, gradient_by_product
from nemo_xtoken.objective.tiles import TeacherRows, Tile, block_rows, tiles, together
from nemo_xtoken.parallel.column_pairs import ColumnPairs
from nemo_xtoken.parallel.head import accumulation_dtype
from nemo_xtoken.parallel.softmax import all_reduce_sum, softmax_and_picked, tile_logits

__all__ = ["FusedPass"]


@dataclass
class FusedPass:
    """One pass over a micro-batch.  After :meth:`run`, ``student`` may be set to other hidden states of the same labels
    and it be run again: tiles, and what the divergences have planned for them, are made once.

    It enters itself through autograd: :meth:`run` applies the function `_Fused` to the tensors that may want a
    gradient, whose forward calls :meth:`accumulate`.  Only there is known which gradients are wanted, and only a
    function can hand gradients that are made already to autograd, which passes them on below the hidden states.

    Args:
        student: hidden states and output layer.
        rows: the labelled student positions.
        teachers: what is compared, with the rows of each.
        ce_weight, kd_weights: coefficients of the sums in the objective; numbers or scalars on the device.
        tile_rows: student rows in a tile, whose logits are made at once; they are compared by `tiles.block_rows`.
        kernels: what goes over the tiles.

    Attributes:
        terms: for each teacher those of its chunks, ``[k]`` of each tile in turn, of the last run; without their
            gradients and the square of the temperature, and none of one that is compared by its logits.
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
    terms: list[list[Tensor]] = field(init=False)
    metrics: list[Tensor] = field(init=False)
    statistics: list[Tensor] = field(init=False)
    divergences: list[ChunkDivergence] = field(init=False)
    cut: list[Tile] | None = field(init=False, default=None)
    paired: list[ColumnPairs | None] = field(init=False)
    log_p: list[Tensor] = field(init=False)
    by_chunk: list[list[Tensor]] = field(init=False)
    later: list[list[tuple[Tensor, Tensor]]] = field(init=False)
    weights: list[Tensor] = field(init=False)
    settings: dict[tuple[float, float, float], Tensor] = field(init=False)

    def run(self) -> Tensor:
        """The objective; differentiable.  The sums are in :meth:`cross_entropy` and :meth:`distillation` then."""
        entries = [signal.entry_weights for signal, _ in self.teachers]
        # a function is not told whether gradients are wanted at all
        return _Fused.apply(self, torch.is_grad_enabled(), self.student.hidden, self.student.head.weight, *entries)

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
        self.terms = [[] for _ in self.teachers]
        self.metrics = [self.ce.new_zeros(len(s.divergence.metric_names)) for s, _ in self.teachers]
        self.statistics = [self.ce.clone() for _ in self.teachers]
        if self.cut is None:
            self.divergences = [s.divergence.for_batch(s.output) for s, _ in self.teachers]
            self.cut = self._tiles()
        self.paired = [self._pairs_of(number) for number in range(len(self.teachers))]
        self.log_p, self.by_chunk, self.later = [], [[] for _ in self.teachers], [[] for _ in self.teachers]
        self.settings = {}
        self.weights = [
            (self.ce + w * s.config.temperature**2).to(dtype)
            for w, (s, _) in zip(self.kd_weights, self.teachers, strict=True)
        ]
        groups = together(self.cut, self.tile_rows)
        gradients = None
        if wanted:
            entries = [s.entry_weights for s, _ in self.teachers]
            gradients = _Gradients(
                torch.zeros_like(hidden, dtype=dtype),
                self._weight_gradient(len(groups)) if by_weight else None,
                [None if e is None else torch.zeros_like(e, dtype=dtype) for e in entries],
                fresh=bool(groups) and head.main_grad is None,
            )
        for group in groups:
            self._group(group, gradients)
        self._finish()
        if gradients is not None and head.sums_hidden:
            all_reduce_sum(gradients.hidden, head.shard.group)
        return gradients

    def _weight_gradient(self, products: int) -> Tensor:
        """What the gradient with respect to the output weight is added to, by so many products."""
        head, hidden = self.student.head, self.student.hidden
        if head.main_grad is not None:
            return head.main_grad
        if not products:
            return torch.zeros_like(head.weight)
        dtype = accumulation_dtype(hidden.dtype) if products > 1 else head.narrow(hidden)
        return torch.empty_like(head.weight, dtype=dtype)

    def _tiles(self) -> list[Tile]:
        """The parts of tiles that are compared at a time, each with what the divergences plan for it."""
        rows = block_rows(self.tile_rows, self.student.head, self.kernels)
        cut = list(tiles(self.rows, [rows for _, rows in self.teachers], rows))
        plans = [d.plans([tile.parts[number] for tile in cut]) for number, d in enumerate(self.divergences)]
        return [tile._replace(plans=tuple(each[number] for each in plans)) for number, tile in enumerate(cut)]

    def _group(self, group: list[Tile], gradients: "_Gradients | None") -> None:
        """Tiles whose logits are made at once, and whose gradients go through the output layer at once."""
        head, at = self.student.head, group[0].rows.start
        rows = self.rows.rows[at : group[-1].rows.stop]
        h = self.student.hidden.index_select(0, rows)
        logits, narrow = [head.logits(h)], head.narrow(h)
        taught = [self._teacher_logits(number, group) for number in range(len(self.teachers))]
        if len(group) == 1:
            dz = self._tile(group[0], logits, taught, gradients)
            if dz is not None and narrow == h.dtype:
                dz = dz.to(narrow)
        else:
            whole = logits.pop()
            dz = whole if narrow == whole.dtype or gradients is None else torch.empty_like(whole, dtype=narrow)
            for tile in group:
                part = slice(tile.rows.start - at, tile.rows.stop - at)
                found = self._tile(tile, [whole[part]], taught, gradients)
                if found is not None and found.data_ptr() != dz[part].data_ptr():
                    dz[part] = found
            del whole
        if gradients is not None and dz is not None:
            gradients.hidden[rows] = head.backward(dz, h, gradients.weight, gradients.fresh)
            gradients.fresh = False

    def _teacher_logits(self, number: int, group: list[Tile]) -> Iterator[Tensor]:
        """Of each of these tiles that has chunks of a teacher; made when the first is asked for."""
        output = self.teachers[number][0].output
        rows = [part[1].rows for part in (tile.parts[number] for tile in group) if part is not None]
        if rows:
            hidden = output.hidden.index_select(0, torch.cat(rows) if len(rows) > 1 else rows[0])
            parts = list(output.head.logits(hidden).split([part.numel() for part in rows]))
            while parts:
                yield parts.pop(0)

    def _tile(
        self, tile: Tile, logits: list[Tensor], taught: list[Iterator[Tensor]], gradients: "_Gradients | None"
    ) -> Tensor | None:
        """Compares the rows of a tile.

        Args:
            logits: the student's; taken out, and overwritten.
            taught: for each teacher, the logits of its next tile.

        Returns:
            the derivative with respect to the product of hidden states and output weight.
        """
        head, wanted, by_logits = self.student.head, gradients is not None, self.kernels.pairs is not None
        labels, z = head.columns_of(self.rows.labels[tile.rows]), logits.pop()
        slope = head.slope(z) if wanted and not by_logits else None
        at = {1.0} | {s.config.temperature for (s, _), part in zip(self.teachers, tile.parts, strict=True) if part}
        sides = {
            tau: TileSide(z, labels, head, tau, self.kernels, -self.ce_weight if tau == 1 else 0.0, spare=tau == 1)
            for tau in sorted(at, key=lambda tau: (tau == 1, tau))  # 1 comes last and may overwrite the logits
        }
        kept = z if by_logits else None
        del z
        self.log_p.append(sides[1.0].log_p)
        for number, part in enumerate(tile.parts):
            if part is not None:
                take = self._teacher if self.paired[number] is None else self._paired_teacher
                by_entry = take(number, *part, taught[number], tile.plans[number], sides, wanted)
                if by_entry is not None and gradients is not None:
                    gradients.entries[number] += by_entry
        if gradients is None:
            return None
        ordered = [sides.pop(1.0), *sides.values()]
        return gradient_by_product(head, ordered, kept, slope, self._settings, self.student.hidden.dtype)

    def _settings(self, base: float, scale: float, softcap: float) -> Tensor:
        key = base, scale, softcap
        if key not in self.settings:
            self.settings[key] = self.ce.new_tensor(key)
        return self.settings[key]

    def _pairs_of(self, number: int) -> ColumnPairs | None:
        """What compares a teacher's logits with the student's; None: it is compared by probabilities."""
        signal = self.teachers[number][0]
        means = not {"first", "chain_rule"}.issuperset(signal.merges)
        if means or signal.entry_weights is not None or signal.statistic is not None:
            return None
        return None if self.kernels.pairs is None else self.divergences[number].column_pairs()

    def _paired_teacher(
        self, number: int, student: ScoredRows, teacher: ScoredRows, logits: Iterator[Tensor], plan: Any,
        sides: dict[float, TileSide], wanted: bool,
    ) -> None:  # fmt: skip
        """:meth:`_teacher` where both sides' logits are compared as they are."""
        (signal, _), pairs, kernels = self.teachers[number], self.paired[number], self.kernels.pairs
        assert pairs is not None
        assert kernels is not None
        head, tau, divergence = signal.output.head, signal.config.temperature, self.divergences[number]
        side, weight = sides[tau], self.weights[number]
        rows, tables = paired_rows(divergence, plan, (student, teacher)), None
        columns = rows[0].first.numel() > 0
        started = pairs.start(side.logits, rows[0].first, tau) if columns else None
        other = tile_logits(next(logits), head.columns_of(teacher.labels), head.shard, tau, kernels)
        both = side.logits, other
        if columns:
            tables = pairs.finish(started, other, rows[1].first, tau)
        by = weight if wanted else None
        sums, slopes, beside, later = compared(divergence, pairs, kernels, both, rows, tables, tau, plan, by)
        chain_rule = signal.merges[0] == "chain_rule"
        values, by_chunk = kernels.chunk_terms(pairs.plan, both, rows, sums, weight, chain_rule, beside.terms)
        self.by_chunk[number].append(values)
        if beside.metrics and beside.terms is not None:
            self.later[number].append((values[0, :0], beside.terms[-beside.metrics :]))
        if later is None and plan is not None:
            later = divergence.paired_terms(plan, both, tau, by_chunk[0] if wanted else None)
        if later is not None:
            self.later[number].append((later.values, later.metrics))
            if later.inner[1].numel():
                side.add(later)
        if wanted and tables is not None and slopes is not None:
            back = pairs.back(slopes)
            side.pairs.append(PairGradient(pairs.plan, other, rows, tables, by_chunk, back, beside.largest))

    def _finish(self) -> None:
        """Sums what the tiles have left: log-probabilities, and of the teachers that are compared by their logits."""
        if self.log_p:
            self.ce -= torch.cat(self.log_p).sum()
        for number, pairs in enumerate(self.paired):
            if pairs is None or not self.by_chunk[number]:
                continue
            signal = self.teachers[number][0]
            term, *rests = torch.cat(self.by_chunk[number], dim=1).sum(1).unbind()
            if self.later[number]:
                values, metrics = zip(*self.later[number], strict=True)
                term = term + torch.cat(values).sum()
                found = torch.cat(metrics, dim=1).sum(1)
                self.metrics[number][-len(found) :] += found
            self.kd[number] += signal.config.temperature**2 * term
            if len(signal.divergence.metric_names) > len(rests):
                compared_chunks = sum(values.shape[1] for values in self.by_chunk[number])
                sent = pairs.bytes_a_chunk(self.ce.itemsize) * compared_chunks
                self.metrics[number][:3] += torch.stack([*rests, self.ce.new_full((), sent)])

    def _teacher(
        self, number: int, student: ScoredRows, teacher: ScoredRows, logits: Iterator[Tensor], plan: Any,
        sides: dict[float, TileSide], wanted: bool,
    ) -> Tensor | None:  # fmt: skip
        """Adds one teacher's terms of a tile up, and their gradients to its side; returns the one by W's entries."""
        signal, divergence = self.teachers[number][0], self.divergences[number]
        (merge, _), tau = signal.merges, signal.config.temperature
        side = sides[tau]
        merged = merge_rows(side.p, student, merge)
        started = divergence.start(merged, signal.entry_weights)
        p_teacher, log_p_teacher = self._teacher_rows(number, teacher, next(logits))
        weight = self.kd_weights[number] * tau**2
        coefficients = None
        if merge == "chain_rule":
            log_m = sum_later_tokens(log_p_teacher, teacher)
            m = log_m.exp()
            log_m_student = sum_later_tokens(side.log_p, student)
            c, slope = continuation(log_m, log_m_student, teacher.tokens, student.tokens)
            if wanted:
                coefficients = weight * m
                side.add_by_label(to_later_tokens(weight * slope, student))
        elif wanted:
            coefficients = weight * side.p.new_ones(student.first.numel())
        if plan is None:
            later = divergence.later_terms(side.p, student, p_teacher, teacher, coefficients)
        else:
            later = divergence.planned_terms(plan, (Probabilities(side.p), Probabilities(p_teacher)), coefficients)
        merged_teacher = merge_rows(p_teacher, teacher, signal.merges[1])
        if plan is None:
            values, g, by_entry = divergence.finish(started, merged_teacher, coefficients)
        else:
            values, g, by_entry = divergence.planned_finish(plan, started, merged_teacher, coefficients)
        terms = m * values[0] + c if merge == "chain_rule" else values[0]
        if later is not None:
            terms, values = terms + later.values, torch.cat([values, later.metrics])
            if wanted:
                side.add(later)
        self.terms[number].append(terms)
        self.kd[number] += tau**2 * terms.sum()
        self.metrics[number] += values[1:].sum(1)
        group = self.student.head.shard.group
        by_rows = [later.rows] if later is not None and later.rows is not None else []
        if g is not None:
            by_rows.append(spread_gradient(g, merged, student, merge))
        for gradient in by_rows:
            side.waiting.append(
                self.kernels.through_softmax(gradient, side.p, lambda inner: all_reduce_sum(inner, group))
            )
        return by_entry

    def _teacher_rows(self, number: int, part: ScoredRows, z: Tensor) -> tuple[Tensor, Tensor]:
        """``(probabilities [m, V_T/tp], log-probabilities of the labels [m])`` at the temperature."""
        signal, divergence = self.teachers[number][0], self.divergences[number]
        head, tau = signal.output.head, signal.config.temperature
        labels, once = head.columns_of(part.labels), signal.statistic is None or tau == 1
        p, log_p = softmax_and_picked(z, labels, head.shard, tau, self.kernels, spare=once)
        if signal.statistic is not None:
            at_one = (p, log_p) if tau == 1 else softmax_and_picked(z, labels, head.shard, kernels=self.kernels)
            self.statistics[number] += sum_statistic(signal.statistic, *at_one, head.shard)
        return divergence.teacher_rows(p), log_p


@dataclass
class _Gradients:
    """Of the objective, in the accumulation type."""

    hidden: Tensor
    weight: Tensor | None
    entries: list[Any]
    fresh: bool  # nothing is in `weight` yet


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, plan: FusedPass, enabled: bool, hidden: Tensor, weight: Tensor, *entries: Tensor | None
    ) -> Tensor:
        with torch.autocast(hidden.device.type, enabled=False):  # types are chosen here
            found = plan.accumulate(enabled and any(ctx.needs_input_grad), ctx.needs_input_grad[3])
        if found is not None:
            main_grad = plan.student.head.main_grad
            ctx.added = weight if found.weight is not None and found.weight is main_grad else None
            gradients = found.hidden, None if ctx.added is not None else found.weight, *found.entries
            ctx.found = [
                None if x is None or g is None else (_narrowed(g, x.dtype), x.dtype)
                for x, g in zip((hidden, weight, *entries), gradients, strict=True)
            ]
        objective = plan.ce * plan.ce_weight
        for w, total in zip(plan.kd_weights, plan.kd, strict=True):
            objective = objective + w * total
        return objective

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        gradients = [None if x is None else (x[0] * g).to(x[1]) for x in ctx.found]
        if ctx.added is not None:
            gradients[1] = _placeholder(ctx.added)
        return None, None, *gradients


def _placeholder(weight: Tensor) -> Tensor:
    """What autograd gets for a weight whose gradient is in its ``main_grad``: Megatron asks that there be something.

    It is read where the weight has another gradient, an embedding's, that is still to be added (``zero_out_wgrad``).
    """
    weight.grad_added_to_main_grad = True  # type: ignore[attr-defined]
    return torch.zeros_like(weight) if getattr(weight, "zero_out_wgrad", False) else torch.empty_like(weight)


def _narrowed(gradient: Tensor, dtype: torch.dtype) -> Tensor:
    """In its tensor's type at once, to spare memory; float16, which needs the loss scale first, waits for it."""
    return gradient if dtype == torch.float16 else gradient.to(dtype)

"""The pass over a micro-batch: logits tile by tile, nothing of size [T, V] kept, tiles recomputed in backward.

A tile is a run of student rows cut between chunks, with the teacher rows of the chunks in it.  The autograd function
here gives two kinds of terms: the log-probability of each label (cross-entropy, and the continuation of a chunk) and a
divergence per chunk.  Everything else is arithmetic on those small vectors.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nemo_xtoken.losses.base import ChunkDivergence, ModelOutput
from nemo_xtoken.losses.chunks import ScoredRows, merge_rows, spread_gradient
from nemo_xtoken.parallel.head import OutputHead, accumulation_dtype
from nemo_xtoken.parallel.layout import VocabularyShard
from nemo_xtoken.parallel.softmax import all_reduce_sum, log_normalizer, log_normalizer_and_picked

__all__ = ["Terms", "tile_cuts", "tiled_terms"]


@dataclass(frozen=True)
class Terms:
    """What one pass gives.  All are equal on all ranks of the tensor-parallel group.

    Attributes:
        log_p: ``[n]``, log-probability of each student row's label at temperature 1; differentiable.
        log_p_tau: ``[n]``, the same at the distillation temperature; differentiable.
        teacher_log_p_tau: ``[m]``, of each teacher row's label at that temperature; None without a teacher.
        divergence: ``[K]``, per chunk; differentiable; None without a teacher.
        metrics: ``[metrics, K]``, the divergence's own; None without a teacher.
    """

    log_p: Tensor
    log_p_tau: Tensor
    teacher_log_p_tau: Tensor | None = None
    divergence: Tensor | None = None
    metrics: Tensor | None = None


def tile_cuts(scored: ScoredRows, tile_rows: int) -> list[tuple[slice, slice]]:
    """Cuts rows into runs of at most ``tile_rows``, never inside a chunk; a longer chunk is a tile of its own.

    Returns:
        ``(rows, chunks)`` of each tile, in order; every row is in exactly one.
    """
    n = scored.rows.numel()
    inside = scored.chunk >= 0
    starts = torch.zeros_like(inside).index_fill_(0, scored.first, True)
    legal = torch.cat([torch.nonzero(~inside | starts).squeeze(1).cpu(), torch.tensor([n])])
    before = torch.searchsorted(scored.first.cpu(), legal).tolist()  # chunks that begin before a cut
    cuts: list[tuple[slice, slice]] = []
    at = 0  # index into `legal`; legal[0] == 0 because a first row is never inside an earlier chunk
    positions = legal.tolist()
    while positions[at] < n:
        start = positions[at]
        to = int(torch.searchsorted(legal, start + tile_rows, right=True)) - 1
        to = max(to, at + 1)
        cuts.append((slice(start, positions[to]), slice(before[at], before[to])))
        at = to
    return cuts


@dataclass(frozen=True)
class _Pass:
    """Everything about a pass that is no differentiable tensor."""

    student: ScoredRows
    student_shard: VocabularyShard
    teacher: ScoredRows | None
    teacher_output: ModelOutput | None
    divergence: ChunkDivergence | None
    merge: str
    temperature: float
    tile_rows: int

    def tiles(self) -> Iterator[tuple[ScoredRows, slice, slice, ScoredRows | None, slice | None]]:
        ends = None
        if self.teacher is not None:
            ends = torch.cat([self.teacher.first, self.teacher.first.new_tensor([self.teacher.rows.numel()])]).tolist()
        for rows, chunks in tile_cuts(self.student, self.tile_rows):
            part = self.student.part(rows, chunks)
            if ends is None or chunks.start == chunks.stop:
                yield part, rows, chunks, None, None
            else:
                assert self.teacher is not None
                span = slice(ends[chunks.start], ends[chunks.stop])
                yield part, rows, chunks, self.teacher.part(span, chunks), span

    def teacher_distribution(self, part: ScoredRows) -> tuple[Tensor, Tensor]:
        """``(merged probabilities [k, V_T/tp], log-probabilities of the labels [m])`` at the temperature."""
        assert self.teacher_output is not None
        head = self.teacher_output.head
        z = head.logits(self.teacher_output.hidden.index_select(0, part.rows)) / self.temperature
        norm, picked = log_normalizer_and_picked(z, part.labels, head.shard, head.shard.group)
        assert picked is not None
        return merge_rows(torch.exp_(z.sub_(norm.unsqueeze(1))), part, self.merge), picked - norm


class _TiledTerms(torch.autograd.Function):
    """Forward: one logits tile a step.  Backward: the same tiles again, with the closed-form gradient of each term."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, plan: _Pass) -> tuple[Tensor, ...]:
        dtype = accumulation_dtype(hidden.dtype)
        head = OutputHead(weight, plan.student_shard)
        n, chunks = plan.student.rows.numel(), plan.student.first.numel()
        names = plan.divergence.metric_names if plan.divergence is not None else ()
        log_p, log_p_tau, norms, norms_tau = hidden.new_empty((4, n), dtype=dtype)
        teacher_log_p = hidden.new_empty(plan.teacher.rows.numel() if plan.teacher else 0, dtype=dtype)
        values = hidden.new_zeros((1 + len(names), chunks), dtype=dtype)
        for part, rows, chunk_span, teacher_part, teacher_span in plan.tiles():
            z = head.logits(hidden.index_select(0, part.rows))
            norms[rows], picked = log_normalizer_and_picked(z, part.labels, head.shard, head.shard.group)
            assert picked is not None
            log_p[rows] = picked - norms[rows]
            if plan.temperature == 1:
                norms_tau[rows], log_p_tau[rows] = norms[rows], log_p[rows]
            else:
                z = z.div_(plan.temperature)
                norms_tau[rows] = log_normalizer(z, head.shard.group)
                log_p_tau[rows] = picked / plan.temperature - norms_tau[rows]
            if teacher_part is not None:
                assert plan.divergence is not None
                p_teacher, teacher_log_p[teacher_span] = plan.teacher_distribution(teacher_part)
                p = torch.exp_(z.sub_(norms_tau[rows].unsqueeze(1)))
                values[:, chunk_span] = plan.divergence.value(merge_rows(p, part, plan.merge), p_teacher)
        ctx.plan = plan
        ctx.save_for_backward(hidden, weight, norms, norms_tau)
        outputs = (log_p, log_p_tau, teacher_log_p, values[0], values[1:])
        ctx.mark_non_differentiable(outputs[2], outputs[4])
        return outputs

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        g_log_p, g_log_p_tau, _, g_value, _ = grads
        hidden, weight, norms, norms_tau = ctx.saved_tensors
        plan: _Pass = ctx.plan
        head = OutputHead(weight, plan.student_shard)
        group = head.shard.group
        dtype = accumulation_dtype(hidden.dtype)
        g_hidden = torch.zeros_like(hidden, dtype=dtype)
        g_weight = torch.zeros_like(weight, dtype=dtype)
        tau = plan.temperature
        for part, rows, chunk_span, teacher_part, _ in plan.tiles():
            h = hidden.index_select(0, part.rows)
            z = head.logits(h)
            p = torch.exp(z - norms[rows].unsqueeze(1))
            p_tau = p if tau == 1 else torch.exp(z / tau - norms_tau[rows].unsqueeze(1))
            # d log p(label) / dz = onehot(label) - p, at either temperature
            by_label = g_log_p[rows] + g_log_p_tau[rows] / tau
            if tau == 1:
                dz = p * -by_label.unsqueeze(1)
            else:
                dz = p * -g_log_p[rows].unsqueeze(1) - p_tau * (g_log_p_tau[rows] / tau).unsqueeze(1)
            _add_at_labels(dz, part.labels, by_label, head.shard)
            if teacher_part is not None:
                assert plan.divergence is not None
                p_teacher, _ = plan.teacher_distribution(teacher_part)
                g = plan.divergence.student_gradient(merge_rows(p_tau, part, plan.merge), p_teacher)
                at, g = spread_gradient(g * (g_value[chunk_span] / tau).unsqueeze(1), part, plan.merge)
                p_at = p_tau.index_select(0, at)
                # through the softmax: dL/dz = p * (g - sum_v p g)
                mean = all_reduce_sum((p_at * g).sum(1, keepdim=True), group)
                dz.index_add_(0, at, p_at * (g - mean))
            dz = dz.to(hidden.dtype)
            g_hidden[part.rows] = torch.mm(dz, weight.to(dz.dtype)).to(dtype)
            g_weight += torch.mm(dz.t(), h).to(dtype)
        all_reduce_sum(g_hidden, group)
        return g_hidden.to(hidden.dtype), g_weight.to(weight.dtype), None


def _add_at_labels(dz: Tensor, labels: Tensor, values: Tensor, shard: VocabularyShard) -> None:
    """Adds ``values[i]`` at column ``labels[i]`` of the rows whose label this rank holds."""
    local = labels - shard.start
    mine = (local >= 0) & (local < shard.rows)
    dz.scatter_add_(1, local.clamp(0, shard.rows - 1).unsqueeze(1), torch.where(mine, values, 0).unsqueeze(1))


def tiled_terms(
    student: ModelOutput,
    student_rows: ScoredRows,
    teacher: ModelOutput | None = None,
    teacher_rows: ScoredRows | None = None,
    divergence: ChunkDivergence | None = None,
    merge: str = "chain_rule",
    temperature: float = 1.0,
    tile_rows: int = 256,
) -> Terms:
    """Runs the pass; peak extra memory is a few tensors of ``[tile_rows, V/tp]`` on either side.

    Args:
        student: hidden states that require a gradient, and the output layer.  The gradient by the hidden states is
            summed over the tensor-parallel group here; the gradient by the weight is this rank's.
        teacher, teacher_rows, divergence: all or none.
        tile_rows: student rows in a tile.

    Returns:
        the terms, differentiable by ``student.hidden`` and ``student.head.weight``.  Collectives per tile: forward one
        all-gather a side and those of ``divergence``; backward the same and an all-reduce of a column; at the end of
        backward one all-reduce of ``[b*T, H]``.
    """
    plan = _Pass(student_rows, student.head.shard, teacher_rows, teacher, divergence, merge, temperature, tile_rows)
    log_p, log_p_tau, teacher_log_p, value, metrics = _TiledTerms.apply(student.hidden, student.head.weight, plan)
    if teacher is None:
        return Terms(log_p, log_p_tau)
    return Terms(log_p, log_p_tau, teacher_log_p, value, metrics)

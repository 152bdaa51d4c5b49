"""Strict 1-to-1: reverse KL on the student's top tokens, where both sides say the same in one token each.

A strong simple baseline (arXiv 2610.08448).  A chunk counts where it is one token on either side and both are a pair of
the strict common set C.  There both distributions are restricted to the tokens of C that the student finds most
probable, by default 16, and renormalised; their reverse KL is the loss.  Nothing else is learned from the teacher.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from nemo_xtoken.kernels.pair_kernels import Beside, LargestSlopes, PairKernels, PairRows, TileLogits
from nemo_xtoken.kernels.reference import TORCH
from nemo_xtoken.kernels.tile_kernels import TileKernels
from nemo_xtoken.losses.base import ChunkDivergence, Comparison
from nemo_xtoken.losses.directions import DIRECTIONS
from nemo_xtoken.losses.pair import VocabularyPair
from nemo_xtoken.losses.top_k import (
    ComparesLargest,
    LargestColumns,
    first_of_rank,
    ranked_over_ranks,
    side_by_side,
)
from nemo_xtoken.parallel.column_pairs import ColumnPairs
from nemo_xtoken.parallel.common_set import CommonSet
from nemo_xtoken.parallel.exchange import Projection
from nemo_xtoken.parallel.softmax import all_reduce_sum
from nemo_xtoken.parallel.top_k_over_ranks import top_k_mask
from nemo_xtoken.parallel.vocabulary_shard import VocabularyShard, group_size

__all__ = ["DEFAULT_TOP_K", "ExactPairs", "StrictOneToOne"]

#: Tokens compared; the paper finds 16 as good as 128 or all.
DEFAULT_TOP_K = 16


class ExactPairs(torch.nn.Module):
    """Tells the chunks of one token on either side that are a pair of the common set.

    Args:
        common: ``CommonSet.strict``.
    """

    partner: Tensor

    def __init__(self, common: CommonSet) -> None:
        super().__init__()
        partner = torch.full((common.student_size,), -1)
        partner[torch.from_numpy(common.student)] = torch.from_numpy(common.teacher)
        self.register_buffer("partner", partner, persistent=False)

    def forward(self, student_labels: Tensor, teacher_labels: Tensor, chunks: Tensor) -> Tensor:
        """bool ``[K]``.  A label of a chunk is the token that its row predicts.

        Args:
            student_labels: int64 ``[b, T_S]``.
            teacher_labels: int64 ``[b, T_T]``.
            chunks: int64 ``[K, 5]``: sample, first student row, student rows, first teacher row, teacher rows.
        """
        sample, at_student, student_rows, at_teacher, teacher_rows = chunks.unbind(1)
        single = (student_rows == 1) & (teacher_rows == 1)
        wanted = self.partner[student_labels[sample, at_student].clamp_min(0)]
        return single & (wanted >= 0) & (wanted == teacher_labels[sample, at_teacher])


class StrictOneToOne(ChunkDivergence, ComparesLargest):
    """``KL(s || t)`` of the student's and the teacher's distribution over the student's top tokens in C.

    With A the k tokens of C that the student finds most probable (of equal ones the smaller student id),
    ``s = p_S / p_S(A)`` and ``t = p_T / p_T(A)``.  A counts as given; then the derivative with respect to
    ``p_S`` is ``(log(s / t) - KL(s || t)) / p_S(A)`` on A and 0 elsewhere.

    Args:
        common: C, ``CommonSet.strict``.  (The paper leaves special tokens out of it; here those with a role that both
            tokenizers have are in, so that a student learns where to stop.)
        student: layout of its output layer.
        top_k: tokens in A; from the size of C up it is all of C.
        kernels: what goes over the tiles.
    """

    options: ClassVar[Mapping[str, Any]] = {"top_k": DEFAULT_TOP_K}
    suits = frozenset({"inside"})
    leaves_chunks_out = True
    metric_names: tuple[str, ...] = ("teacher_left_out", "student_left_out", "exchange_bytes")
    columns: Tensor
    student_ids: Tensor
    in_common: Tensor
    partner_column: Tensor

    def __init__(
        self, common: CommonSet, student: VocabularyShard, top_k: int = DEFAULT_TOP_K, kernels: TileKernels = TORCH
    ) -> None:
        super().__init__()
        self.exchange = common.exchange(student, kernels)
        self.ownership = self.exchange.ownership
        self.top_k = min(top_k, max(1, len(common)))
        partner = torch.full((common.teacher_size,), -1)
        partner[torch.from_numpy(common.teacher)] = torch.from_numpy(common.student)
        columns = torch.nonzero(self.exchange.reached).squeeze(1)
        self.register_buffer("columns", columns, persistent=False)
        tokens = torch.from_numpy(self.ownership.local_tokens)
        self.register_buffer("student_ids", partner[tokens[columns]], persistent=False)
        self._by_logits(common, student)

    def _by_logits(self, common: CommonSet, student: VocabularyShard) -> None:
        """What kernels that work on logits need: the student's tokens in C, and where their partners lie."""
        mine = common.student[(common.student >= student.start) & (common.student < student.start + student.rows)]
        columns = torch.from_numpy(mine - student.start)
        mask = torch.zeros(student.rows, dtype=torch.uint8)
        mask[columns] = 1
        partner = torch.full((common.student_size,), -1)
        partner[torch.from_numpy(common.student)] = torch.from_numpy(self.ownership.owned[common.teacher])
        self.register_buffer("in_common", mask, persistent=False)
        self.register_buffer("partner_column", partner, persistent=False)
        by_rank = np.bincount(common.student // student.rows, minlength=1)
        #: Tokens that each rank finds: all find as many, some of them none.
        self.room = min(self.top_k, int(by_rank.max(initial=0)))
        self.keep = min(self.room, len(mine))
        self.search = len(mine) > self.keep
        pairs = self.exchange.kernels.pairs
        self._pairs = None if pairs is None else LargestColumns(columns, False, pairs, student)

    @classmethod
    def of(
        cls, pair: VocabularyPair, student: VocabularyShard, options: Mapping[str, Any], kernels: TileKernels
    ) -> "StrictOneToOne":
        """Over the strict common set."""
        return cls(pair.strict, student, **options, kernels=kernels)

    @classmethod
    def selection(cls, pair: VocabularyPair) -> ExactPairs:
        """The chunks whose two tokens are a pair."""
        return ExactPairs(pair.strict)

    @classmethod
    def common_sets(cls, pair: VocabularyPair) -> tuple[CommonSet, ...]:
        """C."""
        return (pair.strict,)

    def column_pairs(self) -> ColumnPairs | None:
        """None of them is compared but by :meth:`compare_largest`."""
        return self._pairs

    def compare_largest(
        self,
        kernels: PairKernels,
        sides: tuple[TileLogits, TileLogits],
        rows: tuple[PairRows, PairRows],
        temperature: float,
    ) -> Beside:
        """The divergence from both sides' logits.

        Of tokens whose probabilities are 0 for the type of the numbers the larger logit decides.  Collectives: two
        all-gathers and an all-reduce of ``[k, top_k]``.
        """
        (student, teacher), group = sides, self.exchange.group
        first, first_t = rows[0].first, rows[1].first
        found = kernels.largest(student, first, self.in_common, self.keep, self.room, temperature, self.search)
        values, tokens, order = found.values, found.columns, None
        if group_size(group) > 1:
            values, order = ranked_over_ranks(values, group)
            tokens = torch.where(tokens < 0, -1, tokens + student.start)
            tokens = side_by_side(tokens, group).gather(1, order[:, : self.top_k]).contiguous()
        partners = kernels.partners(teacher, first_t, tokens, self.partner_column, temperature)
        partners = all_reduce_sum(partners, group)
        own = first_of_rank(self.room, group)
        sums, slopes = kernels.restricted_reverse(student, first, values, partners, order, self.room, own, temperature)
        return Beside(LargestSlopes(found, slopes), sums)

    def start(self, p_student: Tensor, entry_weights: Tensor | None = None) -> Projection:
        """The pairs' probabilities on their way to the teacher's columns; see ``VocabularyExchange.start``."""
        return self.exchange.start(p_student, entry_weights)

    def finish(self, started: Projection, p_teacher: Tensor, coefficients: Tensor | None) -> Comparison:
        """The divergence, the teacher's and the student's mass outside A, the bytes a rank sends.

        Args:
            p_teacher: ``[k, V_T/tp]``, this rank's columns.

        Collectives: those of ``top_k_mask``, one all-reduce of 2k values, one of k; with a gradient those of
        ``Projection.pull``.
        """
        everywhere, rest = started.finish()
        group, limits = self.exchange.group, torch.finfo(everywhere.dtype)
        q, p = (x.index_select(1, self.columns) for x in (everywhere, p_teacher))
        kept = top_k_mask(q, self.student_ids, self.top_k, group)
        q.mul_(kept)
        p.mul_(kept)
        masses = all_reduce_sum(torch.stack([q.sum(1), p.sum(1)]), group)
        inside = masses.unsqueeze(2).clamp_min(limits.tiny * limits.eps)
        wanted = None if coefficients is None else coefficients.unsqueeze(1)
        terms, slope = DIRECTIONS["reverse"].compare(p / inside[1], q / inside[0], wanted)
        divergence = all_reduce_sum(terms.sum(1), group)
        sent = torch.full_like(rest, self.exchange.bytes_a_chunk(rest.itemsize))
        values = torch.stack([divergence, 1 - masses[1], 1 - masses[0], sent])
        if slope is None or wanted is None:
            return Comparison(values)
        # the slope is log(s / t) + 1
        slope = slope.sub_(wanted * (1 + divergence.unsqueeze(1))).div_(inside[0].clamp_min(limits.tiny / limits.eps))
        g = torch.zeros_like(everywhere).index_copy_(1, self.columns, slope.mul_(kept))
        return Comparison(values, *started.pull(g, torch.zeros_like(rest)))

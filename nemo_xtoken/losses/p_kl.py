"""P-KL: the KL divergence from the teacher to the student projected into the teacher's vocabulary.

Per chunk ``KL(p_T || W^T p_S)`` (X-Token, arXiv 2605.21699) over the whole teacher vocabulary and the column REST,
which holds the student's mass on empty rows of W and the teacher's mass on tokens that W does not reach.  With a top-k
it is over the k tokens that the teacher finds most probable, and REST holds all others as well.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from nemo_xtoken.kernels.tile_kernels import TileKernels
from nemo_xtoken.losses.base import ChunkDivergence, ChunkLossConfig, Comparison, LossForm
from nemo_xtoken.losses.chunks import MERGES
from nemo_xtoken.losses.directions import direction_named
from nemo_xtoken.losses.options import DivergenceOptions
from nemo_xtoken.losses.pair import VocabularyPair
from nemo_xtoken.losses.top_k import TopKClasses
from nemo_xtoken.parallel.column_pairs import ColumnPairs
from nemo_xtoken.parallel.exchange import Projection, VocabularyExchange
from nemo_xtoken.parallel.softmax import all_reduce_sum
from nemo_xtoken.parallel.vocabulary_shard import VocabularyShard

__all__ = ["ProjectedKL"]


class ProjectedKL(ChunkDivergence):
    """The divergence of ``q = W^T p_S`` from ``p_T`` and its closed-form derivative.

    With g the derivative with respect to q, that with respect to ``p_S`` is ``W g``.  For the forward KL that is
    ``-r``, ``r = W (p_T / q)``, and through the softmax ``p_S * (sum_s p_S r - r)`` for the logits.

    Where one side has no way to put mass on REST the divergence to be bounded compares what both can say:

    - forward, no row of W is empty: the teacher is conditioned on the tokens that W reaches, weighted by their mass M:
      ``M * KL(p_T / M || q)``, which has the same gradient and is finite.
    - reverse, W reaches every teacher token: the student is conditioned on the rows that are not empty, of mass N:
      ``KL(q / N || p_T)``.  (Weighting it by N would pay the student for leaving them.)

    A top-k puts classes of this comparison together, on both sides: the result is a divergence again, never above the
    whole one and equal to it from ``k = V_T`` up.  Which tokens are kept depends on the teacher alone.

    Args:
        exchange: W.
        direction: ``"forward"``, ``KL(p_T || q)``, the paper's; ``"reverse"``, ``KL(q || p_T)``; ``"js"``, the
            Jensen-Shannon divergence.
        top_k: teacher tokens that stay classes of their own, of those that W reaches; per chunk the most probable (of
            equal ones the smaller id); None: all.
    """

    options: ClassVar[Mapping[str, Any]] = {"direction": "forward", "top_k": None}
    needs_matrix = True
    learns_matrix = True
    suits = frozenset({"outside"})
    forms = (
        *(LossForm(rule, ChunkLossConfig(merge)) for rule in ("paper", "prefix") for merge in MERGES),
        *(LossForm("prefix", options=DivergenceOptions(direction=name)) for name in ("reverse", "js")),
    )
    metric_names: tuple[str, ...] = ("teacher_unreached", "student_empty", "exchange_bytes")

    def __init__(self, exchange: VocabularyExchange, direction: str = "forward", top_k: int | None = None) -> None:
        super().__init__()
        self.exchange = exchange
        self.ownership = exchange.ownership
        self.direction = direction_named(direction)
        self.teacher_conditioned = self.direction.bounded_by == "student" and not exchange.has_rest
        self.student_conditioned = self.direction.bounded_by == "teacher" and not exchange.has_unreached
        self.classes = None
        if top_k is not None and top_k < exchange.reached_tokens:
            self.classes = TopKClasses(top_k, exchange.ownership, exchange.reached)
        self._pairs = None
        if exchange.kernels.pairs is not None and self.classes is None and not self.student_conditioned:
            rest = "conditioned" if self.teacher_conditioned else "compared"
            self._pairs = ColumnPairs(self.direction.name, rest, exchange.kernels.pairs, exchange)

    @classmethod
    def of(
        cls, pair: VocabularyPair, student: VocabularyShard, options: Mapping[str, Any], kernels: TileKernels
    ) -> "ProjectedKL":
        """Over the pair's W."""
        return cls(VocabularyExchange.co_sharded(pair.matrix, student, kernels), **options)

    @classmethod
    def linear_in_teacher(cls, options: Mapping[str, Any]) -> bool:
        """Its gradient is ``-p_T / q`` by class, unless the direction or a top-k depends on the teacher otherwise."""
        return options["direction"] == "forward" and options["top_k"] is None

    def column_pairs(self) -> ColumnPairs | None:
        """None with a top-k and where the student is conditioned."""
        return self._pairs

    def start(self, p_student: Tensor, entry_weights: Tensor | None = None) -> Projection:
        """``W^T p_S`` under way; see ``VocabularyExchange.start``."""
        return self.exchange.start(p_student, entry_weights)

    def finish(self, started: Projection, p_teacher: Tensor, coefficients: Tensor | None) -> Comparison:
        """The divergence, the teacher's unreached mass, the student's mass on empty rows, the bytes a rank sends.

        Args:
            p_teacher: ``[k, V_T/tp]``, this rank's columns; overwritten.

        Collectives: one all-reduce of 4k values; before it where the student is conditioned one of k, with a top-k
        those of ``top_k_mask``; with a gradient those of ``Projection.pull``.
        """
        q, empty = started.finish()
        mass = None
        if self.student_conditioned:
            mass = _sum_of_rows(q, self.exchange)
            q = q / mass
        kept, local, slope = self._compare(p_teacher, q, coefficients)
        total, unreached, p_rest, q_rest = all_reduce_sum(local, self.exchange.group)
        if not self.teacher_conditioned:
            p_rest = p_rest + unreached
        if not self.student_conditioned:
            q_rest = q_rest + empty
        rest_term, rest_slope = self.direction.compare(p_rest, q_rest.clone(), coefficients)
        divergence = total + rest_term
        if self.teacher_conditioned:
            reached = (1 - unreached).clamp_min(0)
            divergence = divergence - torch.xlogy(reached, reached)
        sent = torch.full_like(empty, self.exchange.bytes_a_chunk(empty.itemsize))
        values = torch.stack([divergence, unreached, empty, sent])
        if slope is None or rest_slope is None or coefficients is None:
            return Comparison(values)
        if kept is not None:
            slope = torch.where(kept, slope, rest_slope.unsqueeze(1))
        if mass is not None:
            # with u = q / N, the derivative of KL(u || p_T) with respect to q is (log(u / p_T) - KL(u || p_T)) / N;
            # N has nothing of the empty rows
            least = torch.finfo(q.dtype).tiny / torch.finfo(q.dtype).eps
            slope = slope.sub_(coefficients.unsqueeze(1) * (1 + divergence.unsqueeze(1))).div_(mass.clamp_min(least))
            rest_slope = torch.zeros_like(empty)
        return Comparison(values, *started.pull(slope, rest_slope))

    def _compare(
        self, p: Tensor, q: Tensor, coefficients: Tensor | None
    ) -> tuple[Tensor | None, Tensor, Tensor | None]:
        """This rank's classes, REST not among them.

        Returns:
            ``(bool [k, V_T/tp], the tokens that are classes of their own, None: all that W reaches;
            [4, k], this rank's part of the divergence, of the teacher's unreached mass, and of what teacher and student
            have on reached tokens that are not classes; the derivative with respect to q, times the coefficients)``.
        """
        kernels, reached = self.exchange.kernels, self.exchange.reached
        if self.classes is None:
            total, unreached, slope = kernels.compare(self.direction, p, q, reached, coefficients)
            assert unreached is not None
            return None, torch.stack([total, unreached, *q.new_zeros((2, q.shape[0]))]), slope
        unreached = torch.mv(p, (~reached).to(q.dtype))
        kept, tails = self.classes.fold(p.mul_(reached), q)
        total, _, slope = kernels.compare(self.direction, p, q, None, coefficients)
        return kept, torch.stack([total, unreached, *tails]), slope


def _sum_of_rows(q: Tensor, exchange: VocabularyExchange) -> Tensor:
    """``[k, 1]``, over all ranks; summed rather than 1 - REST, of which nothing is left when it is small."""
    limits = torch.finfo(q.dtype)
    return all_reduce_sum(q.sum(1, keepdim=True), exchange.group).clamp_min_(limits.tiny * limits.eps)

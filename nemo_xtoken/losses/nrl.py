"""The losses of NVIDIA's NeMo-RL as they are there, for comparison: P-KL on one set of tokens, GOLD and H-KL.

They are what a run there minimises, chunk by chunk, to the precision of floating point, in any tensor-parallel layout.
How they differ from ours of the same names:

- P-KL looks at one set of k teacher tokens for the whole micro-batch, those with the largest logits anywhere in it.
  The teacher is renormalised within it at every position, and the logarithms are averaged over the chunk; the student
  is averaged, then renormalised.  The teacher's average does not sum to 1: the value can be negative, and is not 0
  where the two agree in a chunk of several tokens.
- GOLD and H-KL average logarithms on both sides, and compare no more of the sorted remainders than the shorter has.
- A pair of H-KL needs a weight of 0.6.

A chunk that holds the first token of a text on a side is scored without that token, if there are others.

``direction="reverse"`` is their ``reverse_kl``: the two sides of the KL change places, the merges stay.

Only the chunks' sum is theirs.  It is divided by the chunks of the global batch, in every layout; there the divisor
counts tensor-parallel ranks too, and every micro-batch divides by its own.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from nemo_xtoken.errors import InputError
from nemo_xtoken.kernels.reference import TORCH
from nemo_xtoken.kernels.tile_kernels import TileKernels, smallest
from nemo_xtoken.losses.base import ChunkDivergence, Comparison, LossForm, ModelOutput
from nemo_xtoken.losses.gold import Gold
from nemo_xtoken.losses.pair import VocabularyPair
from nemo_xtoken.losses.partial_kl import PublishedPartialKL
from nemo_xtoken.losses.sorted_l1 import SortedL1
from nemo_xtoken.parallel.common_set import CommonSet
from nemo_xtoken.parallel.exchange import Projection, VocabularyExchange
from nemo_xtoken.parallel.head import accumulation_dtype
from nemo_xtoken.parallel.softmax import all_reduce_sum
from nemo_xtoken.parallel.top_k_over_ranks import top_k_mask
from nemo_xtoken.parallel.vocabulary_shard import VocabularyShard
from nemo_xtoken.projection.matrix import ProjectionMatrix

__all__ = ["NRL_TOP_K", "NrlGold", "NrlHybridKL", "NrlProjectedKL", "nrl_exact_pairs", "nrl_relaxed_pairs", "row_sums"]

#: The public configuration's, of P-KL's set and of the sorted remainders.
NRL_TOP_K = 8192
#: Added where the student is renormalised, and in its logarithm.
EPSILON = 1e-10
#: The least weight of a pair of H-KL.
LEAST_WEIGHT = 0.6
#: Teacher positions whose logits are made at a time in the search for the set.
POSITIONS = 256


class NrlProjectedKL(ChunkDivergence):
    """P-KL on the micro-batch's k tokens with the largest logits; the set is found before the tiles.

    Args:
        exchange: W.
        top_k: k; ties go to the smaller id.
        scale: ``[V_S/tp]``, what each of this rank's rows sums to, where that is not 1: `row_sums`.
        direction: ``"forward"`` or ``"reverse"``.
    """

    options: ClassVar[Mapping[str, Any]] = {"top_k": NRL_TOP_K, "direction": "forward"}
    needs_matrix = True
    context_parallel = False
    takes_beginnings = True
    suits = frozenset({"outside"})
    forms = (LossForm("paper"),)
    merges = ("mean", "geometric_mean")
    metric_names: tuple[str, ...] = ("student_left_out", "exchange_bytes")
    tokens: Tensor
    scale: Tensor | None

    def __init__(
        self,
        exchange: VocabularyExchange,
        top_k: int = NRL_TOP_K,
        scale: Tensor | None = None,
        direction: str = "forward",
    ) -> None:
        super().__init__()
        self.direction = direction
        self.register_buffer("scale", scale, persistent=False)
        self.exchange, self.ownership = exchange, exchange.ownership
        self.top_k = min(top_k, exchange.teacher.size)
        self.register_buffer("tokens", torch.from_numpy(self.ownership.local_tokens), persistent=False)

    @classmethod
    def of(
        cls, pair: VocabularyPair, student: VocabularyShard, options: Mapping[str, Any], kernels: TileKernels
    ) -> "NrlProjectedKL":
        """Over the pair's W."""
        exchange = VocabularyExchange.co_sharded(pair.matrix, student, kernels)
        return cls(exchange, **options, scale=row_sums(pair.matrix, student))

    @classmethod
    def check(cls, pair: VocabularyPair, options: Mapping[str, Any]) -> None:
        """
        Raises:
            InputError: a direction that theirs does not have.
        """
        _check_direction(options["direction"])

    def for_batch(self, teacher: ModelOutput) -> "ChunkDivergence":
        """The divergence on this micro-batch's set.

        Every position of the teacher counts, padding too.  Its logits are computed a second time: that is the
        price of the set.  Collectives: those of ``top_k_mask`` for one row.
        """
        shard = self.ownership.shard
        here = slice(0, shard.valid_rows)
        dtype = accumulation_dtype(teacher.hidden.dtype)
        largest = teacher.hidden.new_full((shard.valid_rows,), float("-inf"), dtype=dtype)
        for hidden in teacher.hidden.detach().split(POSITIONS) if teacher.hidden.shape[0] else ():
            largest = torch.maximum(largest, teacher.head.logits(hidden)[:, here].amax(0))
        kept = torch.zeros(shard.rows, dtype=torch.bool, device=largest.device)
        kept[here] = top_k_mask(largest.unsqueeze(0), self.tokens[here], self.top_k, shard.group)[0]
        return _OnSet(self.exchange, kept, self.scale, self.direction)


class _OnSet(ChunkDivergence):
    """``sum_t u (log u - log s)`` over a set of teacher tokens.

    u is the geometric mean of the teacher within the set, ``s = q / (q(set) + eps) + eps`` the student's, and q its
    mean projected distribution.  The derivative with respect to q is, on the set, ``(v - u / s) / (q(set) + eps)`` with
    ``v = sum_t (u / s) q / (q(set) + eps)``.  In reverse the value is ``sum_t s (log s - log u)`` and the derivative
    ``(a - sum_t a q / (q(set) + eps)) / (q(set) + eps)`` with ``a = log s - log u + 1``.

    Args:
        exchange: W.
        kept: bool ``[V_T/tp]``, the set, this rank's columns.
        scale: as `NrlProjectedKL` has it; q is then not a distribution, as there.
        direction: as there.
    """

    metric_names = NrlProjectedKL.metric_names
    merges = NrlProjectedKL.merges

    def __init__(
        self, exchange: VocabularyExchange, kept: Tensor, scale: Tensor | None = None, direction: str = "forward"
    ) -> None:
        super().__init__()
        self.reverse = direction == "reverse"
        self.exchange, self.ownership, self.kept, self.scale = exchange, exchange.ownership, kept, scale

    def start(self, p_student: Tensor, entry_weights: Tensor | None = None) -> Projection:
        """``W^T p_S`` under way; see ``VocabularyExchange.start``."""
        return self.exchange.start(p_student if self.scale is None else p_student * self.scale, entry_weights)

    def teacher_rows(self, p: Tensor) -> Tensor:
        """Renormalised within the set.  Collectives: one all-reduce of a column."""
        p = p * self.kept
        inside = all_reduce_sum(p.sum(1, keepdim=True), self.exchange.group)
        return p.div_(inside.clamp_min_(torch.finfo(p.dtype).tiny))

    def finish(self, started: Projection, p_teacher: Tensor, coefficients: Tensor | None) -> Comparison:
        """The loss, the student's mass outside the set, the bytes a rank sends.

        Args:
            p_teacher: ``[k, V_T/tp]``, this rank's columns of u, 0 outside the set.

        Collectives: an all-reduce of k values and one of 2k; with a gradient those of ``Projection.pull``.
        """
        q, rest = started.finish()
        group = self.exchange.group
        q.mul_(self.kept)
        inside = all_reduce_sum(q.sum(1), group)
        size = (inside + EPSILON).unsqueeze(1)
        share = q / size
        s = share + EPSILON
        if self.reverse:
            by_share = s.log() - p_teacher.clamp_min(smallest(p_teacher)).log()
            terms = (s * by_share * self.kept).sum(1)
            by_share += 1
        else:
            by_share = -(p_teacher / s)
            terms = torch.xlogy(p_teacher, -by_share).sum(1)
        value, mean = all_reduce_sum(torch.stack([terms, (by_share * share).sum(1)]), group)
        sent = torch.full_like(rest, self.exchange.bytes_a_chunk(rest.itemsize))
        values = torch.stack([value, 1 - inside, sent])
        if coefficients is None:
            return Comparison(values)
        slope = (by_share - mean.unsqueeze(1)).mul_(coefficients.unsqueeze(1) / size).mul_(self.kept)
        gradient, by_entry = started.pull(slope, torch.zeros_like(rest))
        return Comparison(values, gradient if self.scale is None else gradient * self.scale, by_entry)


class _LargestAlone(SortedL1):
    """The L1 distance of the largest values; what lies beyond the cap is not compared."""

    beyond_cap = False


class NrlGold(Gold):
    """GOLD: the published partial KL and the L1 distance of the largest of the remainders.

    It takes ``exp`` of the mean log-probability over a chunk for its probability.

    Args:
        common: the pairs, ``nrl_exact_pairs``: there they are read from W.
        student: layout of its output layer.
        cap: probabilities of a remainder that are compared, at most; never more than the smaller remainder has.
        kernels: what goes over the tiles.
        direction: of the partial KL, ``"forward"`` or ``"reverse"``.
    """

    options: ClassVar[Mapping[str, Any]] = {"sorted_cap": NRL_TOP_K, "direction": "forward"}
    needs_matrix = True
    takes_beginnings = True
    forms = (LossForm("paper"),)
    merges = ("geometric_mean", "geometric_mean")
    remainder_type = _LargestAlone

    def __init__(
        self,
        common: CommonSet,
        student: VocabularyShard,
        cap: int = NRL_TOP_K,
        kernels: TileKernels = TORCH,
        direction: str = "forward",
    ) -> None:
        shorter = min(int(outside.sum()) for outside in (common.student_outside, common.teacher_outside))
        super().__init__(common, student, "paper", min(cap, shorter), kernels=kernels)
        self.common = PublishedPartialKL(common.exchange(student, kernels), direction)
        self._pairs = None  # means of logarithms are compared by probabilities

    @classmethod
    def of(
        cls, pair: VocabularyPair, student: VocabularyShard, options: Mapping[str, Any], kernels: TileKernels
    ) -> "NrlGold":
        """Over the pairs that the loss reads from the pair's W."""
        return cls(cls.pairs_of(pair.matrix), student, options["sorted_cap"], kernels, options["direction"])

    @classmethod
    def check(cls, pair: VocabularyPair, options: Mapping[str, Any]) -> None:
        """
        Raises:
            InputError: a direction that theirs does not have.
        """
        _check_direction(options["direction"])

    @classmethod
    def common_sets(cls, pair: VocabularyPair) -> tuple[CommonSet, ...]:
        """Its own."""
        return (cls.pairs_of(pair.matrix),)

    @staticmethod
    def pairs_of(matrix: ProjectionMatrix) -> CommonSet:
        """The pairs."""
        return nrl_exact_pairs(matrix)


class NrlHybridKL(NrlGold):
    """H-KL: the same on wider pairs, ``nrl_relaxed_pairs``."""

    @staticmethod
    def pairs_of(matrix: ProjectionMatrix) -> CommonSet:
        """The pairs."""
        return nrl_relaxed_pairs(matrix)


def _check_direction(direction: str) -> None:
    if direction not in ("forward", "reverse"):
        raise InputError(
            f"direction={direction!r} with a loss of NeMo-RL's",
            "forward, or reverse: theirs has no other",
            "choose one",
        )


def row_sums(matrix: ProjectionMatrix, student: VocabularyShard) -> Tensor | None:
    """float32 ``[V_S/tp]``: what the rows of this rank sum to in a file of NeMo-RL's, whose loss does not divide by it.

    Returns:
        None where the rows are those of W.
    """
    if matrix.raw is None:
        return None
    sums = np.where(matrix.raw.ids >= 0, matrix.raw.weights, 0).sum(axis=1, dtype=np.float64)
    mine = sums[student.start : student.start + student.valid_rows]
    out = np.ones(student.rows, dtype=np.float32)
    out[: len(mine)] = np.where(mine > 0, mine, 1)
    return torch.from_numpy(out)


def nrl_exact_pairs(matrix: ProjectionMatrix) -> CommonSet:
    """The pairs of GOLD there: rows of W whose one entry has weight 1.

    Of several rows with the same entry the one of the smallest student id counts.  Meant for a W of the paper's rule:
    one whose rows all have a single entry, as those of the rule ``prefix``, does not tell which are exact.  In a file
    of theirs these are rows whose heaviest slot weighs 1 and whose second slot is empty, whatever the others hold.
    """
    slots = matrix.raw or matrix
    heaviest = slots.weights.argmax(axis=1)
    every = np.arange(matrix.student_size)
    if matrix.raw is not None:
        alone = slots.ids[:, 1] < 0 if slots.ids.shape[1] > 1 else np.ones(len(every), dtype=bool)
    else:
        alone = (slots.ids >= 0).sum(axis=1) == 1
    rows = np.flatnonzero(alone & (slots.weights[every, heaviest] == 1) & (slots.ids[every, heaviest] >= 0))
    targets, first = np.unique(slots.ids[rows, heaviest[rows]], return_index=True)
    order = np.argsort(first)
    student, teacher = rows[first[order]].astype(np.int64), targets[order].astype(np.int64)
    return CommonSet(student, teacher, matrix.student_size, matrix.teacher_size)


def nrl_relaxed_pairs(matrix: ProjectionMatrix) -> CommonSet:
    """The pairs of H-KL there: each row's heaviest entry (in a file of theirs, slot), if it weighs 0.6 or more.

    Of several student tokens that bring the same teacher token the one with the larger weight wins, then the one with
    the smaller id.
    """
    slots = matrix.raw or matrix
    weights = np.where(slots.ids >= 0, slots.weights, 0)
    heaviest = weights.argmax(axis=1)
    every = np.arange(matrix.student_size)
    weight, target = weights[every, heaviest], slots.ids[every, heaviest].astype(np.int64)
    rows = np.flatnonzero(weight >= np.float32(LEAST_WEIGHT))
    rows = rows[np.lexsort((rows, -weight[rows]))]
    _, winners = np.unique(target[rows], return_index=True)
    student = np.sort(rows[winners])
    return CommonSet(student, target[student], matrix.student_size, matrix.teacher_size)

"""ULD, and what GOLD takes of it: the L1 distance of two distributions sorted in descending order, a baseline.

``sum_i |a_i - b_i|`` with a, b the sorted probabilities of the student and the teacher, the shorter padded with zeros.
It compares how mass is spread and knows nothing of which token has it.  ULD (arXiv 2402.12030) takes it over the whole
vocabularies, GOLD over what is outside the common set.

Every rank sorts its own columns and shares its largest ``cap``, so the ``cap`` largest of all are known exactly to all.
Beyond the cap only the sides' masses A and B are compared, by ``|A - B|``: that is never more than the exact tail, less
by at most ``2 min(A, B)``, and exact where one side's tail lies above the other's throughout.  With a cap of the number
of tokens and up there is no tail, and the result is exact.  It does not depend on the number of ranks.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

from nemo_xtoken.errors import InputError
from nemo_xtoken.kernels.pair_kernels import Beside, Largest, LargestSlopes, PairKernels, PairRows, TileLogits
from nemo_xtoken.kernels.reference import TORCH
from nemo_xtoken.kernels.tile_kernels import TileKernels
from nemo_xtoken.losses.base import ChunkDivergence, Comparison
from nemo_xtoken.losses.pair import VocabularyPair
from nemo_xtoken.losses.top_k import ComparesLargest, LargestColumns, first_of_rank, ranked_over_ranks
from nemo_xtoken.parallel.column_pairs import ColumnPairs
from nemo_xtoken.parallel.ownership import Ownership
from nemo_xtoken.parallel.softmax import all_reduce_sum
from nemo_xtoken.parallel.vocabulary_shard import VocabularyShard, group_rank, group_size

__all__ = ["DEFAULT_CAP", "SortedL1", "UniversalLogitDistance"]

#: Values compared one by one.  What a language model leaves beyond is a percent or so of its mass.
DEFAULT_CAP = 4096


class _SortedSide(torch.nn.Module):
    """The probabilities of one side that take part, and their order over all ranks."""

    columns: Tensor
    mask: Tensor

    def __init__(self, taking_part: np.ndarray, shard: VocabularyShard, cap: int) -> None:
        super().__init__()
        if taking_part.shape != (shard.size,):
            raise InputError(
                f"a mask of {list(taking_part.shape)} tokens for a vocabulary of {shard.size}",
                "one value a token",
                "make it from the vocabulary of this model",
            )
        mine = taking_part[shard.start : shard.start + shard.valid_rows]
        self.register_buffer("columns", torch.from_numpy(np.flatnonzero(mine)), persistent=False)
        mask = np.zeros(shard.rows, dtype=np.uint8)
        mask[: len(mine)] = mine
        self.register_buffer("mask", torch.from_numpy(mask), persistent=False)
        self.taking_part = int(mine.sum())
        by_rank = np.zeros(shard.padded, dtype=bool)
        by_rank[: shard.size] = taking_part
        self.group, self.cap = shard.group, cap
        #: Values that each rank shares: all ranks must share as many, so it follows from the whole mask.
        self.width = min(cap, int(by_rank.reshape(group_size(shard.group), -1).sum(axis=1).max(initial=0)))
        self.whole = int(taking_part.sum()) <= cap

    def largest(self, kernels: PairKernels, side: TileLogits, first: Tensor, temperature: float) -> Largest:
        """What :meth:`sort` keeps of the rows ``first [k]`` of logits, in order of the columns."""
        keep = min(self.width, self.taking_part)
        return kernels.largest(side, first, self.mask, keep, self.width, temperature, self.taking_part > keep)

    def sort(self, p: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Orders this side's probabilities; of equal ones the smaller id comes first, whatever the layout.

        Args:
            p: ``[k, V/tp]``, this rank's columns.

        Returns:
            ``(largest [k, cap], in descending order and padded with zeros, equal on all ranks;
            tail [k], this rank's mass beyond them;
            kept [k, width'], which of this rank's ``columns`` may be among them;
            place [k, width'], of each of these in that order, ``cap`` in the tail)``.
            Collectives: one all-gather of ``[k, width]``.
        """
        values = p.index_select(1, self.columns)
        kept = _largest(values, min(self.width, values.shape[1]))
        sent = values.gather(1, kept)
        sent = torch.nn.functional.pad(sent, (0, self.width - sent.shape[1]), value=-1.0)
        k, ranks = values.shape[0], group_size(self.group)
        shared = sent
        if ranks > 1 and self.width > 0:
            gathered = sent.new_empty((ranks, k, self.width))
            dist.all_gather_into_tensor(gathered.view(-1), sent.reshape(-1), group=self.group)
            shared = gathered.transpose(0, 1).reshape(k, ranks * self.width)
        # ids increase with the rank, so that a stable sort keeps equal values in the order of their ids
        merged, source = torch.sort(shared, dim=1, descending=True, stable=True)
        largest = merged[:, : self.cap].clamp_min(0)
        largest = torch.nn.functional.pad(largest, (0, self.cap - largest.shape[1]))
        at = torch.empty_like(source).scatter_(1, source, torch.arange(source.shape[1], device=p.device).expand(k, -1))
        first = group_rank(self.group) * self.width
        place = at[:, first : first + kept.shape[1]].clamp_max(self.cap)
        tail = values.scatter_(1, kept, sent[:, : kept.shape[1]].where(place == self.cap, 0)).sum(1)
        return largest, tail, kept, place


def _largest(values: Tensor, count: int) -> Tensor:
    """int64 ``[k, count]``, where the largest of each row are, in descending order, of equal ones the first first.

    Bits of a float32 that is not negative are in its order; with the column behind them no two are equal, so that the
    ``count`` largest of 128k columns are found without sorting the rest.  In float64, which checks of the mathematics
    use, there is no room for the column.

    Args:
        values: ``[k, n]``, not negative.
    """
    if values.dtype != torch.float32:
        return torch.sort(values, dim=1, descending=True, stable=True).indices[:, :count]
    key = values.view(torch.int32).to(torch.int64).bitwise_left_shift_(32)
    key -= torch.arange(values.shape[1], device=values.device)
    return torch.topk(key, count, dim=1).indices


class SortedL1(ChunkDivergence, ComparesLargest):
    """The distance and its subgradient: the sign of the sorted difference, at the token that stands there.

    Args:
        student_tokens: bool ``[V_S]``, the tokens that take part.
        teacher_tokens: bool ``[V_T]``, the same for the teacher.
        student: layout of its output layer.
        ownership: of the teacher's tokens.
        cap: values of a side that are compared one by one, see above.
        kernels: what goes over the tiles.

    Raises:
        InputError: a cap below 1, or masks of another size than the vocabularies.
    """

    metric_names: tuple[str, ...] = ("sorted_l1_missing",)
    #: Whether the masses beyond the cap are compared; if not, the cap may be 0.
    beyond_cap: ClassVar[bool] = True

    def __init__(
        self,
        student_tokens: np.ndarray,
        teacher_tokens: np.ndarray,
        student: VocabularyShard,
        ownership: Ownership,
        cap: int = DEFAULT_CAP,
        kernels: TileKernels = TORCH,
    ) -> None:
        super().__init__()
        if cap < 1 and self.beyond_cap:
            raise InputError(f"sorted_cap={cap}", "at least 1", f"{DEFAULT_CAP} is the default")
        cap = min(cap, max(1, int(student_tokens.sum()), int(teacher_tokens.sum())))
        self.ownership = ownership
        self.student = _SortedSide(student_tokens, student, cap)
        self.teacher = _SortedSide(_by_owner(teacher_tokens, ownership), ownership.shard, cap)
        self.group = student.group
        self.exact = self.student.whole and self.teacher.whole
        self._pairs = None
        if kernels.pairs is not None:
            self._pairs = LargestColumns(self.student.columns, True, kernels.pairs, student)

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
        """The distance from both sides' logits; what is not among the largest has the slope of REST's columns.

        Collectives: those of :meth:`start` and :meth:`finish`.
        """
        parts, first = (self.student, self.teacher), (rows[0].first, rows[1].first)
        found = [
            part.largest(kernels, side, at, temperature) for part, side, at in zip(parts, sides, first, strict=True)
        ]
        (a, order), (b, order_t) = (ranked_over_ranks(x.values, self.group) for x in found)
        room, own, left = self.student.width, first_of_rank(self.student.width, self.group), None
        cap = self.student.cap
        if not self.exact:
            left = found[0].left, found[1].left
            if group_size(self.group) > 1:
                masses = torch.stack(left)  # and what a rank has found, but all together leave out
                for mass, x, where, side, at in zip(masses, (a, b), (order, order_t), sides, first, strict=True):
                    mass += _own_beyond(x, where, side, at, cap, temperature, self.group)
                masses = all_reduce_sum(masses, self.group)
                left = masses[0], masses[1]
        terms, slopes = kernels.sorted_distance(
            sides, first, (a, b), order, left, cap, room, own, temperature, self.beyond_cap
        )
        return Beside(LargestSlopes(found[0], slopes), terms=terms, metrics=len(SortedL1.metric_names))

    def start(self, p_student: Tensor, entry_weights: Tensor | None = None) -> tuple[Tensor, Any]:
        """The student's side in order.  Collectives: an all-gather of ``[k, cap]``."""
        return p_student, self.student.sort(p_student)

    def finish(self, started: tuple[Tensor, Any], p_teacher: Tensor, coefficients: Tensor | None) -> Comparison:
        """The distance and, as metric, the most by which an exact one can be larger.

        Its derivative is +1 where a token has more than the teacher's of its rank, -1 where less, 0 where equal; tokens
        beyond the cap share the sign of their masses' difference.

        Args:
            p_teacher: ``[k, V_T/tp]``, this rank's columns.

        Collectives: an all-gather of ``[k, cap]`` and, where the cap cuts, an all-reduce of 2k values.
        """
        p_student, (a, tail_a, kept, place) = started
        b, tail_b, *_ = self.teacher.sort(p_teacher)
        difference = a - b
        distance = difference.abs().sum(1)
        tails = torch.stack([tail_a, tail_b])
        missing = beyond = torch.zeros_like(distance)
        if not self.exact:
            tails = all_reduce_sum(tails, self.group)
            if self.beyond_cap:
                beyond = tails[0] - tails[1]
            distance, missing = distance + beyond.abs(), tails.sum(0) - beyond.abs()
        values = torch.stack([distance, missing])
        if coefficients is None:
            return Comparison(values)
        signs = torch.cat([difference, beyond.unsqueeze(1)], dim=1).sign_().mul_(coefficients[:, None])
        columns = self.student.columns
        gradient = torch.zeros_like(p_student).index_copy_(1, columns, signs[:, -1:].expand(-1, columns.numel()))
        return Comparison(values, gradient.scatter_(1, columns[kept], signs.gather(1, place)))


class UniversalLogitDistance(SortedL1):
    """Every token takes part; which token has a probability does not matter.

    Args:
        student: layout of its output layer.
        teacher_size: tokens of the teacher, which is laid out evenly.
        cap: values of a side that are compared one by one (see ``sorted_l1``).
        kernels: what goes over the tiles.
    """

    options: ClassVar[Mapping[str, Any]] = {"sorted_cap": DEFAULT_CAP}

    def __init__(
        self, student: VocabularyShard, teacher_size: int, cap: int = DEFAULT_CAP, kernels: TileKernels = TORCH
    ) -> None:
        every = np.ones(student.size, dtype=bool), np.ones(teacher_size, dtype=bool)
        super().__init__(*every, student, Ownership.even(teacher_size, student.group), cap, kernels)

    @classmethod
    def of(
        cls, pair: VocabularyPair, student: VocabularyShard, options: Mapping[str, Any], kernels: TileKernels
    ) -> "UniversalLogitDistance":
        """Over the whole vocabularies."""
        return cls(student, pair.teacher.size, options["sorted_cap"], kernels)


def _own_beyond(
    ranked: Tensor,
    order: Tensor,
    side: TileLogits,
    first: Tensor,
    cap: int,
    temperature: float,
    group: ProcessGroup | None,
) -> Tensor:
    """``[k]``, the probability of those of this rank's values that are not among the ``cap`` largest of all ranks."""
    width = ranked.shape[1] // group_size(group)
    entry = order[:, cap:] - first_of_rank(width, group)
    own = (entry >= 0) & (entry < width)
    p = torch.exp(ranked[:, cap:] / temperature - side.norms[first].unsqueeze(1))
    return torch.where(own, p, 0).sum(1)


def _by_owner(tokens: np.ndarray, ownership: Ownership) -> np.ndarray:
    return tokens[ownership.order] if tokens.shape == ownership.order.shape else tokens

"""The most probable tokens of a side: as the only classes beside REST, and as what kernels find in a row of logits.

`TopKClasses` puts classes together: the teacher's most probable tokens stay, all others are one class, REST, on both
sides.  A divergence of distributions over such classes is one again: not negative, 0 where they agree, never above the
whole one, and the whole one when no token is left out.  A top-k without REST is none of that.
"""

from abc import ABC, abstractmethod
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

from nemo_xtoken.kernels.pair_kernels import (
    NO_COLUMNS,
    STUDENT_LARGEST,
    STUDENT_REST,
    Beside,
    PairKernels,
    PairRows,
    TileLogits,
)
from nemo_xtoken.losses.base import ChunkDivergence, LaterTerms
from nemo_xtoken.losses.chunks import ScoredRows
from nemo_xtoken.losses.slots import ComparesSlots, FirstRows
from nemo_xtoken.parallel.column_pairs import ColumnPairs
from nemo_xtoken.parallel.ownership import Ownership
from nemo_xtoken.parallel.softmax import all_reduce_sum
from nemo_xtoken.parallel.top_k_over_ranks import top_k_mask
from nemo_xtoken.parallel.vocabulary_shard import VocabularyShard, group_rank, group_size

__all__ = [
    "ComparesLargest",
    "LargestColumns",
    "TopKClasses",
    "compared",
    "first_of_rank",
    "paired_rows",
    "ranked_over_ranks",
    "side_by_side",
]


class TopKClasses(torch.nn.Module):
    """Chooses, per chunk, the k tokens that the teacher finds most probable; of equal ones the smaller id.

    Args:
        k: tokens that stay classes of their own.
        ownership: of the teacher's tokens.
        candidates: bool ``[V_T/tp]``, of this rank's columns those to choose from; over all ranks more than k.
    """

    tokens: Tensor
    candidates: Tensor

    def __init__(self, k: int, ownership: Ownership, candidates: Tensor) -> None:
        super().__init__()
        self.k, self.group = k, ownership.shard.group
        self.register_buffer("tokens", torch.from_numpy(ownership.local_tokens), persistent=False)
        self.register_buffer("candidates", candidates.clone(), persistent=False)

    def fold(self, p: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
        """
        Args:
            p, q: ``[n, V_T/tp]``, the teacher's and the student's, this rank's columns; 0 outside the classes after.

        Returns:
            ``(bool [n, V_T/tp], the classes; [2, n], this rank's part of what p and q had outside them)``.
            Collectives: those of ``top_k_mask``.
        """
        kept = top_k_mask(torch.where(self.candidates, p, -1), self.tokens, self.k, self.group)
        tails = torch.stack([torch.where(kept, 0, x).sum(1) for x in (p, q)])
        p.mul_(kept)
        q.mul_(kept)
        return kept, tails


class ComparesLargest(ABC):
    """A divergence that looks at the largest of a row, beside its ``column_pairs`` or in their place."""

    @abstractmethod
    def compare_largest(
        self,
        kernels: PairKernels,
        sides: tuple[TileLogits, TileLogits],
        rows: tuple[PairRows, PairRows],
        temperature: float,
    ) -> Beside:
        """What is added to the columns."""


def paired_rows(
    divergence: ChunkDivergence, plan: Any, scored: tuple[ScoredRows, ScoredRows]
) -> tuple[PairRows, PairRows]:
    """The chunks of a tile whose first rows are compared by columns.

    Args:
        plan: the divergence's of the tile.
        scored: the student's and the teacher's rows.
    """
    sides: tuple[FirstRows, FirstRows] = scored
    if isinstance(divergence, ComparesSlots):
        sides = divergence.by_columns(plan, sides)
    student, teacher = (PairRows(side.first, side.tokens, side.chunk) for side in sides)
    return student, teacher


def compared(
    divergence: ChunkDivergence,
    pairs: ColumnPairs,
    kernels: PairKernels,
    sides: tuple[TileLogits, TileLogits],
    rows: tuple[PairRows, PairRows],
    tables: tuple[Tensor, Tensor | None] | None,
    temperature: float,
    plan: Any,
    weight: Tensor | None,
) -> tuple[Tensor | None, Tensor | None, Beside, LaterTerms | None]:
    """A tile's columns, and what there is beside them.

    Args:
        pairs: the divergence's.
        rows: of :func:`paired_rows`.
        tables: of :meth:`ColumnPairs.finish`; None: no chunk is compared by columns.
        plan: the divergence's of the tile.
        weight: scalar, of the divergence in the objective; None: no gradient is wanted.

    Returns:
        ``([4, k] over all ranks and [k, d]: of PairKernels.compare, what the divergence adds to them, and by itself)``.
    """
    beside, later, sums, slopes = Beside(None), None, None, None
    if isinstance(divergence, ComparesLargest):
        beside = divergence.compare_largest(kernels, sides, rows, temperature)
    if tables is not None and pairs.direction == NO_COLUMNS:
        sums, slopes = beside.sums, tables[0]
    elif tables is not None:
        sums, slopes = kernels.compare(pairs.plan, sides, rows, tables, temperature)
        sums = all_reduce_sum(sums, divergence.ownership.shard.group)
    if isinstance(divergence, ComparesSlots):
        beside, later = divergence.compare_slots(plan, kernels, sides, sums, temperature, weight)
    return sums, slopes, beside, later


class LargestColumns(ColumnPairs):
    """No columns that are compared: what a divergence has that looks at the largest of the student alone.

    Args:
        columns: int64, this rank's columns of the student that take part.
        rest: those that are not among the largest have a slope as well, the same for all.
        kernels: the passes.
        student: layout of its output layer.
    """

    def __init__(self, columns: Tensor, rest: bool, kernels: PairKernels, student: VocabularyShard) -> None:
        super().__init__(NO_COLUMNS, "open", kernels, None)
        kinds = torch.zeros(student.rows, dtype=torch.uint8)
        kinds[columns] = STUDENT_LARGEST | (STUDENT_REST if rest else 0)
        self._keep(kinds, *(torch.zeros(0, dtype=torch.int32) for _ in range(2)))


def side_by_side(x: Tensor, group: ProcessGroup | None) -> Tensor:
    """``[k, ranks * w]`` of each rank's ``[k, w]``.  Collectives: an all-gather."""
    ranks = group_size(group)
    if ranks == 1 or not x.shape[1]:
        return x
    gathered = x.new_empty((ranks, *x.shape))
    dist.all_gather_into_tensor(gathered.view(-1), x.reshape(-1), group=group)
    return gathered.transpose(0, 1).reshape(x.shape[0], -1)


def first_of_rank(width: int, group: ProcessGroup | None) -> int:
    """Where this rank's columns begin in what `side_by_side` returns."""
    return group_rank(group) * width if group_size(group) > 1 else 0


def ranked_over_ranks(values: Tensor, group: ProcessGroup | None) -> tuple[Tensor, Tensor]:
    """Every rank's ``[k, w]`` in descending order, and where each stood among them; of equal ones the first first.

    Collectives: an all-gather.
    """
    found = torch.sort(side_by_side(values, group), dim=1, descending=True, stable=True)
    return found.values, found.indices

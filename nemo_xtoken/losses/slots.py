"""Sums of some tokens' probabilities at rows of chunks, over ranks, and the way back of a gradient by them.

What is summed is listed on the CPU, from labels.  A loss adds slots to a list for each side, takes their masses in one
call, compares them in any way that autograd can follow, and returns the derivative.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from nemo_xtoken.losses.base import ChunkDivergence, Comparison, LaterTerms
from nemo_xtoken.parallel.ownership import Ownership
from nemo_xtoken.parallel.softmax import all_reduce_sum
from nemo_xtoken.parallel.vocabulary_shard import VocabularyShard

__all__ = ["ByChunk", "Masses", "SlotList", "SlotMasses"]


class ByChunk(ChunkDivergence):
    """A divergence that looks at all rows of a chunk together: the whole of it is in :meth:`later_terms`."""

    merges = ("first", "first")

    def start(self, p_student: Tensor, entry_weights: Tensor | None = None) -> Tensor:
        """Nothing travels."""
        return p_student.new_zeros((1, p_student.shape[0]))

    def finish(self, started: Tensor, p_teacher: Tensor, coefficients: Tensor | None) -> Comparison:
        """0."""
        return Comparison(started)


class SlotList:
    """Slots of one side of a tile, numbered from 0 in the order in which they are added."""

    def __init__(self) -> None:
        self.count = 0
        self.rows: list[int] = []
        self._parts: list[tuple[int, np.ndarray, np.ndarray]] = []

    def one(self, row: int, tokens: np.ndarray) -> int:
        """One slot, the sum of these different tokens' probabilities at a row; returns its number."""
        self._parts.append((row, tokens, np.full(len(tokens), self.count)))
        self.rows.append(row)
        self.count += 1
        return self.count - 1

    def several(self, row: int, tokens: np.ndarray, of: np.ndarray, count: int) -> int:
        """``count`` slots at a row; ``of``: the slot of each token, from 0.  Returns the number of the first."""
        first = self.count
        self._parts.append((row, tokens, of + first))
        self.rows += [row] * count
        self.count += count
        return first

    def entries(self) -> np.ndarray:
        """int64 ``[3, e]``: row, token and slot of everything that is summed."""
        sizes = [len(tokens) for _, tokens, _ in self._parts]
        rows = np.repeat(np.array([row for row, _, _ in self._parts], np.int64), sizes)
        tokens = [np.zeros(0, np.int64), *(tokens for _, tokens, _ in self._parts)]
        slots = [np.zeros(0, np.int64), *(slots for _, _, slots in self._parts)]
        return np.stack([rows, np.concatenate(tokens), np.concatenate(slots)]).astype(np.int64)


class SlotMasses(torch.nn.Module):
    """Takes slots from a tile's probabilities.

    Args:
        student: layout of its output layer.
        ownership: of the teacher's.
    """

    owned: Tensor

    def __init__(self, student: VocabularyShard, ownership: Ownership) -> None:
        super().__init__()
        self.student, self.teacher, self.group = student, ownership.shard, student.group
        self.register_buffer("owned", torch.from_numpy(ownership.owned), persistent=False)

    def forward(self, p: tuple[Tensor, Tensor], lists: tuple[SlotList, SlotList]) -> "Masses":
        """
        Args:
            p: ``[n, V/tp]`` probabilities of the student's and the teacher's rows, this rank's columns.

        Returns:
            the masses, equal on all ranks.  Collectives: one all-reduce of a value for each slot.
        """
        row, token, slot = torch.from_numpy(lists[0].entries()).to(p[0].device)
        at, columns, found = _taken(p[0], row, token, self.student)
        row_t, token_t, slot_t = torch.from_numpy(lists[1].entries()).to(p[0].device)
        at_t, _, found_t = _taken(p[1], row_t, self.owned[token_t], self.teacher)
        sums = p[0].new_zeros(lists[0].count).index_add_(0, slot[at], found)
        sums_t = p[1].new_zeros(lists[1].count).index_add_(0, slot_t[at_t], found_t)
        student, teacher = all_reduce_sum(torch.cat([sums, sums_t]), self.group).split([len(sums), len(sums_t)])
        slot_row = torch.tensor(lists[0].rows, device=p[0].device, dtype=torch.int64)
        return Masses(student, teacher, row[at], columns, slot[at], found, slot_row)


class Masses(NamedTuple):
    """
    Attributes:
        student, teacher: ``[slots]``, equal on all ranks.
        row, column, slot, found: of this rank's student entries: the tile's row, the column, the slot, the probability.
        slot_row: int64 ``[student slots]``.
    """

    student: Tensor
    teacher: Tensor
    row: Tensor
    column: Tensor
    slot: Tensor
    found: Tensor
    slot_row: Tensor

    def terms(self, values: Tensor, slope: Tensor | None, metrics: Tensor) -> LaterTerms:
        """A loss's terms of a tile.

        Args:
            values: ``[k]``, of all its chunks.
            slope: ``[student slots]``, the objective's derivative with respect to ``student``; None: none is wanted.
            metrics: as in `LaterTerms`.
        """
        if slope is None:
            none, nothing = self.row[:0], values[:0]
            return LaterTerms(values, (none, none, nothing), (none, nothing), metrics)
        entries = self.row, self.column, slope[self.slot] * self.found
        return LaterTerms(values, entries, (self.slot_row, slope * self.student), metrics)


def _taken(p: Tensor, row: Tensor, token: Tensor, shard: VocabularyShard) -> tuple[Tensor, Tensor, Tensor]:
    """Which of the tokens this rank has, their columns, and their probabilities."""
    column = token - shard.start
    at = torch.nonzero((column >= 0) & (column < shard.rows)).squeeze(1)
    return at, column[at], p[row[at], column[at]]

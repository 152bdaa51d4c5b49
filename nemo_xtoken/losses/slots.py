"""Sums of some tokens' probabilities at rows of chunks, over ranks, and the way back of a gradient by them.

What is summed is planned on the CPU, from labels, for all tiles of a micro-batch: no tile waits for the device.  A loss
adds slots to a list for each side, takes their masses in one call, compares them in any way that autograd can follow,
and returns the derivative; or has kernels do so.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from nemo_xtoken.kernels.leaf_arrays import SlotArrays
from nemo_xtoken.kernels.pair_kernels import Beside, PairKernels, TileLogits
from nemo_xtoken.losses.base import ChunkDivergence, Comparison, LaterTerms
from nemo_xtoken.losses.chunks import KnownRows, Picked, ScoredRows, device_of, known_rows, to_device
from nemo_xtoken.parallel.ownership import Ownership
from nemo_xtoken.parallel.softmax import all_reduce_sum
from nemo_xtoken.parallel.vocabulary_shard import VocabularyShard

__all__ = [
    "ByChunk",
    "ComparesSlots",
    "FirstRows",
    "Masses",
    "SlotList",
    "SlotMasses",
    "planned",
    "runs",
    "terms_by_logits",
]

T = TypeVar("T")


class ByChunk(ChunkDivergence):
    """A divergence that looks at all rows of a chunk together: the whole of it is in its later terms."""

    merges = ("first", "first")

    def start(self, p_student: Tensor, entry_weights: Tensor | None = None) -> Tensor:
        """Nothing travels."""
        return p_student.new_zeros((1, p_student.shape[0]))

    def finish(self, started: Tensor, p_teacher: Tensor, coefficients: Tensor | None) -> Comparison:
        """0."""
        return Comparison(started)


class FirstRows(Protocol):
    """Chunks of one side, as `PairRows` has them."""

    @property
    def first(self) -> Tensor: ...
    @property
    def tokens(self) -> Tensor: ...
    @property
    def chunk(self) -> Tensor: ...


class ComparesSlots(ABC):
    """A divergence with ``column_pairs`` that compares slots beside them."""

    def by_columns(self, plan: Any, sides: tuple[FirstRows, FirstRows]) -> tuple[FirstRows, FirstRows]:
        """The chunks whose first rows are compared by columns; all by default."""
        return sides

    @abstractmethod
    def compare_slots(
        self,
        plan: Any,
        kernels: PairKernels,
        sides: tuple[TileLogits, TileLogits],
        sums: Tensor | None,
        temperature: float,
        weight: Tensor | None,
    ) -> tuple[Beside, LaterTerms]:
        """What slots add to the columns, and by themselves.

        Args:
            plan: of the tile.
            sums: ``[4, k]`` of the columns, over all ranks; None: no chunk is compared by them.
            weight: scalar, of the divergence in the objective; None: no gradient is wanted.

        Returns:
            in the later terms ``values`` of comparisons, not of chunks, as ``metrics`` are.
        """


class SlotList:
    """Slots of one side of a tile, numbered from 0 in the order in which they are added."""

    def __init__(self) -> None:
        self.count = 0
        self.rows: list[int] = []
        self._parts: list[tuple[int, np.ndarray, np.ndarray]] = []

    def one(self, row: int, tokens: np.ndarray) -> int:
        """One slot, the sum of these different tokens' probabilities at a row; returns its number."""
        return self.several(row, tokens, np.zeros(len(tokens), np.int64), 1)

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


class SlotMasses:
    """Takes slots from a tile's probabilities.

    Args:
        student: layout of its output layer.
        ownership: of the teacher's.
    """

    def __init__(self, student: VocabularyShard, ownership: Ownership) -> None:
        self.shards, self.owned, self.group = (student, ownership.shard), ownership.owned, student.group

    def arrays(self, lists: tuple[SlotList, SlotList], rows: int) -> dict[str, Any]:
        """`SlotArrays` on the CPU.

        Args:
            lists: of the student, row after row, and of the teacher.
            rows: of the student in the tile.
        """
        parts = []
        for side, (slots, shard) in enumerate(zip(lists, self.shards, strict=True)):
            row, token, slot = slots.entries()
            column = (token if side == 0 else self.owned[token]) - shard.start
            mine = (column >= 0) & (column < shard.rows)
            part = np.stack([row, column, slot + side * lists[0].count])[:, mine]
            parts.append(part[:, np.argsort(part[2], kind="stable")])
        entry_row, entry_column, entry_slot = np.concatenate(parts, axis=1)
        slot_row, count = np.array(lists[0].rows, np.int64), lists[0].count + lists[1].count
        with_slots, first = np.unique(slot_row, return_index=True)
        row_path = np.full(rows, -1)
        row_path[with_slots] = np.arange(len(with_slots))
        return {
            "slots": count,
            "student_slots": lists[0].count,
            "student_entries": parts[0].shape[1],
            "entry_row": entry_row,
            "entry_column": entry_column,
            "entry_slot": entry_slot,
            "entry_start": np.searchsorted(entry_slot, np.arange(count + 1)),
            "slot_row": slot_row,
            "row_path": row_path,
            "path_slot": first,
            "group_start": first + 1,
            "group_stop": np.append(first[1:], len(slot_row))[: len(first)],
        }

    def __call__(self, arrays: SlotArrays, picked: tuple[Picked, Picked]) -> "Masses":
        """
        Args:
            picked: the student's and the teacher's probabilities.

        Returns:
            the masses, equal on all ranks.  Collectives: one all-reduce of a value for each slot.
        """
        row, column, count = arrays.entry_row, arrays.entry_column, arrays.student_entries
        found = picked[0](row[:count], column[:count])
        both = torch.cat([found, picked[1](row[count:], column[count:])])
        sums = self._over_ranks(both.new_zeros(arrays.slots).index_add_(0, arrays.entry_slot, both))
        return Masses(sums[: arrays.student_slots], sums[arrays.student_slots :], found, arrays)

    def by_logits(
        self, arrays: SlotArrays, kernels: PairKernels, sides: tuple[TileLogits, TileLogits], temperature: float
    ) -> tuple[Tensor, Tensor]:
        """The student's and the teacher's masses from both sides' logits; collectives as of :meth:`__call__`."""
        masses = self._over_ranks(kernels.slot_masses(arrays, sides, temperature))
        return masses[: arrays.student_slots], masses[arrays.student_slots :]

    def _over_ranks(self, masses: Tensor) -> Tensor:
        return all_reduce_sum(masses, self.group) if masses.numel() else masses  # of equal size on all ranks


class Masses(NamedTuple):
    """
    Attributes:
        student, teacher: ``[slots]``, equal on all ranks.
        found: of this rank's student entries, their probabilities.
        arrays: of the slots.
    """

    student: Tensor
    teacher: Tensor
    found: Tensor
    arrays: SlotArrays

    def terms(self, values: Tensor, slope: Tensor | None, metrics: Tensor) -> LaterTerms:
        """A loss's terms of a tile.

        Args:
            values: ``[k]``, of all its chunks.
            slope: ``[student slots]``, the objective's derivative with respect to ``student``; None: none is wanted.
            metrics: as in `LaterTerms`.
        """
        row, column, slot = self.arrays.entry_row, self.arrays.entry_column, self.arrays.entry_slot
        if slope is None:
            none, nothing = row[:0], values[:0]
            return LaterTerms(values, (none, none, nothing), (none, nothing), metrics)
        count = len(self.found)
        entries = row[:count], column[:count], slope[slot[:count]] * self.found
        return LaterTerms(values, entries, (self.arrays.slot_row, slope * self.student), metrics)


def terms_by_logits(
    arrays: SlotArrays,
    kernels: PairKernels,
    student: TileLogits,
    mass: Tensor,
    slope: Tensor | None,
    values: Tensor,
    metrics: Tensor,
    temperature: float,
) -> LaterTerms:
    """:meth:`Masses.terms` by kernels.

    Args:
        mass, slope: of the student's slots; None: no gradient is wanted.
    """
    none, count = arrays.slot_row[:0], arrays.student_entries
    if slope is None or not arrays.student_slots:
        return LaterTerms(values, (none, none, values[:0]), (none, values[:0]), metrics)
    by_entry, inner = kernels.slot_entries(arrays, student, mass, slope, temperature)
    return LaterTerms(values, (arrays.entry_row[:count], arrays.entry_column[:count], by_entry), (None, inner), metrics)


def planned(
    tiles: Sequence[tuple[ScoredRows, ScoredRows] | None],
    plan: Callable[[KnownRows, KnownRows], dict[str, Any]],
    of: Callable[..., T],
) -> list[T | None]:
    """``of`` what a plan of the student's and the teacher's rows has as numbers and arrays of each tile, on the device.

    One wait for it: to know the labels.
    """
    made = [None if tile is None else plan(*tile) for tile in known_rows(tiles)]
    return [None if each is None else of(**each) for each in to_device(made, device_of(tiles))]


def runs(begin: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """int64: the numbers from each beginning on, so many."""
    inside = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.repeat(begin, counts) + inside

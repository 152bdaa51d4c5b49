"""The leaves of a tile's chunks as the kernels go over them (`PairKernels.leaves`).

What the words mean is said in :mod:`nemo_xtoken.losses.chunk_leaves`.  Everything is numbered through, the student's
before the teacher's.  A *path* is a position of a chunk on one side; a *whole* number is a slot's, or that of the
REST at a path after all slots.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from torch import Tensor

__all__ = [
    "InsideArrays",
    "LeafArrays",
    "OneSide",
    "OverArrays",
    "PrefixArrays",
    "SlotArrays",
    "SupportArrays",
    "leaf_arrays",
    "starts_of",
]


class LeafArrays(NamedTuple):
    """Numbers, and places: int64 on the device.

    Attributes:
        student_slots, student_entries: how many are the student's.
        entry_row, entry_column, entry_slot: ``[e]``, this rank's tokens, slot after slot; ``entry_start [slots + 1]``.
        path_slot: ``[paths]``, the slot of the path's own token; ``path_first``, the first path of the same chunk and
            side; ``path_chunk``, its chunk.
        row_path: ``[n]``, the path at each of the student's rows in the tile, -1 for none.
        group_start, group_stop: ``[paths]``, the slots of the other tokens at a path.
        path_pairs, path_pairs_stop: ``[paths]``, the pairs of the same chunk and side.
        slot_path, slot_class: ``[slots]``, the path at whose depth it is; its class, -1 where none is asked for.
        pair_whole, pair_leaf, pair_from, pair_to: ``[pairs]``, as in `SideLeaves`, with paths for depths.
        whole_pairs, whole_pairs_stop: ``[slots + paths]``, the pairs of a slot or REST.
        leaf_pairs: ``[pairs]``, leaf after leaf; ``leaf_start [2 leaves + 1]``.
        leaf_level: ``[leaves]``; ``chunk_leaves [c + 1]``, where a chunk's begin; ``chunk_levels [c]``, their number.
        chunk_path: ``[2 c]``, the first path of either side of a chunk.
        chunk_of: ``[k]``, of the tile's chunks: the number of those with leaves, -1 for others.
    """

    student_slots: int
    student_entries: int
    entry_row: Tensor
    entry_column: Tensor
    entry_slot: Tensor
    entry_start: Tensor
    path_slot: Tensor
    path_first: Tensor
    path_chunk: Tensor
    row_path: Tensor
    group_start: Tensor
    group_stop: Tensor
    path_pairs: Tensor
    path_pairs_stop: Tensor
    slot_path: Tensor
    slot_class: Tensor
    pair_whole: Tensor
    pair_leaf: Tensor
    pair_from: Tensor
    pair_to: Tensor
    whole_pairs: Tensor
    whole_pairs_stop: Tensor
    leaf_pairs: Tensor
    leaf_start: Tensor
    leaf_level: Tensor
    chunk_leaves: Tensor
    chunk_levels: Tensor
    chunk_path: Tensor
    chunk_of: Tensor


class SlotArrays(NamedTuple):
    """Slots alone, of a loss that compares them otherwise; the student's are numbered row after row.

    Attributes:
        slots: of both sides; ``student_slots`` and ``student_entries`` of them and their tokens are the student's.
        entry_row, entry_column, entry_slot, entry_start: as in `LeafArrays`.
        slot_row: ``[student_slots]``, the tile's rows.
        row_path: ``[n]``, for each of the student's rows its number among those that have slots, -1 for none.
        path_slot, group_start, group_stop: of these rows, the first slot, and where the others begin and end.
    """

    slots: int
    student_slots: int
    student_entries: int
    entry_row: Tensor
    entry_column: Tensor
    entry_slot: Tensor
    entry_start: Tensor
    slot_row: Tensor
    row_path: Tensor
    path_slot: Tensor
    group_start: Tensor
    group_stop: Tensor


class SupportArrays(NamedTuple):
    """The comparisons of `losses.csd`, int64 ``[c]``.

    Attributes:
        begin_s, middle_s, begin_t, middle_t: where the slots of either side's observed tokens before the last begin,
            and those of its outcomes after them.
        counts: of outcomes.
    """

    begin_s: Tensor
    middle_s: Tensor
    begin_t: Tensor
    middle_t: Tensor
    counts: Tensor


class InsideArrays(NamedTuple):
    """The comparisons of `losses.bpm` inside of teacher tokens, int64 ``[c]``.

    Attributes:
        student, teacher: where the slots of the cells begin; the teacher's of the residual class is before its cells.
        cells: their number.
        into, out: the cell that gets what is moved, and that from which it is taken, -1 for the residual class.
        chain, length: where the teacher's slots of what is moved begin, and how many they are; 0: nothing is.
    """

    student: Tensor
    teacher: Tensor
    cells: Tensor
    into: Tensor
    out: Tensor
    chain: Tensor
    length: Tensor


class OverArrays(NamedTuple):
    """The chunks of `losses.bpm` whose first student token goes over an end of the teacher's, int64 ``[o]``.

    Attributes:
        over: ``[k]``, the number of each of the tile's chunks among them, -1 for none.
        label, head: the student's slots of that token and of the one that has the teacher token's mass, -1 for none.
        head_mass, token_mass: the teacher's slots of what is put on these, -1 for none.
        chain, length: as in `InsideArrays`.
    """

    over: Tensor
    label: Tensor
    head: Tensor
    head_mass: Tensor
    token_mass: Tensor
    chain: Tensor
    length: Tensor


class PrefixArrays(NamedTuple):
    """Both of them."""

    inside: InsideArrays
    over: OverArrays


class OneSide(Protocol):
    """What is needed of `losses.chunk_leaves.SideLeaves`."""

    @property
    def slots(self) -> int:
        """The number of its slots."""
        ...

    @property
    def slot_depth(self) -> np.ndarray:
        """int64 ``[slots + depths - 1]``."""
        ...

    @property
    def pair_slot(self) -> np.ndarray:
        """int64 ``[p]``."""
        ...


def starts_of(counts: np.ndarray) -> np.ndarray:
    """int64, where each of these runs begins; one more at the end."""
    return np.concatenate([[0], np.cumsum(counts)])


def leaf_arrays(
    sides: Sequence[OneSide], levels: Sequence[np.ndarray], firsts: np.ndarray, rows: int, plan: dict[str, Any]
) -> dict[str, Any]:
    """Those of a tile, on the CPU.

    Args:
        sides: the student's sides of the chunks with leaves, then the teacher's.
        levels: int64, of each chunk's leaves.
        firsts: int64, the tile's first row of each of ``sides``.
        rows: the student's in the tile.
        plan: of the same, as `LeafPlan` has it.
    """
    half = len(sides) // 2
    slot_counts = np.array([side.slots for side in sides])
    depths = np.array([len(side.slot_depth) + 1 for side in sides]) - slot_counts
    slot_start, path_start = starts_of(slot_counts), starts_of(depths)
    slots, paths = int(slot_start[-1]), int(path_start[-1])
    of = np.repeat(np.arange(2 * half), depths)
    path_first, path = path_start[of], np.arange(paths)
    slot_path = np.concatenate([side.slot_depth[: side.slots] for side in sides]) + np.repeat(
        path_start[:-1], slot_counts
    )
    others = np.ones(slots, bool)
    others[plan["paths"]] = False
    before = starts_of(np.bincount(slot_path[others], minlength=paths))  # they lie path after path
    group_start = (slot_start[:-1] + depths)[of] + before[:-1] - before[path_first]
    slot_class = np.full(slots, -1)
    slot_class[plan["class_slot"]] = plan["class_number"] % 2
    pair_counts = np.array([len(side.pair_slot) for side in sides])
    of_pair, pair_start = np.repeat(np.arange(2 * half), pair_counts), starts_of(pair_counts)
    beyond = np.concatenate([side.pair_slot for side in sides]) - slot_counts[of_pair]
    pair_whole = np.where(beyond < 0, plan["pair_slot"], slots + path_start[of_pair] + beyond + 1)
    runs = np.flatnonzero(np.diff(pair_whole, prepend=-1))
    whole_pairs, whole_pairs_stop = np.zeros((2, slots + paths), np.int64)
    whole_pairs[pair_whole[runs]], whole_pairs_stop[pair_whole[runs]] = runs, np.append(runs[1:], len(pair_whole))
    leaf_pairs = np.argsort(plan["pair_leaf"], kind="stable")
    leaves = 2 * sum(len(level) for level in levels)
    order = np.argsort(plan["slot"], kind="stable")
    entries = {
        name: np.concatenate([plan[f"{s}_{name}"] for s in ("student", "teacher")]) for name in ("row", "column")
    }
    row_path = np.full(rows, -1)
    row_path[(firsts[of] + path - path_first)[: path_start[half]]] = path[: path_start[half]]
    chunk_of = np.full(plan["all_chunks"], -1)
    chunk_of[plan["chunks"]] = np.arange(half)
    return {
        "student_slots": int(slot_start[half]),
        "student_entries": len(plan["student_row"]),
        "entry_row": entries["row"][order],
        "entry_column": entries["column"][order],
        "entry_slot": plan["slot"][order],
        "entry_start": np.searchsorted(plan["slot"][order], np.arange(slots + 1)),
        "path_slot": plan["paths"],
        "path_first": path_first,
        "path_chunk": of % half,
        "row_path": row_path,
        "group_start": group_start,
        "group_stop": group_start + np.diff(before),
        "path_pairs": pair_start[of],
        "path_pairs_stop": pair_start[of + 1],
        "slot_path": slot_path,
        "slot_class": slot_class,
        "pair_whole": pair_whole,
        "pair_leaf": plan["pair_leaf"],
        "pair_from": plan["pair_from"],
        "pair_to": plan["pair_to"],
        "whole_pairs": whole_pairs,
        "whole_pairs_stop": whole_pairs_stop,
        "leaf_pairs": leaf_pairs,
        "leaf_start": np.searchsorted(plan["pair_leaf"][leaf_pairs], np.arange(leaves + 1)),
        "leaf_level": np.concatenate(levels),
        "chunk_leaves": starts_of(np.array([len(level) for level in levels])),
        "chunk_levels": np.array([int(level.max(initial=-1)) + 1 for level in levels]),
        "chunk_path": path_start[:-1],
        "chunk_of": chunk_of,
    }

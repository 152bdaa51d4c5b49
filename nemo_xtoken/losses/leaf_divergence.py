"""The divergence of the teacher's leaves of chunks from the student's (:mod:`nemo_xtoken.losses.chunk_leaves`).

A chunk has some comparisons, one after the other: given that none of the shallower components is taken, how probable is
each that ends here, and all deeper ones as one.  Each adds the KL divergence of the teacher's distribution from the
student's, so that the sum is never negative; where two models agree on texts it is 0, and so is its gradient, which
reaches the student at each position of the chunk.

Where the first tokens are of two classes these are one class, of which the deeper comparisons are a part: what the two
by themselves have added at the first position is taken back.

Which probabilities are looked at, and how they are summed, follows from the labels alone: it is planned on the CPU for
all tiles of a micro-batch at once, and a tile makes nobody wait for the device.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from nemo_xtoken.kernels.leaf_arrays import LeafArrays, leaf_arrays
from nemo_xtoken.kernels.leaf_arrays import starts_of as _starts
from nemo_xtoken.kernels.pair_kernels import PairKernels, TileLogits
from nemo_xtoken.kernels.tile_kernels import smallest
from nemo_xtoken.losses.base import LaterTerms
from nemo_xtoken.losses.chunk_leaves import ChunkLeaves, LeafTable, SideLeaves
from nemo_xtoken.losses.chunks import KnownRows, Picked, to_device
from nemo_xtoken.parallel.ownership import Ownership
from nemo_xtoken.parallel.softmax import all_reduce_sum
from nemo_xtoken.parallel.vocabulary_shard import VocabularyShard

__all__ = ["LeafDivergence", "LeafPlan"]


class LeafPlan(NamedTuple):
    """What there is to compare in a tile: numbers, and places on the device.

    Both sides are numbered through: the student's slots, paths, pairs, leaves, comparisons and classes come first, then
    the teacher's.  Attributes that are not explained are as in `SideLeaves`.

    Attributes:
        chunks: int64 ``[c]``, which of the tile's have leaves; of ``all_chunks``.
        student_row, student_column, teacher_row, teacher_column: int64, the tile's probabilities that this rank has of
            the tokens; ``slot`` for all of them.
        slots: of both sides; ``student_slots`` of them are the student's, at the rows ``slot_row``.
        paths: the path slots of all chunks, one after the other.
        slot_rest: int64 ``[slots]``, the number of the REST slot at a slot's depth; ``rests`` at a first position.
        rests: the number of REST slots, which follow all others in ``pair_slot``.
        pair_to, pair_from: places in ``paths``.
        student_pairs: pairs of the student's side.
        leaf_comparison: int64 ``[2 l]``; ``leaf_chunk``: int64 ``[l]``, in ``chunks``.
        comparisons: of both sides.
        class_slot, class_number: two numbers a chunk and side; ``student_classes`` of them are the student's.
        fused: the same for kernels that compare leaves; None: there are none.
    """

    all_chunks: int
    slots: int
    student_slots: int
    rests: int
    student_pairs: int
    comparisons: int
    student_classes: int
    chunks: Tensor
    student_row: Tensor
    student_column: Tensor
    teacher_row: Tensor
    teacher_column: Tensor
    slot: Tensor
    slot_row: Tensor
    paths: Tensor
    slot_rest: Tensor
    pair_slot: Tensor
    pair_leaf: Tensor
    pair_from: Tensor
    pair_to: Tensor
    leaf_comparison: Tensor
    leaf_chunk: Tensor
    class_slot: Tensor
    class_number: Tensor
    fused: LeafArrays | None = None


class LeafDivergence(torch.nn.Module):
    """Compares the leaves of the chunks of a tile.

    Args:
        table: of the pair of tokenizers.
        student: layout of its output layer.
        ownership: of the teacher's.
        kernels: what compares leaves by both sides' logits; None: nothing does.
    """

    def __init__(
        self, table: LeafTable, student: VocabularyShard, ownership: Ownership, kernels: PairKernels | None = None
    ) -> None:
        super().__init__()
        self.kernels = kernels
        self.table, self.shards, self.group = table, (student, ownership.shard), student.group
        self.owned = ownership.owned

    def forward(
        self,
        plan: LeafPlan,
        picked: tuple[Picked, Picked],
        coefficients: Tensor | None,
    ) -> LaterTerms:
        """
        Args:
            plan: of the tile, see :meth:`plans`.
            picked: the student's and the teacher's probabilities.
            coefficients: ``[k]``, of the chunks in the objective; None: no gradient is wanted.

        Returns:
            what is added, with one row of metrics, 1 for chunks that were compared by their leaves.  Collectives: one
            all-reduce, of a value for each component of these chunks and side.
        """
        p = picked[0](plan.student_row, plan.student_column)
        both = torch.cat([p, picked[1](plan.teacher_row, plan.teacher_column)])
        masses = all_reduce_sum(both.new_zeros(plan.slots).index_add_(0, plan.slot, both), self.group)
        weights = None if coefficients is None else coefficients[plan.chunks]
        added, slope = _divergence(plan, masses, weights)
        values = added.new_zeros(plan.all_chunks).index_add_(0, plan.chunks, added)
        compared = torch.zeros_like(values).index_fill_(0, plan.chunks, 1).unsqueeze(0)
        if slope is None:
            nothing = added[:0], plan.chunks[:0]
            return LaterTerms(values, (nothing[1], nothing[1], nothing[0]), (nothing[1], nothing[0]), compared)
        by_entry = slope[plan.slot[: p.numel()]] * p
        entries = plan.student_row, plan.student_column, by_entry
        return LaterTerms(values, entries, (plan.slot_row, slope * masses[: plan.student_slots]), compared)

    def by_logits(
        self, plan: LeafPlan, sides: tuple[TileLogits, TileLogits], temperature: float, coefficients: Tensor | None
    ) -> LaterTerms:
        """:meth:`forward` by kernels, from the student's and the teacher's logits."""
        assert plan.fused is not None
        assert self.kernels is not None
        a = plan.fused
        values, by_entry, inner = self.kernels.leaves(
            a, sides, temperature, coefficients, lambda masses: all_reduce_sum(masses, self.group)
        )
        if by_entry is None or inner is None:
            none = plan.chunks[:0]
            return LaterTerms(values[0], (none, none, values[0, :0]), (none, values[0, :0]), values[1:])
        entries = a.entry_row[: by_entry.numel()], a.entry_column[: by_entry.numel()], by_entry
        return LaterTerms(values[0], entries, (None, inner), values[1:])

    def plans(
        self,
        tiles: Sequence[tuple[KnownRows, KnownRows] | None],
        device: torch.device,
        left_out: Sequence[np.ndarray | None] | None = None,
    ) -> list[LeafPlan | None]:
        """The plans of a micro-batch's tiles, None where there is nothing to compare.

        Args:
            tiles: the student's and the teacher's rows of each; None: without a chunk.
            device: where the plans are used.
            left_out: for each tile, bool ``[k]``, chunks whose leaves are not compared.
        """
        out = left_out or [None] * len(tiles)
        made = [None if tile is None else self._plan(tile, no) for tile, no in zip(tiles, out, strict=True)]
        return [_plan_of(one) for one in to_device(made, device)]

    def _plan(self, known: tuple[KnownRows, KnownRows], left_out: np.ndarray | None) -> dict[str, Any] | None:
        """A tile's, on the CPU."""
        starts, counts, labels = ([getattr(side, name) for side in known] for name in ("first", "tokens", "labels"))
        first_tokens = [label[start] for start, label in zip(starts, labels, strict=True)]
        compared = self.table.compares(*first_tokens, *counts)
        chunks = np.flatnonzero(compared if left_out is None else compared & ~left_out)
        if not len(chunks):
            return None
        paths = [
            [tuple(label[a : a + n].tolist()) for a, n in zip(start[chunks], count[chunks], strict=True)]
            for start, count, label in zip(starts, counts, labels, strict=True)
        ]
        leaves = [self.table.of(*path) for path in zip(*paths, strict=True)]
        firsts = np.concatenate([start[chunks] for start in starts])
        made = {"all_chunks": len(starts[0]), "chunks": chunks, **self._joined(leaves, firsts)}
        if self.kernels is not None:
            sides = [x.sides[number] for number in (0, 1) for x in leaves]
            made["fused"] = leaf_arrays(sides, [x.level for x in leaves], firsts, len(labels[0]), made)
        return made

    def _joined(self, leaves: Sequence[ChunkLeaves], firsts: np.ndarray) -> dict[str, Any]:
        """The chunks numbered through, all of the student's sides before the teacher's."""
        sides = [x.sides[number] for number in (0, 1) for x in leaves]
        half = len(leaves)

        def joined(name: str, offsets: np.ndarray) -> np.ndarray:
            parts = [getattr(side, name) for side in sides]
            return np.concatenate(parts) + np.repeat(offsets, [len(part) for part in parts])

        def of_student(name: str) -> int:
            return sum(len(getattr(side, name)) for side in sides[:half])

        slot_counts, depths = np.array([[s.slots, len(s.slot_depth) - s.slots] for s in sides]).T
        slot_start, rest_start, path_start = _starts(slot_counts), _starts(depths), _starts(depths + 1)
        slots, rests = int(slot_start[-1]), int(rest_start[-1])
        # REST slots follow all others
        of_pair = np.repeat(np.arange(2 * half), [len(s.pair_slot) for s in sides])
        pair_slot = np.concatenate([s.pair_slot for s in sides])
        beyond = pair_slot - slot_counts[of_pair]
        pair_slot = np.where(beyond < 0, pair_slot + slot_start[of_pair], slots + beyond + rest_start[of_pair])
        depth = np.concatenate([s.slot_depth[: s.slots] for s in sides])
        slot_rest = np.where(depth > 0, depth - 1 + np.repeat(rest_start[:-1], slot_counts), rests)
        levels = [x.level for x in leaves]
        leaf_start = _starts(np.array([len(level) for level in levels]))
        comparisons = _starts(np.array([int(level.max(initial=-1)) + 1 for level in levels]))
        leaf_chunk = np.repeat(np.arange(half), np.diff(leaf_start))
        leaf_comparison = np.concatenate(levels) + comparisons[:-1][leaf_chunk]
        of_leaves = np.concatenate([leaf_start[:-1], leaf_start[-1] + leaf_start[:-1]])
        return {
            **self._entries(sides, firsts, joined("slot", slot_start[:-1])),
            "slots": slots,
            "student_slots": int(slot_start[half]),
            "rests": rests,
            "student_pairs": of_student("pair_slot"),
            "comparisons": 2 * int(comparisons[-1]),
            "student_classes": of_student("class_slot"),
            "slot_row": (depth + np.repeat(firsts, slot_counts))[: slot_start[half]],
            "paths": np.arange(path_start[-1]) + np.repeat(slot_start[:-1] - path_start[:-1], depths + 1),
            "slot_rest": slot_rest,
            "pair_slot": pair_slot,
            "pair_leaf": joined("pair_leaf", of_leaves),
            "pair_from": joined("pair_from", path_start[:-1]),
            "pair_to": joined("pair_to", path_start[:-1]),
            "leaf_comparison": np.concatenate([leaf_comparison, comparisons[-1] + leaf_comparison]),
            "leaf_chunk": leaf_chunk,
            "class_slot": joined("class_slot", slot_start[:-1]),
            "class_number": joined("class_number", 2 * np.arange(2 * half)),
        }

    def _entries(self, sides: list[SideLeaves], firsts: np.ndarray, slot: np.ndarray) -> dict[str, np.ndarray]:
        """The tokens that this rank has."""
        row = np.concatenate([side.depth for side in sides]) + np.repeat(firsts, [len(side.depth) for side in sides])
        token = np.concatenate([side.token for side in sides])
        of_student = sum(len(side.depth) for side in sides[: len(sides) // 2])
        token[of_student:] = self.owned[token[of_student:]]
        found: dict[str, np.ndarray] = {}
        slots = []
        for name, shard, part in zip(
            ("student", "teacher"), self.shards, (slice(of_student), slice(of_student, None)), strict=True
        ):
            column = token[part] - shard.start
            mine = (column >= 0) & (column < shard.rows)
            found |= {f"{name}_row": row[part][mine], f"{name}_column": column[mine]}
            slots.append(slot[part][mine])
        return {**found, "slot": np.concatenate(slots)}


def _plan_of(made: dict[str, Any] | None) -> LeafPlan | None:
    if made is None:
        return None
    fused = made.pop("fused", None)
    return LeafPlan(**made, fused=None if fused is None else LeafArrays(**fused))


def _divergence(plan: LeafPlan, masses: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """The values ``[c]``, and their derivatives with respect to the student's slots, times the weights.

    Args:
        masses: ``[slots]``, of both sides.
        weights: ``[c]``.
    """
    count, leaves = plan.chunks.numel(), plan.leaf_chunk.numel()
    # what is listed at a depth leaves the rest to REST, nearer to 0 than the type can tell 1 from 1 - p
    least = torch.finfo(masses.dtype).eps / 2
    listed = masses.new_zeros(plan.rests + 1).index_add_(0, plan.slot_rest, masses)[:-1]
    whole = torch.cat([masses, (1 - listed).clamp_min_(least)])
    path = _log(masses[plan.paths]).double()
    before = path.cumsum(0) - path
    reached = (before[plan.pair_to] - before[plan.pair_from]).exp_().to(masses.dtype)
    mass = whole[plan.pair_slot] * reached
    leaf = masses.new_zeros(2 * leaves).index_add_(0, plan.pair_leaf, mass)
    of_comparison = masses.new_zeros(plan.comparisons).index_add_(0, plan.leaf_comparison, leaf)
    log_s, log_t = (_log(leaf) - _log(of_comparison)[plan.leaf_comparison]).split(leaves)
    share = log_t.exp()  # the teacher's of each leaf
    values = masses.new_zeros(count).index_add_(0, plan.leaf_chunk, share * (log_t - log_s))
    # where the first tokens are of two classes these become one
    by_class = masses.new_zeros(4 * count).index_add_(0, plan.class_number, masses[plan.class_slot])
    q, p = by_class.view(2, count, 2)
    together = p.sum(1) * _ratio(p.sum(1), q.sum(1)).log() - (p * _ratio(p, q).log()).sum(1)
    values += together
    if weights is None:
        return values, None
    bound = smallest(masses)
    wanted = weights[plan.leaf_chunk] * share
    student = plan.leaf_comparison[:leaves]
    all_wanted = torch.zeros_like(of_comparison).index_add_(0, student, wanted)
    by_leaf = _over(all_wanted, of_comparison, bound)[student] - _over(wanted, leaf[:leaves], bound)
    by_mass = by_leaf[plan.pair_leaf[: plan.student_pairs]]
    at = plan.pair_slot[: plan.student_pairs]
    by_slot = torch.zeros_like(whole).index_add_(0, at, by_mass * reached[: plan.student_pairs])
    by_log = (by_mass * mass[: plan.student_pairs]).double()
    by_before = torch.zeros_like(before).index_add_(0, plan.pair_to[: plan.student_pairs], by_log)
    by_before.index_add_(0, plan.pair_from[: plan.student_pairs], by_log, alpha=-1)
    by_path = (by_before.sum() - by_before.cumsum(0)).to(masses.dtype)
    by_rest = torch.nn.functional.pad(by_slot[plan.slots :].where(1 - listed >= least, 0), (0, 1))
    slope = by_slot[: plan.slots] - by_rest[plan.slot_rest]
    slope.index_add_(0, plan.paths, _over(by_path, masses[plan.paths], bound))
    if plan.student_classes:
        ratios = _ratio(p, q).where(q >= bound, 0) - _ratio(p.sum(1), q.sum(1)).where(q.sum(1) >= bound, 0).unsqueeze(1)
        by_number = (weights.unsqueeze(1) * ratios).view(-1)
        slots, numbers = (x[: plan.student_classes] for x in (plan.class_slot, plan.class_number))
        slope.index_add_(0, slots, by_number[numbers])
    return values, slope[: plan.student_slots]


def _ratio(p: Tensor, q: Tensor) -> Tensor:
    """What the logarithm of the forward KL is taken of, see `losses.directions`."""
    bound = smallest(q)
    return (p / q.clamp_min(bound)).clamp_min_(bound)


def _log(x: Tensor) -> Tensor:
    return x.clamp_min(smallest(x)).log_()


def _over(by_log: Tensor, x: Tensor, bound: float) -> Tensor:
    """The derivative with respect to x, given that with respect to its logarithm in :func:`_log`."""
    return (by_log / x).where(x >= bound, 0)

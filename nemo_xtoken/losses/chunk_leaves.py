"""The leaves of a chunk: every way to leave it, on both sides, and which of them are one.

A chunk is the text of student tokens ``x_1 .. x_n`` and teacher tokens ``y_1 .. y_m``.  On either side a *leaf* is the
observed path up to some depth and a token that leaves it there, or the whole chunk.  Every text that can follow has one
leaf on each side, so that leaves which some text has in common are joined; models that agree on texts give each
component of this relation equal mass.  What is joined:

- the whole chunk on both sides;
- a first token of the classes of ``x_1`` and ``y_1`` with the leaf at which each of its spellings by the other side
  leaves the observed path, or with all that goes on where its spelling ends;
- the next tokens after first ones that end some blanks apart, by :mod:`nemo_xtoken.projection.overlaps`;
- all other tokens at the depths after the first: REST.

Leaves without a mate on the other side are left out.  Tokens of other classes than those of ``x_1`` and ``y_1`` leave
at the first depth and are compared there by their classes.
"""

from collections import OrderedDict
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from nemo_xtoken.projection.components import components
from nemo_xtoken.projection.overlaps import Overlaps
from nemo_xtoken.projection.prefixes import MAX_PIECES, PrefixClasses, SpelledTokens

__all__ = ["ChunkLeaves", "LeafTable", "SideLeaves"]

#: Chunks whose leaves are kept, those that were met last.
KEPT = 16_384
#: A token number that stands for REST, beyond those of any vocabulary.
REST = 1 << 32
#: Bits of a token number in a leaf's.
BITS = 33
#: A depth, beyond those of any chunk, of the numbers of an overlap's classes.
OVERLAP = 1 << 20


class SideLeaves(NamedTuple):
    """One side of a chunk.  A *slot* is a sum of some tokens' probabilities at one depth.

    Attributes:
        depth, token, slot: int64 ``[e]``: tokens, the depth at which they are taken (from 0), and the slot they count
            in.  Slot d has the path's own token at depth d.
        slots: their number; after them one for REST at each depth from 1 on: what is left there.
        slot_depth: int64 ``[slots + depths - 1]``.
        pair_slot, pair_leaf, pair_from, pair_to: int64 ``[p]``: a slot counts in a leaf with the probability of the
            path from one depth to the slot's own.
        class_slot, class_number: int64 ``[c]``: the slots at depth 0 and their class, 0 for that of ``x_1``, 1 for that
            of ``y_1``; empty where these are one class.
    """

    depth: np.ndarray
    token: np.ndarray
    slot: np.ndarray
    slots: int
    slot_depth: np.ndarray
    pair_slot: np.ndarray
    pair_leaf: np.ndarray
    pair_from: np.ndarray
    pair_to: np.ndarray
    class_slot: np.ndarray
    class_number: np.ndarray


class ChunkLeaves(NamedTuple):
    """A chunk.

    Attributes:
        sides: the student's and the teacher's.
        level: int64 ``[l]``: the leaves' comparisons.  A comparison is between the components that end at one depth and
            all deeper ones as one, given that no shallower one is taken.
        merged: ``x_1`` and ``y_1`` are of two classes.
    """

    sides: tuple[SideLeaves, SideLeaves]
    level: np.ndarray
    merged: bool


def _node(side: int, depth: np.ndarray | int, token: np.ndarray | int) -> np.ndarray:
    """A leaf as a number."""
    return ((np.asarray(depth, np.int64) * 2 + side) << BITS) + np.asarray(token, np.int64)


def _of_node(node: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """``(twice the depth plus the side, token)``."""
    return node >> BITS, node & ((1 << BITS) - 1)


class LeafTable:
    """The leaves of chunks, made when a chunk is first met.

    Args:
        classes: of the pair of tokenizers.
    """

    def __init__(self, classes: PrefixClasses) -> None:
        self.classes = classes
        self.sides = classes.student, classes.teacher
        self._members = tuple(_sorted_by_class(side) for side in self.sides)
        self._made: OrderedDict[tuple[tuple[int, ...], tuple[int, ...]], ChunkLeaves] = OrderedDict()

    def compares(self, student: np.ndarray, teacher: np.ndarray, rows: np.ndarray, others: np.ndarray) -> np.ndarray:
        """bool ``[k]``: which chunks have leaves to compare beyond the classes of their first tokens.

        Args:
            student, teacher: int64 ``[k]``, the chunks' first tokens.
            rows, others: int64 ``[k]``, their tokens on either side.
        """
        differ: np.ndarray = self.sides[0].classes[student] != self.sides[1].classes[teacher]
        return differ | (rows > 1) | (others > 1)

    def of(self, student: tuple[int, ...], teacher: tuple[int, ...]) -> ChunkLeaves:
        """The leaves of a chunk whose first tokens both have a class."""
        key = student, teacher
        found = self._made.get(key)
        if found is None:
            found = self._made[key] = self._make(key)
            if len(self._made) > KEPT:
                self._made.popitem(last=False)
        else:
            self._made.move_to_end(key)
        return found

    def _class(self, side: int, token: int) -> int:
        return int(self.sides[side].classes[token])

    def members(self, side: int, class_: int) -> np.ndarray:
        """int64, the spellings of a class's tokens on one side, by their rows."""
        rows, starts = self._members[side]
        return rows[starts[class_] : starts[class_ + 1]]

    def _make(self, paths: tuple[tuple[int, ...], tuple[int, ...]]) -> ChunkLeaves:
        classes = [self._class(side, path[0]) for side, path in enumerate(paths)]
        names = list(dict.fromkeys(classes))
        firsts = [np.concatenate([self.members(side, name) for name in names]) for side in (0, 1)]
        nodes, numbers = np.unique(self._edges(paths, firsts), return_inverse=True)
        (component,) = components(numbers.reshape(-1, 2), len(nodes))
        place, token = _of_node(nodes)
        side, depth = place % 2, place // 2
        lengths = np.array([len(path) for path in paths])
        real = (depth < OVERLAP) & ((token < REST) | (depth < lengths[side]))
        both = np.zeros((2, component.max() + 1), bool)
        both[side[real], component[real]] = True
        level = np.zeros(both.shape[1], np.int64)
        np.maximum.at(level, component[real], depth[real])
        shown = np.flatnonzero(both.all(axis=0))
        leaf_of = np.full(both.shape[1], -1)
        leaf_of[shown] = np.arange(len(shown))
        levels, leaf_level = np.unique(level[shown], return_inverse=True)
        sides = []
        for number, path in enumerate(paths):
            mine = real & (side == number)
            tokens = _Tokens(depth[mine], token[mine], leaf_of[component[mine]])
            known = self.sides[number].classes if len(names) > 1 else None
            sides.append(_side(path, tokens, leaf_level, known, classes[0]))
        level = np.concatenate([leaf_level, np.arange(len(levels) - 1)])
        return ChunkLeaves((sides[0], sides[1]), level, len(names) > 1)

    def _edges(self, paths: tuple[tuple[int, ...], tuple[int, ...]], firsts: list[np.ndarray]) -> np.ndarray:
        """int64 ``[e, 2]``: nodes that are one."""
        lengths = [len(path) for path in paths]
        whole = [_node(side, n - 1, paths[side][-1]) for side, n in enumerate(lengths)]
        found = [np.array([whole])]
        for side in (0, 1):
            rows = firsts[side]
            if lengths[side] > 1:  # the path goes on: its first token is no leaf
                rows = rows[self.sides[side].tokens[rows] != paths[side][0]]
            mates = self._mates(side, rows, paths[1 - side])
            found.append(np.stack([_node(side, 0, self.sides[side].tokens[rows]), mates], axis=1))
        if self.classes.overlaps is not None and max(lengths) > 1:
            found += self._gone_on(paths, firsts, np.concatenate(found), whole, self.classes.overlaps)
        if min(lengths) > 1:
            rests = [_node(side, depth, REST) for side in (0, 1) for depth in range(1, lengths[side])]
            found.append(np.array(list(pairwise(rests))).reshape(-1, 2))
            overlaps = self.classes.overlaps
            overlap = None if overlaps is None else overlaps.after(paths[0][:-1], paths[1][:-1])
            if overlap is not None:
                for side in (0, 1):
                    at = _node(side, lengths[side] - 1, overlap.tokens[side])
                    found.append(np.stack([at, _node(0, OVERLAP, overlap.numbers[side])], axis=1))
        return np.concatenate(found)

    def _gone_on(
        self,
        paths: tuple[tuple[int, ...], tuple[int, ...]],
        firsts: list[np.ndarray],
        known: np.ndarray,
        whole: list[np.ndarray],
        overlaps: Overlaps,
    ) -> list[np.ndarray]:
        """More nodes that are one, ``[e, 2]`` each: what goes on where a token's spelling ends on the observed path.

        The other side may go on with a token that the spelling of a longer token has there as well, if a text has both:
        `` 3`` before ``.5``, beside `` 3.1``.  So it is asked of the tokenizer.

        Args:
            known: the edges so far.
            whole: the nodes of the whole chunk.
        """
        more: list[tuple[np.ndarray, np.ndarray]] = []
        place, token = _of_node(np.unique(known))
        for side, path in enumerate(paths):
            against, several = paths[1 - side], len(path) > 1

            def leaf(side: int, ids: tuple[int, ...]) -> np.ndarray:
                """Where tokens leave a side's path."""
                at = next((i for i, (a, b) in enumerate(zip(ids, paths[side], strict=False)) if a != b), len(ids))
                if at >= len(paths[side]):
                    return whole[side]
                return _node(side, at, ids[at] if at < len(ids) and ids[at] >= 0 else REST)

            rows = firsts[side]
            first = (self.sides[side].tokens[rows] == path[0]) & several
            pieces = self.sides[side].pieces[rows]
            count = (pieces >= 0).sum(axis=1)
            looked = np.array(against[:MAX_PIECES])
            on_path = np.where(pieces[:, : len(looked)] >= 0, pieces[:, : len(looked)] == looked, True).all(axis=1)
            for at in np.flatnonzero(on_path & (count < len(against))).tolist():
                own, begin = int(self.sides[side].tokens[rows[at]]), int(count[at])
                node = _node(side, 1, REST) if first[at] else _node(side, 0, own)
                for depth in range(begin, len(against)):
                    more.append((node, _node(1 - side, depth, REST)))
                    listed = token[
                        (place == 2 * depth + 1 - side) & (token < REST) & (token != against[depth])
                    ].tolist()
                    lasts = [against[depth], *listed]
                    goes_on, *written = overlaps.written_before(side, own, against[begin:depth], lasts)
                    for t, ids in zip(listed, written, strict=True):
                        if ids:
                            more.append((leaf(side, ids) if first[at] else node, _node(1 - side, depth, t)))
                    if not goes_on:
                        break
            # what leaves behind the first token is where its other spellings leave
            for at in np.flatnonzero(first & ~on_path).tolist():
                spelled = tuple(pieces[at, : count[at]].tolist())
                ids = overlaps.written_as(side, spelled)
                if ids[:1] == path[:1]:
                    more.append((leaf(side, ids), leaf(1 - side, spelled)))
            if several:
                for last, theirs in overlaps.longer(side, path):
                    more.append((_node(side, len(path) - 1, last), leaf(1 - side, theirs)))
        return [np.array(more, np.int64).reshape(-1, 2)]

    def _mates(self, side: int, rows: np.ndarray, path: tuple[int, ...]) -> np.ndarray:
        """The leaf of the other side, whose path this is, to which each of these spellings leads."""
        pieces, m = self.sides[side].pieces[rows], len(path)
        looked = np.array(path[:MAX_PIECES])
        agree = np.zeros((len(rows), MAX_PIECES + 1), bool)
        agree[:, : len(looked)] = pieces[:, : len(looked)] == looked
        common, count = np.argmin(agree, axis=1), (pieces >= 0).sum(axis=1)
        piece = pieces[np.arange(len(rows)), np.minimum(common, MAX_PIECES - 1)]
        token = np.where(common < count, piece, REST)
        whole = common >= m
        return _node(1 - side, np.where(whole, m - 1, common), np.where(whole, path[-1], token))


class _Tokens(NamedTuple):
    """What leaves one side's path: depth, token or REST, and the leaf, -1 for none; int64 ``[e]``."""

    depth: np.ndarray
    token: np.ndarray
    leaf: np.ndarray


def _side(
    path: tuple[int, ...], found: _Tokens, leaf_level: np.ndarray, classes: np.ndarray | None, first: int
) -> SideLeaves:
    """
    Args:
        leaf_level: of the leaves that are components; after them come those for all deeper ones, level after level.
        classes: of this side's tokens, where the first tokens' differ: ``first`` is that of ``x_1``.
    """
    n = len(path)
    whole = found.leaf[(found.depth == n - 1) & (found.token == path[-1])][0]
    listed = (found.token < REST) & ((found.leaf >= 0) | (classes is not None))
    listed &= (found.depth < n - 1) | (found.token != path[-1])
    depth, token, leaf = found.depth[listed], found.token[listed], found.leaf[listed]
    other = np.zeros(len(token), np.int64) if classes is None else (classes[token] != first) & (depth == 0)
    leaves = len(leaf_level) + 1  # and none
    groups, slot = np.unique((depth * leaves + leaf + 1) * 2 + other, return_inverse=True)
    group_depth, group_leaf = np.divmod(groups // 2, leaves)
    slots = n + len(groups)
    implied = (found.token == REST) & (found.depth < n) & (found.depth > 0)
    rest_leaf = np.full(n - 1, -1)
    rest_leaf[found.depth[implied] - 1] = found.leaf[implied]
    slot_depth = np.concatenate([np.arange(n), group_depth, np.arange(1, n)])
    slot_leaf = np.concatenate([np.full(n - 1, -1), [whole], group_leaf - 1, rest_leaf])
    # a slot counts in its own leaf, and at each level above in the leaf of all deeper ones
    there = np.flatnonzero(slot_leaf >= 0)
    level = leaf_level[slot_leaf[there]]
    pair = np.repeat(np.arange(len(there)), level + 1)
    at = np.arange(len(pair)) - np.repeat(np.cumsum(level + 1) - level - 1, level + 1)
    pair_slot = there[pair]
    start = np.full(int(leaf_level.max()) + 1, n)
    np.minimum.at(start, at, slot_depth[pair_slot])
    classed = np.flatnonzero(slot_depth[:slots] == 0) if classes is not None else np.zeros(0, np.int64)
    numbers = np.concatenate([np.full(n, 0 if classes is None else classes[path[0]] != first), groups % 2])
    return SideLeaves(
        depth=np.concatenate([np.arange(n), depth]),
        token=np.concatenate([path, token]),
        slot=np.concatenate([np.arange(n), n + slot.reshape(-1)]),
        slots=slots,
        slot_depth=slot_depth,
        pair_slot=pair_slot,
        pair_leaf=np.where(at == level[pair], slot_leaf[pair_slot], len(leaf_level) + at),
        pair_from=start[at],
        pair_to=slot_depth[pair_slot],
        class_slot=classed,
        class_number=numbers[classed],
    )


def _sorted_by_class(side: SpelledTokens) -> tuple[np.ndarray, np.ndarray]:
    """The rows of spellings class after class, and where each class starts."""
    of_row = side.classes[side.tokens]
    rows = np.argsort(of_row, kind="stable")
    return rows, np.searchsorted(of_row[rows], np.arange(int(of_row.max(initial=-1)) + 2))

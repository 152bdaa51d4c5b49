"""Which tokens can follow a token in a text: for byte-pair encodings, exactly.

A byte-pair encoding writes a text in one way, its *canonical* sequence, and a sequence is canonical if and only if each
two neighbours in it are (Vieira et al., arXiv 2506.07956; Phan et al., 2406.16829).  Two neighbours are if

- the pre-tokenizer cuts neither of the two, seen with the other beside it; and
- it cuts between them, or no merge joins a piece at the end of the first with one at the beginning of the second before
  both are part of something longer.

The second is told without encoding anything.  The *right spine* of a token is itself, the right one of the two pieces
that it is merged of, the right one of that one's, ..; the left spine of the other alike.  A merge joins pieces of the
two spines, and it comes first if it does so before each one's own next merge.  The tokens with a piece on their left
spine are a run in an order of all tokens, so those that cannot follow a token are some runs.
"""

from bisect import bisect_right
from collections import defaultdict
from typing import NamedTuple

import numpy as np

from nemo_xtoken.vocab.cuts import Cuts
from nemo_xtoken.vocab.vocabulary import Vocabulary

__all__ = ["Neighbours"]

#: Later than any merge.
NEVER = 1 << 62
#: A time is the number of the last merge that had to come before, and then that of the merge itself.
SHIFT = 1 << 24


class _Made(NamedTuple):
    """How each token is merged; lists ``[V]``.

    Attributes:
        left, right: its two pieces, -1 for a single symbol and for tokens that no merges make.
        time: when.
        makeable: whether merges make it, or it is a symbol.
    """

    left: list[int]
    right: list[int]
    time: list[int]
    makeable: list[bool]


class Neighbours:
    """
    Args:
        vocabulary: of a byte-pair encoding.

    Raises:
        InputError: it is another kind of tokenizer.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        pairs = vocabulary.byte_pairs()
        size = vocabulary.size
        self.size = size
        self._cuts = Cuts(pairs.cuts, vocabulary.token_bytes)
        self._ids, self._bytes = vocabulary.id_of_bytes, vocabulary.token_bytes
        ids = np.array(pairs.merges, np.int64).reshape(-1, 3)
        self._made = _derive(ids, size, pairs.symbols)
        self._free = np.ones(size, bool)  # roles, tokens that are looked for before all others, gaps
        self._free[sorted(pairs.symbols | set(ids[:, 2].tolist()) | pairs.whole)] = False
        self._never = np.array(
            [data is not None and self._ids.get(data) != t for t, data in enumerate(self._bytes)], bool
        )
        unmade = ~np.array(self._made.makeable) & ~self._free
        self._never |= unmade & ~np.isin(np.arange(size), sorted(pairs.whole))
        self._unmade = unmade & ~self._never
        self._starting = sorted((self._bytes[t] or b"", int(t)) for t in np.flatnonzero(self._unmade))
        self._runs(ids)

    def key(self, before: int | None, last: int) -> tuple[str, str]:
        """What `possible` depends on, beside the last token."""
        return self._cuts.key(before, last)

    def possible(self, before: int | None, last: int) -> np.ndarray:
        """bool ``[V]``: the tokens that can come after these two, whatever follows; some milliseconds.

        Args:
            before: None: not known.  It may decide where a pre-tokenizer cuts: after a full stop that stands behind a
                bracket a word begins, behind a letter it has begun with the stop.
            last: the token right before.
        """
        if self._free[last]:
            return ~self._never
        between, inside = self._cuts.after(self._cuts.key(before, last))
        dead = self._unmade.copy() if not self._unmade[last] else np.ones(self.size, bool)
        dead[self._order] |= self._joined(last)
        for start in range(bisect_right(self._starting, (self._bytes[last] or b"", self.size)), len(self._starting)):
            data = self._starting[start][0]
            if not data.startswith(self._bytes[last] or b"?"):
                break
            rest = self._ids.get(data[len(self._bytes[last] or b"") :])
            if rest is not None:
                dead[rest] = True
        return ((between | ~dead) & ~inside & ~self._never) | self._free

    def _joined(self, last: int) -> np.ndarray:
        """bool ``[V]`` in the order of runs: those of which a merge joins a piece with one of ``last``."""
        starts, stops = [], []
        piece, limit = last, NEVER
        while piece >= 0:
            a, b = self._of_left[piece], self._of_left[piece + 1]
            first = self._time[a:b] < limit
            starts.append(self._start[a:b][first])
            stops.append(self._stop[a:b][first])
            limit = self._made.time[piece]
            piece = self._made.right[piece]
        edges = np.bincount(np.concatenate(starts), minlength=self.size + 1)
        edges -= np.bincount(np.concatenate(stops), minlength=self.size + 1)
        return edges.cumsum()[:-1] > 0

    def _runs(self, ids: np.ndarray) -> None:
        """An order in which those with a piece on their left spine follow it, those that leave it latest first."""
        made = self._made
        children = defaultdict(list)
        for token, begins in enumerate(made.left):
            if begins >= 0:
                children[begins].append(token)
        for listed in children.values():
            listed.sort(key=lambda t: -made.time[t])
        order: list[int] = []
        stop = np.zeros(self.size, np.int64)
        for root in range(self.size):
            if made.left[root] >= 0:
                continue
            waiting = [(root, False)]
            while waiting:
                token, done = waiting.pop()
                if done:
                    stop[token] = len(order)
                    continue
                order.append(token)
                waiting.append((token, True))
                waiting += [(child, False) for child in reversed(children[token])]
        self._order = np.array(order)
        place = np.empty(self.size, np.int64)
        place[self._order] = np.arange(self.size)
        left, right, number = ids[:, 0], ids[:, 1], np.arange(len(ids))
        times = _time(number, np.array(made.time)[left], np.array(made.time)[right])
        by_left = np.argsort(left, kind="stable")
        self._of_left = np.searchsorted(left[by_left], np.arange(self.size + 1))
        self._time, joined = times[by_left], right[by_left]
        self._start, self._stop = place[joined], place[joined] + 1
        for n, (piece, time) in enumerate(zip(joined.tolist(), self._time.tolist(), strict=True)):
            longer = children.get(piece, [])
            later = bisect_right(longer, -time, key=lambda t: -made.time[t])
            if later:
                self._stop[n] = stop[longer[later - 1]]


def _time(number: np.ndarray, *pieces: np.ndarray) -> np.ndarray:
    """When merges come: not before their pieces are there."""
    before = np.maximum.reduce([p // SHIFT for p in pieces])
    found: np.ndarray = np.maximum(number + 1, before) * SHIFT + number + 1
    return found


def _derive(ids: np.ndarray, size: int, symbols: frozenset[int]) -> _Made:
    """Of several ways to merge a token, the one that is taken: in which no other merge crosses the place before."""
    left, right, time = [-1] * size, [-1] * size, [0] * size
    makeable = [False] * size
    for symbol in symbols:
        makeable[symbol] = True
    numbers = {a * size + b: n + 1 for n, (a, b, _) in enumerate(ids.tolist())}
    ways = defaultdict(list)
    for n, (a, b, made) in enumerate(ids.tolist()):
        ways[made].append((n + 1, a, b))

    def when(n: int, a: int, b: int) -> int:
        return max(n, time[a] // SHIFT, time[b] // SHIFT) * SHIFT + n

    def crossed(at: int, a: int, b: int) -> bool:
        """Whether another merge joins pieces of both sides first."""
        spine, other = [], b
        end = at
        while other >= 0:
            spine.append((other, end))
            end, other = time[other], left[other]
        piece, limit = a, at
        while piece >= 0:
            row = piece * size
            for other, end in spine:
                n = numbers.get(row + other)
                if n is not None and (piece != a or other != b):
                    t = when(n, piece, other)
                    if t < limit and t <= end:
                        return True
            limit, piece = time[piece], right[piece]
        return False

    waiting = sorted(ways, key=lambda made: min(ways[made]))
    while waiting:
        later = []
        for made in waiting:
            known = [w for w in ways[made] if makeable[w[1]] and makeable[w[2]]]
            good = [w for w in known if not crossed(when(*w), w[1], w[2])]
            if good:
                n, left[made], right[made] = min(good, key=lambda w: when(*w))
                time[made], makeable[made] = when(n, left[made], right[made]), True
            elif len(known) < len(ways[made]):
                later.append(made)
        if len(later) == len(waiting):
            break
        waiting = later
    return _Made(left, right, time, makeable)

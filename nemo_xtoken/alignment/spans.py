"""The finest partition of two tokenizations of the same bytes, by byte offsets.

A place in the bytes where a token ends on both sides is a cut; what lies between two neighbouring cuts is a chunk, and
it has no cut inside.  That needs the running sums of the tokens' lengths and nothing else: O(T), no loop over tokens.
"""

from dataclasses import dataclass

import numpy as np

__all__ = ["Side", "cuts_of_runs", "match_places", "spans_between"]


@dataclass(frozen=True)
class Side:
    """One tokenization.

    Attributes:
        text: int64 ``[n]``, indices of the tokens that have bytes.
        ends: int64 ``[n + 1]``, byte offset in front of each of these and at the end: strictly increasing.
        total: number of tokens, with those that have no bytes (roles, gaps in the ids).
        silent: int64 ``[z]``, indices of the tokens without bytes.
    """

    text: np.ndarray
    ends: np.ndarray
    total: int
    silent: np.ndarray

    @staticmethod
    def of(lengths: np.ndarray) -> "Side":
        """From the byte length of each token, int ``[T]``."""
        has_text = lengths > 0
        text = np.flatnonzero(has_text)
        ends = np.zeros(len(text) + 1, np.int64)
        np.cumsum(lengths[text], out=ends[1:])
        silent = np.flatnonzero(~has_text) if len(text) < len(lengths) else np.empty(0, np.int64)
        return Side(text, ends, len(lengths), silent)

    def before(self, cut: np.ndarray) -> np.ndarray:
        """Index after the last token with text that ends at or before cut ``cut`` (a count of such tokens)."""
        return np.concatenate([[0], self.text + 1])[cut]

    def after(self, cut: np.ndarray) -> np.ndarray:
        """Index of the first token with text after cut ``cut``; `total` after the last."""
        return np.concatenate([self.text, [self.total]])[cut]


def cuts_of_runs(student: Side, teacher: Side, runs: np.ndarray) -> np.ndarray:
    """int64 ``[C, 3]``: student and teacher tokens with text in front of each common cut, and the run it lies in.

    Args:
        runs: ``[R, 3]`` from `regions.common_runs`.

    The start and the end of both sides are added where they are in no run, as run -1.
    """
    parts = []
    if len(runs) == 1 and runs[0, 0] == runs[0, 1] == 0 and runs[0, 2] == student.ends[-1] == teacher.ends[-1]:
        # Equal streams, nearly always.  A mask over the bytes is several times faster than a search.
        mask = np.zeros(int(student.ends[-1]) + 1, bool)
        mask[teacher.ends] = True
        s = np.flatnonzero(mask[student.ends])
        mask[teacher.ends] = False
        mask[student.ends] = True
        t = np.flatnonzero(mask[teacher.ends])
        return np.stack([s, t, np.zeros(len(s), np.int64)], axis=1)
    if len(runs):
        starts, shifts, stops = runs[:, 0], runs[:, 1] - runs[:, 0], runs[:, 0] + runs[:, 2]
        last = np.searchsorted(starts, student.ends, side="right") - 1
        # A place may be the end of one run and the start of the next, where the other side has something between.
        for run in (last - 1, last):
            s = np.flatnonzero((run >= 0) & (student.ends <= stops[np.maximum(run, 0)]))
            wanted = student.ends[s] + shifts[run[s]]
            t = np.searchsorted(teacher.ends, wanted)
            found = teacher.ends[np.minimum(t, len(teacher.ends) - 1)] == wanted
            parts.append(np.stack([s[found], t[found], run[s[found]]], axis=1))
    edges = np.array([[0, 0, -1], [len(student.text), len(teacher.text), -1]], np.int64)
    cuts = np.concatenate([*parts, edges])
    cuts = cuts[np.lexsort((-cuts[:, 2], cuts[:, 1], cuts[:, 0]))]
    fresh = np.ones(len(cuts), bool)
    fresh[1:] = (cuts[1:, :2] != cuts[:-1, :2]).any(axis=1)
    return cuts[fresh]


def spans_between(student: Side, teacher: Side, cuts: np.ndarray, equal: np.ndarray) -> np.ndarray:
    """int64 ``[K, 4]`` chunks of the segments between neighbouring cuts whose bytes are equal.

    Args:
        cuts: ``[C, 3]`` from `cuts_of_runs`.
        equal: bool ``[C - 1]``, whether segment c, between cuts c and c + 1, is within one run.

    A segment with a token without bytes in its middle, on either side, is dropped: it is not one stretch of tokens.
    """
    if not equal.any():
        return np.empty((0, 4), np.int64)
    columns = []
    whole = np.ones(int(equal.sum()), bool)
    for side, at in ((student, cuts[:, 0]), (teacher, cuts[:, 1])):
        low, high = at[:-1][equal], at[1:][equal]
        first, last = side.text[low], side.text[high - 1] + 1
        if len(side.silent):
            whole &= last - first == high - low
        columns += [first, last]
    return np.stack(columns, axis=1)[whole]


def match_places(
    student: Side, teacher: Side, cuts: np.ndarray, student_codes: np.ndarray, teacher_codes: np.ndarray
) -> np.ndarray:
    """int64 ``[K, 4]``: 1-to-1 chunks of tokens without bytes that stand at the same cut in the same role.

    Args:
        cuts: ``[C, >= 2]``, the cuts to look at.
        student_codes: int ``[z]``, the role of each of `Side.silent`, negative for those that match nothing.
        teacher_codes: the same; equal roles have equal codes.

    Several at one cut are matched one after the other while their roles agree, from the front and then from the back;
    a role that only one side has is left out, and nothing else is.
    """
    if not len(student.silent) or not len(teacher.silent) or not len(cuts):
        return np.empty((0, 4), np.int64)
    ranges = []
    for side, at in ((student, cuts[:, 0]), (teacher, cuts[:, 1])):
        ranges += [np.searchsorted(side.silent, side.before(at)), np.searchsorted(side.silent, side.after(at))]
    s_low, s_high, t_low, t_high = ranges
    both = np.flatnonzero((s_high > s_low) & (t_high > t_low))
    # One on each side, nearly always: all of them at once.
    single = (s_high - s_low == 1) & (t_high - t_low == 1)
    one = both[single[both]]
    one = one[(student_codes[s_low[one]] >= 0) & (student_codes[s_low[one]] == teacher_codes[t_low[one]])]
    pairs = [*zip(student.silent[s_low[one]], teacher.silent[t_low[one]], strict=True)]
    for c in both[~single[both]].tolist():
        s, t = np.arange(s_low[c], s_high[c]), np.arange(t_low[c], t_high[c])
        for i, j in _matched(student_codes[s], teacher_codes[t]):
            pairs.append((student.silent[s[i]], teacher.silent[t[j]]))
    if not pairs:
        return np.empty((0, 4), np.int64)
    at = np.array(pairs, np.int64)
    at = at[np.argsort(at[:, 0], kind="stable")]
    return np.stack([at[:, 0], at[:, 0] + 1, at[:, 1], at[:, 1] + 1], axis=1)


def _matched(a: np.ndarray, b: np.ndarray) -> list[tuple[int, int]]:
    """Index pairs, increasing, of equal non-negative codes."""
    least = min(len(a), len(b))
    agree = (a[:least] == b[:least]) & (a[:least] >= 0)
    front = least if agree.all() else int(agree.argmin())
    out = [(i, i) for i in range(front)]
    a, b = a[front:], b[front:]
    least = min(len(a), len(b))
    agree = (a[::-1][:least] == b[::-1][:least]) & (a[::-1][:least] >= 0)
    tail = least if agree.all() else int(agree.argmin())
    # Greedy in between: each takes the first that is left on the other side.
    j = 0
    middle = b[: len(b) - tail].tolist()
    for i, code in enumerate(a[: len(a) - tail].tolist()):
        if code >= 0 and code in middle[j:]:
            j = middle.index(code, j) + 1
            out.append((front + i, front + j - 1))
    out += [(front + len(a) - x, front + len(b) - x) for x in range(tail, 0, -1)]
    return out

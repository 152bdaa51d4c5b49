"""Where two byte streams are equal: the runs that they share, in time linear in their length.

Two decodings of one text differ in few places (a normalised accent, a dummy space in front, a marker that one side
spells out, a text cut short).  After a difference the streams are brought together again at the nearest run of ``k``
bytes that both have, looked for in windows that grow four times at a time.  A window of w bytes costs O(w), and where a
difference needs it the streams advance by a quarter of it or more, so the whole is O(N) however many there are.
"""

import numpy as np

__all__ = ["common_runs", "runs_of_part"]

_FIRST_WINDOW, _GROWTH = 16, 4
_RUNS = (3, 6, 12, 24, 32)  # bytes that must agree; more in larger windows, where chance agreement is likelier


def common_runs(a: bytes, b: bytes) -> np.ndarray:
    """The runs of two whole streams; see `runs_of_part`."""
    runs = runs_of_part(a, b, True, True)
    assert runs is not None
    return runs


def runs_of_part(a: bytes, b: bytes, first: bool, last: bool) -> np.ndarray | None:
    """int64 ``[R, 3]``: start in ``a``, start in ``b``, length of runs of equal bytes; increasing on both sides.

    Each run is as long as it can be to the right, and no two touch on both sides.  A space that only one stream has in
    front is skipped where more is equal after it: otherwise, in a text that itself starts with spaces, it would be
    taken for one of them and the difference would be placed after them.

    Args:
        first, last: the streams begin, end here.  Otherwise they are parts of longer ones, which are together at the
            beginning and go on after the end.

    Returns:
        None: what comes after the end, or before the beginning, would have to be known.
    """
    runs: list[tuple[int, int, int]] = []
    starts = [(0, 0)] + ([(1, 0)] * a.startswith(b" ") + [(0, 1)] * b.startswith(b" ") if first else [])
    i, j = max(starts, key=lambda start: _common_prefix(a, start[0], b, start[1]))
    while i < len(a) and j < len(b):
        length = _common_prefix(a, i, b, j)
        if length:
            runs.append((i, j, length))
            i, j = i + length, j + length
        elif not runs and not first:
            return None
        if i == len(a) or j == len(b):
            break
        i, j, at_end = _next_agreement(a, i, b, j)
        if at_end and not last:
            return None
    if not last and (i, j) != (len(a), len(b)):
        return None
    return np.array(runs, np.int64).reshape(-1, 3)


def _common_prefix(a: bytes, i: int, b: bytes, j: int) -> int:
    """How many bytes agree from ``a[i]`` and ``b[j]`` on; O(of the answer)."""
    limit = min(len(a) - i, len(b) - j)
    done, step = 0, 64
    while done < limit:
        step = min(step, limit - done)
        x, y = a[i + done : i + done + step], b[j + done : j + done + step]
        if x != y:
            differ = np.frombuffer(x, np.uint8) != np.frombuffer(y, np.uint8)
            return done + int(differ.argmax())
        done += step
        step *= 2
    return done


def _next_agreement(a: bytes, i: int, b: bytes, j: int) -> tuple[int, int, bool]:
    """The places nearest to ``i`` and ``j`` (by the sum of the two steps) where a run of bytes agrees; else where the
    common end of both begins.  Last: whether it was looked for up to an end."""
    window, runs = _FIRST_WINDOW, list(_RUNS)
    while True:
        k = runs[0]
        end_a, end_b = min(len(a), i + window), min(len(b), j + window)
        first: dict[bytes, int] = {}
        for y in range(j, min(end_b, len(b) - k + 1)):
            first.setdefault(b[y : y + k], y)
        best: tuple[int, int, int] | None = None
        for x in range(i, min(end_a, len(a) - k + 1)):
            if best is not None and x - i >= best[0]:
                break
            y = first.get(a[x : x + k], -1)
            if y >= 0 and (best is None or x - i + y - j < best[0]):
                best = (x - i + y - j, x, y)
        if best is not None:
            return best[1], best[2], end_a == len(a) or end_b == len(b)
        if end_a == len(a) and end_b == len(b):
            rest = min(len(a) - i, len(b) - j)
            common = _common_prefix(a[len(a) - rest :][::-1], 0, b[len(b) - rest :][::-1], 0)
            return len(a) - common, len(b) - common, True
        window *= _GROWTH
        runs = runs[1:] or runs

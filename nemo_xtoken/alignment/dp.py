"""X-Token's dynamic programme over canonical tokens (arXiv 2605.21699, section 3), for text that differs.

A global alignment of n student with m teacher tokens.  Scores, in units of 1.5 so that they are exact integers:

    equal tokens +2,  unequal diagonal -2,  gap -1,  one token equal to k of the other side +k (2 <= k <= 4).

Ties go to the diagonal, then up (the student's token is a gap), then left; a span is taken only where it is strictly
better than all three.  No token with text is empty, so at most one span of equal text can end in a cell.

A row is computed at once: only "left" stays within the row, and a maximum over prefixes of ``base[j] + j`` resolves it.
"""

from collections.abc import Hashable, Sequence

import numpy as np

__all__ = ["EQUAL", "GAP", "MAX_SPAN", "UNEQUAL", "align_tokens"]

EQUAL, UNEQUAL, GAP, MAX_SPAN = 2, -2, -1, 4
_DIAGONAL, _UP, _LEFT = 0, 1, 2
_ONE_TO = {k: 1 + k for k in range(2, MAX_SPAN + 1)}  # 3, 4, 5: one student token, k teacher tokens
_TO_ONE = {k: 4 + k for k in range(2, MAX_SPAN + 1)}  # 6, 7, 8: k student tokens, one teacher token
_STEP = {_DIAGONAL: (1, 1), _UP: (1, 0), _LEFT: (0, 1)}
_STEP |= {code: (1, k) for k, code in _ONE_TO.items()} | {code: (k, 1) for k, code in _TO_ONE.items()}

Token = bytes | Hashable


def align_tokens(student: Sequence[Token | None], teacher: Sequence[Token | None]) -> list[tuple[int, int, int, int]]:
    """Chunks ``(student_start, student_end, teacher_start, teacher_end)`` of the best alignment.

    Args:
        student: n canonical tokens: bytes (only these take part in spans), any other hashable for a role, None for a
            token that equals nothing.
        teacher: m of them.

    Only equal pairs and spans are chunks.  An unequal pair on the diagonal leaves a gap on both sides: it claims no
    equal text.  Time and memory (one byte a cell) are O(n*m).
    """
    n, m = len(student), len(teacher)
    if not n or not m:
        return []
    if n == 1 and m == 1:
        return [(0, 1, 0, 1)] if student[0] is not None and student[0] == teacher[0] else []
    codes: dict[Hashable, int] = {}
    one = [_codes(student, codes, -1), _codes(teacher, codes, -2)]
    spans = [
        {k: _span_codes(tokens, k, codes, absent) for k in range(2, MAX_SPAN + 1)}
        for tokens, absent in ((student, -1), (teacher, -2))
    ]
    if n <= m:
        back = _table(one[0], one[1], spans[0], spans[1], False)
    else:  # fewer, longer rows
        back = _table(one[1], one[0], spans[1], spans[0], True).T
    chunks = []
    i, j = n, m
    while i and j:
        step = int(back[i, j])
        di, dj = _STEP[step]
        if step > _LEFT or (step == _DIAGONAL and one[0][i - 1] == one[1][j - 1]):
            chunks.append((i - di, i, j - dj, j))
        i, j = i - di, j - dj
    return chunks[::-1]


def _codes(tokens: Sequence[Token | None], codes: dict[Hashable, int], absent: int) -> np.ndarray:
    """An integer per token, the same for equal tokens; ``absent`` (another per side) for None."""
    return np.array([absent if t is None else codes.setdefault(t, len(codes)) for t in tokens], np.int32)


def _span_codes(tokens: Sequence[Token | None], k: int, codes: dict[Hashable, int], absent: int) -> np.ndarray:
    """int32 ``[len(tokens) + 1]``: at j the code of the k tokens that end before j, joined; ``absent`` where no token
    of either side has that text."""
    out = np.full(len(tokens) + 1, absent, np.int32)
    for j in range(k, len(tokens) + 1):
        run = tokens[j - k : j]
        if all(isinstance(t, bytes) for t in run):
            out[j] = codes.get(b"".join(run), absent)  # type: ignore[arg-type]
    return out


def _table(
    rows: np.ndarray,
    cols: np.ndarray,
    row_spans: dict[int, np.ndarray],
    col_spans: dict[int, np.ndarray],
    swapped: bool,
) -> np.ndarray:
    """Back pointers int8 ``[len(rows) + 1, len(cols) + 1]``.  ``swapped``: the rows are the teacher's tokens."""
    n, m = len(rows), len(cols)
    back = np.empty((n + 1, m + 1), np.int8)
    down, along = (_LEFT, _UP) if swapped else (_UP, _LEFT)  # what a step over a row, over a column means
    one_row, many_rows = (_TO_ONE, _ONE_TO) if swapped else (_ONE_TO, _TO_ONE)
    forms = [(k, True, code) for k, code in one_row.items()] + [(k, False, code) for k, code in many_rows.items()]
    j = np.arange(m + 1, dtype=np.int32)
    above = [GAP * j]  # the last MAX_SPAN rows of scores, newest first
    back[0] = along
    for i in range(1, n + 1):
        diagonal = np.full(m + 1, np.iinfo(np.int32).min // 2, np.int32)
        diagonal[1:] = above[0][:-1] + np.where(cols == rows[i - 1], np.int32(EQUAL), np.int32(UNEQUAL))
        vertical = above[0] + GAP
        best_span: np.ndarray | None = None
        span_code: np.ndarray | None = None
        for k, single_row, code in forms:
            if single_row:
                hits = np.flatnonzero(col_spans[k] == rows[i - 1])
                scores = above[0][hits - k] + k if hits.size else None
            else:
                hits = np.flatnonzero(cols == row_spans[k][i]) + 1 if i >= k else np.empty(0, np.int64)
                scores = above[k - 1][hits - 1] + k if hits.size else None
            if scores is None:
                continue
            if best_span is None or span_code is None:
                best_span = np.full(m + 1, np.iinfo(np.int32).min // 2, np.int32)
                span_code = np.zeros(m + 1, np.int8)
            best_span[hits], span_code[hits] = scores, code
        base = np.maximum(diagonal, vertical)
        if best_span is not None:
            base = np.maximum(base, best_span)
        row = np.maximum.accumulate(base - GAP * j) + GAP * j
        horizontal = np.full_like(row, np.iinfo(np.int32).min // 2)
        horizontal[1:] = row[:-1] + GAP
        up, left = (horizontal, vertical) if swapped else (vertical, horizontal)
        step = np.where(up >= left, np.int8(_UP), np.int8(_LEFT))
        three = np.maximum(up, left)
        step[diagonal >= three] = _DIAGONAL
        if best_span is not None and span_code is not None:
            np.maximum(three, diagonal, out=three)
            taken = best_span > three
            step[taken] = span_code[taken]
        step[0] = down
        back[i] = step
        above = [row, *above[: MAX_SPAN - 1]]
    return back

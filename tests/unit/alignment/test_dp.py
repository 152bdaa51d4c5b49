"""The dynamic programme against the plain one, cell by cell with the paper's numbers."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nemo_xtoken.alignment.dp import align_tokens

Tokens = list[bytes | int | None]


def plain(a: Tokens, b: Tokens) -> list[tuple[int, int, int, int]]:
    """O(n*m) in Python: equal 3, unequal -3, gap -1.5, spans of 2 to 4 tokens 1.5 each."""
    n, m = len(a), len(b)
    score = [[0.0] * (m + 1) for _ in range(n + 1)]
    came = [[(0, 0)] * (m + 1) for _ in range(n + 1)]
    for i in range(n + 1):
        for j in range(m + 1):
            if i == j == 0:
                continue
            options = []
            if i and j:
                same = a[i - 1] is not None and a[i - 1] == b[j - 1]
                options.append((score[i - 1][j - 1] + (3 if same else -3), (1, 1)))
            if i:
                options.append((score[i - 1][j] - 1.5, (1, 0)))
            if j:
                options.append((score[i][j - 1] - 1.5, (0, 1)))
            for k in (2, 3, 4):
                if i and j >= k and joined(b[j - k : j]) == a[i - 1] != None:  # noqa: E711
                    options.append((score[i - 1][j - k] + 1.5 * k, (1, k)))
            for k in (2, 3, 4):
                if j and i >= k and joined(a[i - k : i]) == b[j - 1] != None:  # noqa: E711
                    options.append((score[i - k][j - 1] + 1.5 * k, (k, 1)))
            best = options[0]
            for option in options[1:]:  # in this order, and only where strictly better
                best = option if option[0] > best[0] else best
            score[i][j], came[i][j] = best
    chunks, i, j = [], n, m
    while i or j:
        di, dj = came[i][j]
        if di and dj and (di + dj > 2 or (a[i - 1] is not None and a[i - 1] == b[j - 1])):
            chunks.append((i - di, i, j - dj, j))
        i, j = i - di, j - dj
    return chunks[::-1]


def joined(tokens: Tokens) -> bytes | None:
    return b"".join(tokens) if all(isinstance(t, bytes) for t in tokens) else None  # type: ignore[arg-type]


token = st.sampled_from([b"a", b"b", b"aa", b"ab", b"ba", b"aaa", b"abab", 1, 2, None])


@settings(deadline=None, max_examples=400)
@given(st.lists(token, max_size=9), st.lists(token, max_size=9))
def test_equals_the_plain_programme(a: Tokens, b: Tokens) -> None:
    assert align_tokens(a, b) == plain(a, b)


@settings(deadline=None, max_examples=60)
@given(st.lists(token, min_size=15, max_size=40), st.lists(token, min_size=1, max_size=30))
def test_equals_the_plain_programme_on_longer_sequences(a: Tokens, b: Tokens) -> None:
    assert align_tokens(a, b) == plain(a, b)
    assert align_tokens(b, a) == plain(b, a)


@pytest.mark.parametrize(
    ("student", "teacher", "chunks"),
    [
        ([b"201"], [b"2", b"0", b"1"], [(0, 1, 0, 3)]),
        ([b"2", b"0", b"1"], [b"201"], [(0, 3, 0, 1)]),
        ([b"a", b"b", b"c", b"d", b"e"], [b"abcde"], []),  # spans end at four
        ([b"a", b"b"], [b"a", b"c"], [(0, 1, 0, 1)]),
        ([b"x"], [b"y"], []),  # unequal diagonal: a gap on both sides
        ([7, b"a"], [b"a"], [(1, 2, 0, 1)]),  # BOS on one side
        ([7, b"a"], [7, b"a"], [(0, 1, 0, 1), (1, 2, 1, 2)]),
        ([None], [None], []),
        ([None, b"a"], [None, b"a"], [(1, 2, 1, 2)]),
        ([b"ab", 7], [b"a", b"b", 7], [(0, 1, 0, 2), (1, 2, 2, 3)]),
        ([b"aa"], [b"a", 7, b"a"], []),  # no span over a token without text
        ([], [b"a"], []),
        ([b"a"], [], []),
        ([], [], []),
    ],
)
def test_examples(student: Tokens, teacher: Tokens, chunks: list[tuple[int, int, int, int]]) -> None:
    assert align_tokens(student, teacher) == chunks

"""Runs of equal bytes in two streams."""

import random
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nemo_xtoken.alignment.regions import common_runs


def check(a: bytes, b: bytes) -> np.ndarray:
    """The runs, after checking that they are runs."""
    runs = common_runs(a, b)
    i = j = 0
    for n, (x, y, length) in enumerate(runs.tolist()):
        assert length > 0
        assert a[x : x + length] == b[y : y + length]
        assert x >= i
        assert y >= j
        assert n == 0 or (x, y) != (i, j)  # else they would be one
        i, j = x + length, y + length
        assert i == len(a) or j == len(b) or a[i] != b[j]
    return runs


def edited(rng: random.Random, text: bytes, edits: int) -> bytes:
    """``text`` with single bytes replaced, removed or put in, far enough apart to be told apart."""
    out = bytearray(text)
    for at in sorted(rng.sample(range(20, len(text) - 20, 50), edits), reverse=True):
        kind = rng.randrange(3)
        out[at : at + (kind != 0)] = b"" if kind == 1 else b"\xff"
    return bytes(out)


@settings(deadline=None, max_examples=300)
@given(st.text(alphabet="ab é世", max_size=60), st.text(alphabet="ab é世", max_size=60))
def test_runs_of_any_two_streams(a: str, b: str) -> None:
    check(a.encode(), b.encode())


@settings(deadline=None, max_examples=100)
@given(st.integers(0, 10**9), st.integers(0, 30))
def test_small_edits_cost_little(seed: int, edits: int) -> None:
    rng = random.Random(seed)
    a = bytes(rng.choices(b"abcdefghijklmnopqrstuvwxyz ", k=3000))
    runs = check(a, edited(rng, a, edits))
    assert len(runs) <= edits + 1
    assert runs[:, 2].sum() >= len(a) - 4 * edits


@pytest.mark.parametrize("size", [1, 30, 500, 20000])
def test_a_long_insertion_is_stepped_over(size: int) -> None:
    rng = random.Random(3)
    words = bytes(rng.choices(b"abcdefghijklmnopqrstuvwxyz ", k=400))
    inserted = bytes(rng.choices(b"ABCDEFGHIJKLMNOPQRSTUVWXYZ", k=size))
    runs = check(words, words[:200] + inserted + words[200:])
    assert runs.tolist() == [[0, 0, 200], [200, 200 + size, 200]]


def test_ends() -> None:
    assert check(b"", b"").tolist() == []
    assert check(b"", b"abc").tolist() == []
    assert check(b"abc", b"abc").tolist() == [[0, 0, 3]]
    assert check(b"abcdef", b"abc").tolist() == [[0, 0, 3]]
    assert check(b"hello", b" hello").tolist() == [[0, 1, 5]]
    assert check(b"xa", b"yya").tolist() == [[1, 2, 1]]  # too short to trust in the middle, but the ends agree
    assert check(b"abc", b"xyz").tolist() == []


def calls_of(work: Callable[[], Any]) -> int:
    """Function calls made from Python code: a measure of work that no machine's load changes."""
    count = 0

    def profile(frame: Any, event: str, arg: Any) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(profile)
    try:
        work()
    finally:
        sys.setprofile(None)
    return count


@pytest.mark.parametrize("kind", ["many differences", "nothing in common"])
def test_work_grows_no_faster_than_the_text(kind: str) -> None:
    def streams(n: int) -> tuple[bytes, bytes]:
        rng = random.Random(0)
        a = bytes(rng.choices(b"abcdefghijklmnopqrstuvwxyz ", k=n))
        return (a, edited(rng, a, n // 60)) if kind == "many differences" else (a, a.upper().replace(b" ", b"_"))

    small, large = (calls_of(lambda n=n: common_runs(*streams(n))) for n in (8000, 64000))
    assert large < 8 * 1.5 * small

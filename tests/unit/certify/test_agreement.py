"""Two sides of an agreement define one distribution over strings."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from said_strings import assert_agree

from nemo_xtoken.certify.agreement import Agreement, Continuation

ENDS = (100, 200)
LETTERS = b"ab"


@st.composite
def cut(draw, text):
    """Token ids of a text cut somewhere: 2 for a, 3 for b, 4 for aa, .. (the letters as bits after a leading 1)."""
    places = sorted(draw(st.sets(st.integers(1, len(text) - 1)))) if len(text) > 1 else []
    pieces = [text[a:b] for a, b in zip([0, *places], [*places, len(text)], strict=True)]
    return tuple(int("1" + "".join(str(LETTERS.index(c)) for c in piece), 2) for piece in pieces)


def text_of(side, path):
    return b"".join(bytes(LETTERS[int(bit)] for bit in f"{token:b}"[1:]) for token in path)


@st.composite
def agreements(draw):
    texts = draw(
        st.lists(st.binary(min_size=1, max_size=5).map(lambda b: bytes(LETTERS[c % 2] for c in b)), min_size=1)
    )
    said = [Continuation(draw(cut(text)), draw(cut(text))) for text in texts]
    raw = {c: draw(st.floats(0.01, 1)) for c in said}
    total = sum(raw.values())
    return Agreement(said[0], {c: w / total for c, w in raw.items()}, ENDS)


@settings(deadline=None)
@given(agreements())
def test_both_sides_say_the_same_strings(agreement):
    said = assert_agree(agreement, text_of)
    assert math.isclose(sum(said.values()), 1, rel_tol=1e-9)
    wanted = {}
    for c, w in agreement.weights.items():
        wanted[text_of(0, c.student)] = wanted.get(text_of(0, c.student), 0) + w
    assert said == pytest.approx(wanted, rel=1e-9)


def test_the_check_can_fail():
    wrong = Agreement(Continuation((2,), (3,)), {Continuation((2,), (3,)): 1.0}, ENDS)
    with pytest.raises(AssertionError):
        assert_agree(wrong, text_of)


def test_a_spelled_numeral():
    """.9 on 201, the rest on 2 and 19: the teacher says 2 with both, and 0 after it where 201 goes on."""
    one, two, nineteen = Continuation((7,), (2, 0, 1)), Continuation((8,), (2,)), Continuation((9,), (1, 9))
    agreement = Agreement(one, {one: 0.9, two: 0.06, nineteen: 0.04}, ENDS)
    assert agreement.next_token(0) == pytest.approx({7: 0.9, 8: 0.06, 9: 0.04})
    assert agreement.next_token(1) == pytest.approx({2: 0.96, 1: 0.04})
    assert agreement.next_token(1, (2,)) == pytest.approx({0: 0.9375, 200: 0.0625})
    assert agreement.at_right(1)[2] == {1: 1.0}
    assert len(agreement.at_right(0)) == 1

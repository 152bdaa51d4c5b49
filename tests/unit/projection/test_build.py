"""W by its two passes: exact rows, the decaying pieces, fragments, overflow; stochastic rows, the same every time."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizer_zoo import zoo

from nemo_xtoken.errors import InputError
from nemo_xtoken.projection.build import ProjectionRule, build_projection, load_or_build
from nemo_xtoken.vocab.vocabulary import Vocabulary

PAIRS = list(itertools.permutations(sorted(zoo()), 2))


class Fixed:
    """An encoder that spells every text by its characters."""

    def __init__(self, table):
        self.table = {text: i for i, text in enumerate(table)}

    def encode_batch(self, texts):
        return [np.array([self.table[c] for c in text], np.int32) for text in texts]

    def encode(self, text):
        return self.encode_batch([text])[0]


def spelled(tokens, name="t"):
    return Vocabulary(
        name=name, behaviour=name, token_bytes=[t.encode() for t in tokens], roles={}, encoder=Fixed(tokens)
    )


def row(matrix, s):
    return {int(t): float(w) for t, w in zip(matrix.ids[s], matrix.weights[s], strict=True) if t >= 0}


def test_the_numbers_of_the_design():
    teacher = spelled(list("0123456789"))
    student = spelled(["7", "20", "201", "2019", "20190", "11"], "s")
    matrix = build_projection(student, teacher, ProjectionRule.named("whole"))
    assert row(matrix, 0) == {7: 1.0}
    for s, want in (
        (1, [0.90909, 0.09091]),
        (2, [0.90090, 0.09009, 0.00901]),
        (3, [0.90009, 0.09001, 0.00900, 0.00090]),
    ):
        digits = [int(c) for c in student.token_bytes[s].decode()]
        np.testing.assert_allclose([row(matrix, s)[d] for d in digits], want, atol=5.1e-6)
    assert row(matrix, 4) == {}
    assert row(matrix, 5) == {1: pytest.approx(1.0)}  # one entry for the repeated piece
    assert matrix.coverage == {"exact": 1, "multi": 4, "truncated": 0, "empty": 1, "reached": 5}


def test_a_longer_token_keeps_its_first_pieces():
    """As in the code of the paper's authors; only the rule "whole" leaves its row empty."""
    pair = spelled(["20190"], "s"), spelled(list("0123456789"))
    matrix = build_projection(*pair, ProjectionRule.named("paper"))
    assert matrix.coverage["truncated"] == 1
    whole = build_projection(*pair, ProjectionRule.named("whole"))
    assert (row(whole, 0), whole.coverage["empty"]) == ({}, 1)
    np.testing.assert_allclose(
        [row(matrix, 0)[d] for d in (2, 0, 1, 9)], [0.90009, 0.09001, 0.009, 0.0009], atol=5.1e-6
    )


def test_gamma_zero_puts_all_weight_on_the_first_piece():
    matrix = build_projection(spelled(["201"], "s"), spelled(list("012")), ProjectionRule(gamma=0))
    assert row(matrix, 0) == {2: 1.0}


@pytest.mark.parametrize(("student", "teacher"), PAIRS)
def test_rows_of_every_pair_are_stochastic_and_exact_where_tokens_are_equal(student, teacher):
    s, t = zoo()[student], zoo()[teacher]
    matrix = build_projection(s, t)
    assert matrix.ids.shape == (s.size, 4)
    sums = matrix.weights.sum(1, dtype=np.float64)
    np.testing.assert_allclose(sums[~matrix.empty_rows], 1, atol=1e-6)
    assert (sums[matrix.empty_rows] == 0).all()
    for i, token in enumerate(s.token_bytes):
        if token is not None and token in t.id_of_bytes:
            assert row(matrix, i) == {t.id_of_bytes[token]: 1.0}
        elif i in s.roles:
            same = t.id_of_role.get(s.roles[i])
            assert row(matrix, i) == ({} if same is None else {same: 1.0})
    again = build_projection(s, t)
    assert again.ids.tobytes() == matrix.ids.tobytes()
    assert again.weights.tobytes() == matrix.weights.tobytes()


def test_byte_fragments_reach_a_byte_level_teacher():
    """Half a character of one tokenizer is matched by the other's bytes."""
    llama, qwen = zoo()["llama"], zoo()["qwen"]
    fragments = [i for i, b in enumerate(llama.token_bytes) if b is not None and not _is_text(b)]
    assert fragments
    matrix = build_projection(llama, qwen)
    for i in fragments:
        pieces = b"".join(qwen.token_bytes[t] for t in row(matrix, i))
        assert pieces == llama.token_bytes[i] or len(llama.token_bytes[i]) > 4


def test_a_teacher_that_lacks_some_bytes_takes_the_fragments_it_can_spell():
    """SmolLM2's tokenizer has 235 of the 256 bytes."""
    teacher = Vocabulary(
        name="t", behaviour="t", token_bytes=[b"\xe4", b"\xbd", b"a", b"\xe4\xbd"], roles={}, encoder=Fixed("")
    )
    assert not teacher.byte_level
    tokens = [b"\xe4\xbd\xe4", b"a\xbd", b"\xe4\xa0", b"\xff"]
    student = Vocabulary(name="s", behaviour="s", token_bytes=tokens, roles={}, encoder=Fixed(""))
    matrix = build_projection(student, teacher)
    assert [sorted(row(matrix, s)) for s in range(4)] == [[0, 3], [1, 2], [], []]
    assert row(matrix, 0)[3] == pytest.approx(10 / 11)


def _is_text(data):
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


@given(beta=st.floats(0.01, 10), gamma=st.floats(0, 1), pieces=st.integers(1, 8))
@settings(deadline=None)
def test_weights_are_a_decaying_distribution(beta, gamma, pieces):
    weights = ProjectionRule(beta=beta, gamma=gamma, max_pieces=8).weights(pieces)
    assert weights.sum() == pytest.approx(1)
    assert (np.diff(weights) <= 1e-12).all()


@pytest.mark.parametrize("wrong", [{"beta": 0}, {"gamma": -0.1}, {"gamma": 2}, {"max_pieces": 0}, {"overflow": "x"}])
def test_a_wrong_rule_is_refused(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        ProjectionRule(**wrong)


def test_load_or_build_builds_once_and_repairs_its_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("NEMO_XTOKEN_CACHE", str(tmp_path))
    s, t = zoo()["llama"], zoo()["qwen"]
    first = load_or_build(s, t)
    (cached,) = (tmp_path / "projection").glob("*.safetensors")
    stamp = cached.stat().st_mtime_ns
    assert load_or_build(s, t).ids.tobytes() == first.ids.tobytes()
    assert cached.stat().st_mtime_ns == stamp
    load_or_build(s, t, ProjectionRule(gamma=0.5))
    load_or_build(t, s)
    assert len(list((tmp_path / "projection").iterdir())) == 3
    cached.write_bytes(cached.read_bytes()[:100])
    assert load_or_build(s, t).ids.tobytes() == first.ids.tobytes()


@pytest.mark.parametrize(
    "names", [("llama", "qwen"), ("qwen", "sp_bpe"), ("tiktoken", "sp_unigram"), ("sp_model", "qwen")]
)
def test_prefix_gives_the_first_teacher_token_of_every_text(names):
    """All weight on the first piece: `W^T p_S` is the distribution of the first teacher token of the student's text."""
    student, teacher = (zoo()[name] for name in names)
    whole = build_projection(student, teacher, ProjectionRule.named("whole"))
    prefix = build_projection(student, teacher, ProjectionRule.named("prefix"))
    assert prefix.ids.shape == (student.size, 1)
    assert set(np.unique(prefix.weights)) <= {0.0, 1.0}
    cut = build_projection(student, teacher)
    np.testing.assert_array_equal(prefix.ids[:, 0], cut.ids[:, 0])  # pieces are stored in order
    assert not (prefix.empty_rows & ~whole.empty_rows).any()
    for s in np.flatnonzero(~prefix.empty_rows):
        if student.token_bytes[s] is not None:
            assert student.token_bytes[s].startswith(teacher.token_bytes[prefix.ids[s, 0]])


def test_a_long_token_has_a_first_piece():
    matrix = build_projection(spelled(["20190"], "s"), spelled(list("0123456789")), ProjectionRule.named("prefix"))
    assert row(matrix, 0) == {2: 1.0}
    assert matrix.coverage["truncated"] == 1


def test_rules_by_name():
    assert ProjectionRule.named("paper") == ProjectionRule() == ProjectionRule(0.9, 0.1, 4, "truncate")
    assert ProjectionRule.named("prefix") == ProjectionRule(gamma=0.0)
    assert ProjectionRule.named("whole") == ProjectionRule(overflow="empty")
    assert ProjectionRule.named("prefix", overflow="empty").overflow == "empty"
    assert (ProjectionRule().width, ProjectionRule(gamma=0).width) == (4, 1)
    with pytest.raises(InputError, match="a rule for W named 'first'") as error:
        ProjectionRule.named("first")
    assert "paper, prefix, whole" in error.value.expected
    with pytest.raises(InputError, match="gamma"):
        ProjectionRule.named("paper", gamma=3)

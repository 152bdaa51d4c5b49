"""Chunks of real tokenizations: tiling, equal bytes, finest possible; gaps; and what happens where texts differ."""

import functools
import pickle
import unicodedata

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_regions import calls_of
from tokenizer_zoo import NAMES, TEXT, zoo

from nemo_xtoken.alignment import Aligner
from nemo_xtoken.errors import InputError
from nemo_xtoken.vocab import Vocabulary

names = st.sampled_from(NAMES)
texts = st.text(
    st.one_of(
        st.characters(exclude_categories=["Cs"]),
        st.sampled_from("0123456789 \t\n.,'etaon世界你好🙂🚀é\u0301\u0308اللغة▁"),
    ),
    max_size=60,
)


@functools.cache
def aligner_of(a: str, b: str, method: str = "spans") -> Aligner:
    return Aligner(zoo()[a], zoo()[b], method)


def chunks_of(a: str, b: str, x: np.ndarray, y: np.ndarray, method: str = "spans") -> list[list[int]]:
    chunks = aligner_of(a, b, method).align(x, y)
    assert chunks.dtype == np.int32
    assert chunks.shape[1:] == (4,)
    check_chunks(zoo()[a], zoo()[b], x, y, chunks)
    return chunks.tolist()


def check_chunks(a: Vocabulary, b: Vocabulary, x: np.ndarray, y: np.ndarray, chunks: np.ndarray) -> None:
    """Whatever the texts: chunks go forward, are never empty, and have equal bytes, or equal roles, on both sides."""
    i = j = 0
    for s, e, t, f in chunks.tolist():
        assert i <= s < e <= len(x)
        assert j <= t < f <= len(y)
        i, j = e, f
        left, right = [a.token_bytes[k] for k in x[s:e]], [b.token_bytes[k] for k in y[t:f]]
        if None in left or None in right:
            assert e - s == f - t == 1
            assert a.roles[int(x[s])] == b.roles[int(y[t])]
        else:
            assert b"".join(left) == b"".join(right)  # type: ignore[arg-type]


def can_be_cut(a: Vocabulary, b: Vocabulary, x: np.ndarray, y: np.ndarray) -> bool:
    """Whether a chunk of tokens ``x`` and ``y`` has a place inside where a token ends on both sides."""
    inner_a = {len(a.decode_bytes(x[:k])) for k in range(1, len(x))}
    inner_b = {len(b.decode_bytes(y[:k])) for k in range(1, len(y))}
    return bool(inner_a & inner_b)


@settings(deadline=None, max_examples=400)
@given(texts, names, names)
def test_any_text_any_two_tokenizers(text: str, a: str, b: str) -> None:
    x, y = zoo()[a].encode(text), zoo()[b].encode(text)
    chunks = chunks_of(a, b, x, y)
    assert not any(can_be_cut(zoo()[a], zoo()[b], x[s:e], y[t:f]) for s, e, t, f in chunks)
    if zoo()[a].decode_bytes(x) == zoo()[b].decode_bytes(y):  # then they tile both
        assert [0, 0, *(k for c in chunks for k in (c[1], c[3]))][:-2] == [k for c in chunks for k in (c[0], c[2])]
        assert not chunks or chunks[-1][1::2] == [len(x), len(y)]
        assert bool(chunks) == bool(len(x))


@settings(deadline=None, max_examples=200)
@given(texts, texts, names, names)
def test_any_two_texts(one: str, other: str, a: str, b: str) -> None:
    x, y = zoo()[a].encode(one + other), zoo()[b].encode(other + one)
    chunks_of(a, b, x, y)
    chunks_of(a, b, x, y, method="dp")


@settings(deadline=None, max_examples=200)
@given(texts, names, names, st.data())
def test_roles_and_cuts_anywhere(text: str, a: str, b: str, data: st.DataObject) -> None:
    """Role tokens and ids of no token strewn in: still chunks, and what is outside them is as it was."""
    sides = []
    for name in (a, b):
        v = zoo()[name]
        ids = v.encode(text).tolist()
        for _ in range(data.draw(st.integers(0, 3))):
            ids.insert(data.draw(st.integers(0, len(ids))), data.draw(st.sampled_from(sorted(v.roles))))
        sides.append(np.array(ids[: data.draw(st.integers(0, len(ids)))], np.int32))
    chunks_of(a, b, *sides)


@settings(deadline=None, max_examples=150)
@given(texts, names, names)
def test_bos_on_one_side_costs_itself_and_nothing_else(text: str, a: str, b: str) -> None:
    student, teacher = zoo()[a], zoo()[b]
    x, y = student.encode(text), teacher.encode(text)
    if student.bos_id is None:
        return
    without = np.array(chunks_of(a, b, x, y), np.int32).reshape(-1, 4)
    with_bos = chunks_of(a, b, np.r_[student.bos_id, x], y)
    if student.decode_bytes(x) == teacher.decode_bytes(y):
        assert with_bos == np.add(without, [1, 1, 0, 0]).tolist()
    else:
        assert len(with_bos) >= len(without) - 1


def test_bos_and_eos() -> None:
    student, teacher = zoo()["llama"], zoo()["sp_unigram"]
    x = np.array([student.bos_id, student.eos_id])
    y = np.array([teacher.bos_id, teacher.eos_id])
    assert chunks_of("llama", "sp_unigram", x, y) == [[0, 1, 0, 1], [1, 2, 1, 2]]
    assert chunks_of("llama", "sp_unigram", x, y[1:]) == [[1, 2, 0, 1]]
    assert chunks_of("llama", "sp_unigram", x[:1], y[1:]) == []
    assert chunks_of("llama", "sp_unigram", x, y[:0]) == []
    assert chunks_of("llama", "sp_unigram", x[:0], y[:0]) == []


def test_the_worked_example() -> None:
    student, teacher = zoo()["llama"], zoo()["qwen"]
    x, y = student.encode("in 201 "), teacher.encode("in 201 ")
    assert [[student.display(k) for k in x], [teacher.display(k) for k in y]] == [
        ["in", " ", "201", " "],
        ["in", " ", "2", "0", "1", " "],
    ]
    expected = [[0, 1, 0, 1], [1, 2, 1, 2], [2, 3, 2, 5], [3, 4, 5, 6]]
    assert chunks_of("llama", "qwen", x, y) == expected
    assert chunks_of("llama", "qwen", x, y, method="dp") == expected


def test_a_role_inside_a_chunk_breaks_it_and_no_other() -> None:
    student, teacher = zoo()["llama"], zoo()["qwen"]
    x, y = student.encode("in 201 "), teacher.encode("in 201 ")
    y = np.insert(y, 3, teacher.id_of_role["turn"])  # after the "2"
    assert chunks_of("llama", "qwen", x, y) == [[0, 1, 0, 1], [1, 2, 1, 2], [3, 4, 6, 7]]


def test_roles_in_one_place() -> None:
    student, teacher = zoo()["llama"], zoo()["qwen"]
    s = {r: student.id_of_role[r] for r in ("eos", "pad", "turn", "message")}
    t = {r: teacher.id_of_role[r] for r in ("eos", "pad", "turn")}
    x = np.array([*student.encode("a"), s["message"], s["eos"], s["pad"], *student.encode("b"), s["turn"], s["pad"]])
    y = np.array([*teacher.encode("a"), t["eos"], t["turn"], t["pad"], *teacher.encode("b"), t["pad"], t["pad"]])
    assert chunks_of("llama", "qwen", x, y) == [
        [0, 1, 0, 1],
        [2, 3, 1, 2],
        [3, 4, 3, 4],
        [4, 5, 4, 5],
        [6, 7, 6, 7],
    ]


def test_unknown_tokens_are_never_chunks() -> None:
    a, b = zoo()["sp_bpe"], zoo()["sp_unigram"]
    x, y = np.array([a.id_of_role["unk"], a.eos_id]), np.array([b.id_of_role["unk"], b.eos_id])
    assert chunks_of("sp_bpe", "sp_unigram", x, y) == [[1, 2, 1, 2]]
    assert chunks_of("sp_bpe", "sp_unigram", x, y, method="dp") == [[1, 2, 1, 2]]


def test_a_dummy_space_costs_the_first_token_only() -> None:
    student, teacher = zoo()["llama"], zoo()["sp_bpe"]
    text = "hello world, hello"
    x, y = student.encode(text), teacher.encode(text)
    assert [student.display(x[0]), teacher.display(y[0])] == ["he", " he"]
    chunks = chunks_of("llama", "sp_bpe", x, y)
    assert chunks[0][0::2] == [1, 1]
    assert student.decode_bytes(np.concatenate([x[s:e] for s, e, _, _ in chunks])) == text[2:].encode()
    y_apart = np.r_[teacher.encode(" ")[:0], teacher.id_of_bytes[b" "], teacher.id_of_bytes[b"he"], y[1:]]
    assert chunks_of("llama", "sp_bpe", x, y_apart)[0] == [0, 1, 1, 2]  # the space alone is the gap


def test_roles_beside_a_differing_region() -> None:
    student, teacher = zoo()["llama"], zoo()["sp_bpe"]
    x, y = np.r_[student.bos_id, student.encode("he")], np.r_[teacher.bos_id, teacher.encode("he")]
    assert chunks_of("llama", "sp_bpe", x, y) == [[0, 1, 0, 1]]  # BOS in front of "he" and of " he"

    # Two regions with one cut between them: what stands at the cut belongs to one of them.
    v = Vocabulary(
        name="x",
        behaviour="x",
        token_bytes=[b"Xab", b"cdeX", b"Yab", b"cdeY", None],
        roles={4: "eos"},
        encoder=zoo()["llama"].__dict__["_encoder"],
    )
    x, y = np.array([0, 4, 1]), np.array([2, 4, 3])
    chunks = Aligner(v, v).align(x, y)
    check_chunks(v, v, x, y, chunks)
    assert chunks.tolist() == [[1, 2, 1, 2]]


def test_a_marker_that_one_side_spells_out() -> None:
    student, teacher = zoo()["llama"], zoo()["qwen"]
    start, end = "hello world", "the next one"
    x = np.r_[student.encode(start), student.id_of_role["eot"], student.encode(end)]
    spelled = teacher.encode("<|eot_id|>")
    y = np.r_[teacher.encode(start), spelled, teacher.encode(end)]
    plain = chunks_of("llama", "qwen", student.encode(start), teacher.encode(start))
    chunks = chunks_of("llama", "qwen", x, y)
    assert chunks[: len(plain)] == plain
    n, m = len(student.encode(start)), len(teacher.encode(start))
    later = chunks_of("llama", "qwen", student.encode(end), teacher.encode(end))
    moved = np.add(later, [n + 1, n + 1, m + len(spelled), m + len(spelled)])
    assert chunks[len(plain) :] == moved.tolist()


@pytest.mark.parametrize("cut", [1, 57, 300])
def test_texts_cut_short_at_different_places(cut: int) -> None:
    for a, b in (("llama", "qwen"), ("qwen", "llama"), ("llama", "sp_unigram")):
        x, y = zoo()[a].encode(TEXT[:2000]), zoo()[b].encode(TEXT[:2000])
        whole, short = chunks_of(a, b, x, y), chunks_of(a, b, x, y[: len(y) - cut])
        assert len(y) > cut + 100
        kept = [c for c in whole if c[3] <= len(y) - cut]
        assert short[: len(kept)] == kept
        assert len(short) <= len(kept) + 1


def test_normalised_accents_cost_their_own_words_only() -> None:
    student, teacher = zoo()["qwen"], zoo()["qwen_nfc"]
    text = unicodedata.normalize("NFD", "the plain words here, un été là-bas, and the plain words after. " * 4)
    x, y = student.encode(text), teacher.encode(text)
    assert student.decode_bytes(x) != teacher.decode_bytes(y)
    chunks = chunks_of("qwen", "qwen_nfc", x, y)
    covered = student.decode_bytes(np.concatenate([x[s:e] for s, e, _, _ in chunks])).decode()
    assert covered.count("the plain words here") == covered.count("the plain words after") == 4
    assert "\u0301" not in covered


def test_both_methods_agree_on_ordinary_text() -> None:
    x, y = zoo()["llama"].encode(TEXT[:1500]), zoo()["qwen"].encode(TEXT[:1500])
    spans, dp = chunks_of("llama", "qwen", x, y), chunks_of("llama", "qwen", x, y, method="dp")
    short = [c for c in spans if min(c[1] - c[0], c[3] - c[2]) == 1 and max(c[1] - c[0], c[3] - c[2]) <= 4]
    assert set(map(tuple, short)) <= set(map(tuple, dp))


def test_a_huge_differing_region_is_cut_into_pieces() -> None:
    a, b = zoo()["llama"], zoo()["qwen"]
    x, y = a.encode(TEXT), b.encode(TEXT[::-1])
    assert min(len(x), len(y)) > 1200
    chunks_of("llama", "qwen", np.r_[x, a.eos_id], np.r_[y, b.eos_id])


@pytest.mark.parametrize("kind", ["equal streams", "many differences"])
def test_128k_tokens_take_work_in_proportion(kind: str) -> None:
    """No Python per token where the streams are equal; no more than in proportion where they differ."""
    student, teacher = zoo()["qwen"], zoo()["qwen_nfc" if kind == "many differences" else "llama"]
    text = TEXT if kind == "equal streams" else unicodedata.normalize("NFD", TEXT)
    aligner = Aligner(student, teacher)
    aligner.align(student.encode("a"), teacher.encode("a"))
    counts = []
    for tokens in (16_000, 128_000):
        repeat = -(-tokens // len(student.encode(text)))
        x, y = np.tile(student.encode(text), repeat), np.tile(teacher.encode(text), repeat)
        got: list[np.ndarray] = []
        counts.append(calls_of(lambda x=x, y=y, got=got: got.append(aligner.align(x, y))))
        check_chunks(student, teacher, x, y, got[0])
        assert (got[0][:, 1] - got[0][:, 0]).sum() > 0.8 * len(x)
    if kind == "equal streams":
        assert counts[1] <= counts[0] + 10 < 500
    else:
        assert counts[1] <= 8 * 1.5 * counts[0]


def test_settings_tell_what_decides() -> None:
    a, b = zoo()["llama"], zoo()["qwen"]
    assert Aligner(a, b).settings != Aligner(a, b, "dp").settings
    assert "version=" in Aligner(a, b).settings
    assert Aligner(a, b).settings == Aligner(b, a).settings  # the tokenizers have digests of their own


@pytest.mark.parametrize("method", ["spans", "dp"])
def test_pickled(method: str) -> None:
    a, b = zoo()["llama"], zoo()["sp_model"]
    aligner = Aligner(a, b, method)
    x, y = a.encode(TEXT[:300]), b.encode(TEXT[:300])
    expected = aligner.align(x, y)
    again = pickle.loads(pickle.dumps(aligner))  # noqa: S301
    assert again.align(x.tolist(), y.tolist()).tolist() == expected.tolist()
    assert again.settings == aligner.settings


@pytest.mark.parametrize("ids", [[-1], [10**6], [[1, 2]], [0.5], ["a"]])
def test_ids_that_the_vocabulary_does_not_have(ids: list) -> None:
    aligner = Aligner(zoo()["llama"], zoo()["qwen"])
    with pytest.raises(InputError, match="student token ids"):
        aligner.align(ids, [1])
    with pytest.raises(InputError, match="teacher token ids"):
        aligner.align([1], ids)


def test_what_is_too_large_or_unknown() -> None:
    with pytest.raises(InputError, match="8193"):
        Aligner(zoo()["llama"], zoo()["qwen"], "dp").align(np.ones(8193, int), [1])
    with pytest.raises(InputError, match="banded"):
        Aligner(zoo()["llama"], zoo()["qwen"], "banded")

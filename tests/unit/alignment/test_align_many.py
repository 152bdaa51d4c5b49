"""Many documents at once have the chunks that each has alone."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_aligner import aligner_of, names, texts
from tokenizer_zoo import TEXT, zoo

from nemo_xtoken.alignment import Aligner
from nemo_xtoken.errors import InputError


def flat(parts: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    joined = np.concatenate(parts) if parts else np.empty(0, np.int32)
    return joined, np.array([len(p) for p in parts], np.int64)


def assert_same_as_alone(aligner: Aligner, students: list[np.ndarray], teachers: list[np.ndarray]) -> None:
    chunks, counts = aligner.align_many(*flat(students), *flat(teachers))
    assert chunks.dtype == np.int32
    assert len(counts) == len(students)
    at = 0
    for x, y, count in zip(students, teachers, counts.tolist(), strict=True):
        alone = aligner.align(x, y)
        np.testing.assert_array_equal(chunks[at : at + count], alone)
        assert count == len(alone)
        at += count
    assert at == len(chunks)


@settings(deadline=None, max_examples=75)
@given(st.lists(st.tuples(texts, texts, st.booleans()), max_size=8), names, names, st.data())
def test_any_texts(pairs, a: str, b: str, data) -> None:
    """Texts with BOS and EOS, the same or different ones on both sides; of equal length as well."""
    vocabularies = zoo()[a], zoo()[b]
    sides = [[], []]
    for text, other, same in pairs:
        for side, vocabulary, own in zip(sides, vocabularies, (text, text if same else other), strict=True):
            ids = vocabulary.encode(own)
            roles = (
                data.draw(st.lists(st.sampled_from(sorted(vocabulary.roles)), max_size=2)),
                data.draw(st.lists(st.sampled_from(sorted(vocabulary.roles)), max_size=3)),
            )
            side.append(np.concatenate([np.array(roles[0], np.int32), ids, np.array(roles[1], np.int32)]))
    assert_same_as_alone(aligner_of(a, b), *sides)


@settings(deadline=None, max_examples=150)
@given(names, names, st.data())
def test_any_ids(a: str, b: str, data) -> None:
    """Also tokens without bytes in the middle, and sides that have nothing in common."""
    sides = [
        [np.array(data.draw(st.lists(st.integers(0, zoo()[name].size - 1), max_size=6)), np.int32) for _ in range(4)]
        for name in (a, b)
    ]
    assert_same_as_alone(aligner_of(a, b), *sides)


@pytest.mark.parametrize(("a", "b"), [("llama", "qwen"), ("qwen_nfc", "llama"), ("sp_bpe", "qwen")])
def test_a_batch_of_documents_with_a_few_that_differ(a: str, b: str) -> None:
    lines = [*TEXT.splitlines(), "", "e\u0301te\u0301 " * 5, "x", "same length", "a"]
    students = [zoo()[a].encode(line) for line in lines]
    teachers = [zoo()[b].encode(line) for line in lines]
    teachers[3] = zoo()[b].encode("y" * len(lines[3].encode()))  # as many bytes, and others
    assert_same_as_alone(aligner_of(a, b), students, teachers)


def test_what_is_refused() -> None:
    aligner = aligner_of("llama", "qwen")
    good = np.array([5, 6]), np.array([2])
    with pytest.raises(InputError, match="student token ids"):
        aligner.align_many(np.array([5, 10**6]), np.array([2]), *good)
    many = np.zeros(9000, np.int32)
    with pytest.raises(InputError, match="8192"):
        Aligner(zoo()["llama"], zoo()["qwen"], "dp").align_many(many, np.array([9000]), *good)


def test_the_dynamic_programme_is_that_of_one_document() -> None:
    aligner = Aligner(zoo()["llama"], zoo()["qwen"], "dp")
    lines = TEXT.splitlines()[:4]
    assert_same_as_alone(aligner, [zoo()["llama"].encode(t) for t in lines], [zoo()["qwen"].encode(t) for t in lines])

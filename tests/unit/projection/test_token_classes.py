"""Classes of tokens: the rule of the paper's Table 8, in bytes, and the other classes."""

import string
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizer_zoo import NAMES, zoo

from nemo_xtoken.projection.token_classes import CLASSES, class_of_bytes, classify
from nemo_xtoken.vocab.canonical import byte_level_bytes

#: The byte-level BPE spelling of all 256 bytes, as in a tokenizer's file.
ALPHABET = {byte_level_bytes(chr(c)): chr(c) for c in range(0x21, 0x200) if len(byte_level_bytes(chr(c))) == 1}


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("7", "digits_1"),
        (" 7", "digits_1"),
        ("42", "digits_2"),
        ("007", "digits_3"),
        (" 1987", "digits_4plus"),
        ("!", "punctuation"),
        (" (", "punctuation"),
        ("_", "punctuation"),
        ("the", "alphabetic"),
        (" The", "alphabetic"),
        ("'ll", "alphabetic"),
        (" don't", "alphabetic"),
        ("é", "multibyte"),
        ("²", "multibyte"),  # as text it is two bytes
        ("你好", "multibyte"),
        ("🙂", "multibyte"),
        ("();", "code"),
        ("!!", "code"),
        ("_name", "code"),
        ("\n\n", "code"),
        ("    ", "code"),
        (" ", "code"),
        ("!\n", "code"),
        ("x1", "other"),
        ("\x07", "other"),
        ("", "other"),
    ],
)
def test_classes_of_text(text, name):
    assert class_of_bytes(text.encode()) == name


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (b"\xb2", "digits_1"),  # spelled like a superscript two in the file of a byte-level tokenizer
        (b"\xd7", "punctuation"),
        (b" \xd7", "punctuation"),
        (b"\xe4", "fragment"),
        (b"\xe4\xbd", "fragment"),
        (b"a\xe4", "fragment"),
        (b"\x80", "fragment"),  # spelled with a letter beyond Latin-1
    ],
)
def test_classes_of_bytes(data, name):
    assert class_of_bytes(data) == name


def test_single_bytes_are_counted_as_the_paper_counts_their_spelling():
    """13 one-digit numerals and 55 signs among the 256 bytes; 33 of the signs' spellings also stand after a space."""
    assert len(ALPHABET) == 256
    counts = Counter(class_of_bytes(data) for data in ALPHABET)
    assert counts["digits_1"] == 13 == sum(c.isdigit() for c in ALPHABET.values())
    assert counts["punctuation"] == 55 == sum(not c.isalnum() for c in ALPHABET.values())
    assert all(class_of_bytes(c.encode()) == "punctuation" for c in string.punctuation)


@given(st.text(sorted(ALPHABET.values()), min_size=1, max_size=4).map(lambda t: t.lstrip("Ġ")).filter(bool))
@settings(deadline=None, max_examples=300)
def test_numerals_and_punctuation_follow_the_spelling(spelling):
    for spelled in (spelling, "Ġ" + spelling):
        name = class_of_bytes(byte_level_bytes(spelled))
        assert name.startswith("digits") == spelling.isdigit()
        assert (name == "punctuation") == (len(spelling) == 1 and not spelling.isalnum())


@pytest.mark.parametrize("name", NAMES)
def test_every_token_has_one_class(name):
    vocabulary = zoo()[name]
    numbers = classify(vocabulary)
    assert numbers.shape == (vocabulary.size,)
    gaps = [data is None and i not in vocabulary.roles for i, data in enumerate(vocabulary.token_bytes)]
    np.testing.assert_array_equal(numbers == -1, gaps)
    special = [c.name for c in CLASSES].index("special")
    assert set(np.flatnonzero(numbers == special)) == {i for i in vocabulary.roles if vocabulary.token_bytes[i] is None}

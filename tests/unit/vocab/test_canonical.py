"""Spelling of a token -> bytes, role of a special token, text for people."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import pre_tokenizers

from nemo_xtoken.vocab.canonical import byte_level_bytes, byte_of_fallback, piece_bytes, role_of_special, visible


@given(st.text(max_size=40))
def test_byte_level_alphabet_is_the_tokenizers_own(text: str) -> None:
    spelled = "".join(s for s, _ in pre_tokenizers.ByteLevel(False, use_regex=False).pre_tokenize_str(text))
    assert byte_level_bytes(spelled) == text.encode()


def test_byte_level_alphabet_has_every_byte_once() -> None:
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    assert sorted(byte_level_bytes(c) for c in alphabet) == [bytes([b]) for b in range(256)]


def test_characters_outside_the_byte_level_alphabet_are_literal() -> None:
    assert byte_level_bytes("Ġ世Ċ") == " 世\n".encode()


@pytest.mark.parametrize(("piece", "data"), [("▁the", b" the"), ("▁▁", b"  "), ("ab", b"ab"), ("世", "世".encode())])
def test_pieces(piece: str, data: bytes) -> None:
    assert piece_bytes(piece) == data


@pytest.mark.parametrize(
    ("token", "data"), [("<0xE4>", b"\xe4"), ("<0x0a>", b"\n"), ("<0xE4", None), ("x<0xE4>", None), ("<0xG0>", None)]
)
def test_byte_fallback(token: str, data: bytes | None) -> None:
    assert byte_of_fallback(token) == data


@pytest.mark.parametrize(
    ("text", "role"),
    [
        ("<s>", "bos"),
        ("<|begin_of_text|>", "bos"),
        ("</s>", "eos"),
        ("<|endoftext|>", "eos"),
        ("<|im_end|>", "eot"),
        ("<end_of_turn>", "eot"),
        ("<|finetune_right_pad_id|>", "pad"),
        ("<unk>", "unk"),
        ("<|assistant|>", "assistant"),
        ("<|video_pad|>", "special:<|video_pad|>"),
    ],
)
def test_roles(text: str, role: str) -> None:
    assert role_of_special(text) == role


def test_visible() -> None:
    assert visible(b" the") == " the"
    assert visible("世界".encode()) == "世界"
    assert visible(b"\xe4\xb8x\n\t\x00") == "\\xE4\\xB8x\\n\\t\\x00"

"""Vocabularies of every tokenizer family: bytes, roles, encoding, digests."""

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizer_zoo import NAMES, NORMALIZING, TEXT, zoo

from nemo_xtoken.vocab import Vocabulary

SPECIAL_TEXT = "<s></s><bos><eos><pad><unk> <|endoftext|><|im_end|>a<|begin_of_text|><|eot_id|>"
# Any text without lone surrogates; characters of every plane, and of those that tokenizers treat apart.
texts = st.text(st.one_of(st.characters(exclude_categories=["Cs"]), st.sampled_from("aé世🙂ا\u0301 \t\n0123▁<>|s/")))


class NoEncoder:
    """For vocabularies made by hand."""

    def encode_batch(self, texts: list[str]) -> list[np.ndarray]:
        raise NotImplementedError


@settings(deadline=None, max_examples=150)
@given(texts)
def test_decoding_gives_the_text_back(text: str) -> None:
    for name, v in zoo().items():
        ids = v.encode(text)
        assert ids.dtype == np.int32
        if name not in NORMALIZING:
            assert v.decode_bytes(ids) == text.encode(), name


@pytest.mark.parametrize("name", ["sp_bpe", "sp_unigram", "sp_model"])
def test_pieces_decode_to_the_text_behind_a_dummy_space(name: str) -> None:
    v = zoo()[name]
    assert v.decode_bytes(v.encode(TEXT)) == b" " + TEXT.encode()


@pytest.mark.parametrize("name", NAMES)
def test_special_tokens_in_a_text_are_text(name: str) -> None:
    v = zoo()[name]
    ids = v.encode(SPECIAL_TEXT)
    assert not set(ids.tolist()) & set(v.roles)
    assert v.decode_bytes(ids).lstrip() == SPECIAL_TEXT.encode()


@pytest.mark.parametrize("name", NAMES)
def test_tables_agree(name: str) -> None:
    v = zoo()[name]
    assert v.size == len(v.token_bytes) == len(v.byte_length)
    assert v.byte_length.dtype == np.int32
    assert v.byte_length.tolist() == [len(b) if b else 0 for b in v.token_bytes]
    assert all(v.token_bytes[i] is None for i in v.roles)
    assert all(v.token_bytes[i] == data for data, i in v.id_of_bytes.items())
    assert set(v.id_of_bytes) == {b for b in v.token_bytes if b}
    assert all(v.roles[i] == role for role, i in v.id_of_role.items())
    assert v.byte_level
    assert all(bytes([b]) in v.id_of_bytes for b in range(256))


@pytest.mark.parametrize(
    ("name", "bos", "eos", "pad", "adds_bos"),
    [
        ("llama", "<|begin_of_text|>", "<|end_of_text|>", "<|finetune_right_pad_id|>", True),
        ("qwen", None, "<|im_end|>", "<|endoftext|>", False),
        ("sp_bpe", "<s>", "</s>", "</s>", True),
        ("sp_unigram", "<bos>", "<eos>", "<pad>", True),  # no configuration: the table of spellings
        ("sp_model", "<s>", "</s>", None, True),
        ("tiktoken", None, "<|endoftext|>", None, False),
    ],
)
def test_declared_special_tokens(name: str, bos: str | None, eos: str, pad: str | None, adds_bos: bool) -> None:
    v = zoo()[name]
    assert (v.bos_id is None, v.pad_id is None, v.adds_bos) == (bos is None, pad is None, adds_bos)
    assert v.roles[v.eos_id] == "eos"  # type: ignore[index]
    assert v.id_of_role["eos"] == v.eos_id
    if bos is not None:
        assert v.id_of_role["bos"] == v.bos_id
    if pad == eos:
        assert v.pad_id == v.eos_id
        assert "pad" not in v.id_of_role  # the token's one role is the more telling one


def test_declaration_decides_over_the_spelling() -> None:
    roles = {zoo()["qwen"].display(i): r for i, r in zoo()["qwen"].roles.items()}
    assert roles == {"<pad>": "pad", "<turn>": "turn", "<eos>": "eos"}  # <|endoftext|> pads, <|im_end|> ends


def test_added_tokens_that_are_not_special_are_text() -> None:
    v = zoo()["qwen"]
    assert [v.token_bytes[i] for i in v.encode("<think>")] == [b"<think>"]


def test_ids_may_have_gaps() -> None:
    v = zoo()["tiktoken"]
    assert v.eos_id == v.size - 1
    gaps = [i for i in range(v.size) if v.token_bytes[i] is None and i not in v.roles]
    assert gaps == list(range(v.size - 6, v.size - 1))
    assert v.display(gaps[0]).startswith("<no token")


def test_numerals() -> None:
    assert len(zoo()["llama"].encode("2017")) == 2
    assert len(zoo()["qwen"].encode("2017")) == 4
    assert all(str(n).encode() in zoo()["llama"].id_of_bytes for n in range(1000))


def test_of_equal_bytes_the_lowest_id_wins_but_never_a_byte_fallback() -> None:
    v = Vocabulary(
        name="x",
        behaviour="x",
        token_bytes=[b"A", b"B", b"A", b"A", b"B"],
        roles={},
        encoder=NoEncoder(),
        fallback_ids=frozenset({0, 1}),
    )
    assert v.id_of_bytes == {b"A": 2, b"B": 4}
    assert v.token_bytes[0] == v.token_bytes[2] == b"A"
    sp = zoo()["sp_bpe"]
    assert sp.id_of_bytes[b"e"] > 258  # not <0x65>
    assert sp.id_of_bytes[b"\xff"] == 3 + 255


def test_digests() -> None:
    vocabularies = zoo()
    assert len({v.digest for v in vocabularies.values()}) == len(NAMES)
    assert all(len(v.digest) == 64 for v in vocabularies.values())


@pytest.mark.parametrize("name", NAMES)
def test_pickled(name: str) -> None:
    v = zoo()[name]
    w = pickle.loads(pickle.dumps(v))  # noqa: S301
    assert w.digest == v.digest
    assert w.id_of_bytes == v.id_of_bytes
    for text in (TEXT, SPECIAL_TEXT):
        assert w.encode(text).tolist() == v.encode(text).tolist()


@pytest.mark.parametrize("name", NAMES)
def test_batches_encode_as_single_texts(name: str) -> None:
    v = zoo()[name]
    texts = ["", "a", TEXT, SPECIAL_TEXT]
    assert [a.tolist() for a in v.encode_batch(texts)] == [v.encode(t).tolist() for t in texts]
    assert v.encode_batch([]) == []
    assert v.encode("").tolist() == []


def test_a_vocabulary_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        zoo()["llama"].size = 3
    with pytest.raises(ValueError, match="read-only"):
        zoo()["llama"].byte_length[0] = 3

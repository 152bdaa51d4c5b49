"""Roles that a configuration gives to tokens of the text, or to none: text stays text, nothing is replaced."""

import json
import logging

import pytest
from real_tokenizers import ASSETS, real
from tokenizer_zoo import NAMES, TEXT, write_folder, zoo

from nemo_xtoken.errors import InputError
from nemo_xtoken.vocab import load_vocabulary

TEXTS = [TEXT, "!", "!!", "Hello! World!!! ! the 0 00 <br>\n", "the", "  "]


def declare(folder, form, **texts):
    """The declarations in one of the forms in which people have them."""
    config = folder / "tokenizer_config.json"
    known = json.loads(config.read_text()) if config.is_file() else {}
    if form == "map":
        (folder / "special_tokens_map.json").write_text(json.dumps(texts))
        for name in texts:
            known.pop(name, None)
        config.write_text(json.dumps(known))
        return folder
    known |= {name: {"content": text, "special": True} for name, text in texts.items()} if form == "object" else texts
    if form == "saved":  # as save_pretrained writes it after ``tokenizer.pad_token = "!"`` and a reload
        spec = json.loads((folder / "tokenizer.json").read_text())
        vocab = spec["model"]["vocab"]
        for text in texts.values():
            at = vocab[text] if isinstance(vocab, dict) else [piece for piece, _ in vocab].index(text)
            flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
            spec["added_tokens"].insert(0, {"id": at, "content": text} | flags)
            known.setdefault("added_tokens_decoder", {})[str(at)] = {"content": text} | flags
        (folder / "tokenizer.json").write_text(json.dumps(spec))
    config.write_text(json.dumps(known))
    return folder


def ordinary_pieces(side):
    """Spellings of tokens of the text: a sign, a digit, a letter, a word, one of the longest that merges make."""
    words = sorted(
        (data for data in side.id_of_bytes if data.isalpha() and data.isascii()),
        key=lambda d: (len(d), d),
        reverse=True,
    )
    return ["!", "0", "e", words[0].decode(), words[len(words) // 2].decode()]


@pytest.mark.parametrize("form", ["config", "object", "map", "saved"])
@pytest.mark.parametrize("name", NAMES)
def test_a_token_of_the_text_may_pad_and_stays_text(name, form, tmp_path):
    plain = zoo()[name]
    for number, piece in enumerate(ordinary_pieces(plain)):
        folder = write_folder(name, tmp_path / f"{number}")
        if form == "saved" and not (folder / "tokenizer.json").is_file():
            pytest.skip("not a form of this kind of file")
        found = load_vocabulary(declare(folder, form, pad_token=piece))
        assert found.token_bytes[found.pad_id] == piece.encode()
        assert found.pad_id not in found.roles
        assert found.id_of_bytes == plain.id_of_bytes
        for text in TEXTS:
            assert found.encode(text).tolist() == plain.encode(text).tolist()
        assert (found.bos_id, found.eos_id) == (plain.bos_id, plain.eos_id)


@pytest.mark.parametrize("role", ["bos", "eos"])
@pytest.mark.parametrize("name", NAMES)
def test_what_begins_or_ends_a_text_is_no_part_of_texts_and_a_token(name, role, tmp_path):
    for number, (text, what) in enumerate(
        [*((piece, "an? ordinary|the ordinary") for piece in ordinary_pieces(zoo()[name])), ("<|nowhere|>", "no token")]
    ):
        folder = declare(write_folder(name, tmp_path / f"{number}"), "config", **{f"{role}_token": text})
        with pytest.raises(InputError, match=what) as error:
            load_vocabulary(folder)
        assert f"{role}_token {text!r}" in error.value.found
        assert f"{role}_token" in error.value.fix


@pytest.mark.parametrize("name", NAMES)
def test_padding_that_is_no_token_and_unknown_that_is_text_are_told(name, tmp_path, caplog):
    plain = zoo()[name]
    for role, text in (("pad", "<|nowhere|>"), ("unk", "!")):
        folder = declare(write_folder(name, tmp_path / role), "config", **{f"{role}_token": text})
        with caplog.at_level(logging.WARNING):
            found = load_vocabulary(folder)
        assert f"{role}_token {text!r}" in caplog.text
        assert found.encode(TEXT).tolist() == plain.encode(TEXT).tolist()
        assert found.id_of_bytes == plain.id_of_bytes
        assert found.roles.items() >= {i: r for i, r in plain.roles.items() if r not in ("pad", "unk")}.items()


def test_tokens_added_in_the_older_form(tmp_path):
    folder = write_folder("sp_model", tmp_path)
    size = zoo()["sp_model"].size
    (folder / "added_tokens.json").write_text(json.dumps({"[PAD]": size, "<tool>": size + 1, "word": size + 2}))
    (folder / "special_tokens_map.json").write_text(
        json.dumps({"pad_token": "[PAD]", "additional_special_tokens": ["<tool>"]})
    )
    found = load_vocabulary(folder)
    assert (found.size, found.pad_id, found.roles[size], found.roles[size + 1]) == (
        size + 3,
        size,
        "pad",
        "special:<tool>",
    )
    assert found.token_bytes[size + 2] == b"word"


@pytest.mark.parametrize("name", ["llama3", "smollm2", "mistral_v1"])
def test_real_tokenizers_padded_by_a_token_of_the_text(name, tmp_path):
    plain = real(name)
    for file in (ASSETS / "tokenizers" / name).iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    found = load_vocabulary(declare(tmp_path, "saved", pad_token="!"))
    assert found.pad_id == plain.id_of_bytes[b"!"]
    assert found.decode_bytes(found.encode("Hi! Yes!!")).lstrip() == b"Hi! Yes!!"
    for text in TEXTS:
        assert found.encode(text).tolist() == plain.encode(text).tolist()

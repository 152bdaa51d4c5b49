"""A tokenizer that loads and then gives up on a text: one error that names both, in whatever reads text with it."""

import json
import re

import pytest
from tokenizer_zoo import write_folder

from nemo_xtoken.commands.cli import main
from nemo_xtoken.errors import InputError
from nemo_xtoken.vocab import load_vocabulary
from nemo_xtoken.vocab.encoders import RankEncoder, encoded

SLOW = "(?:x+x+)+y"  # exponential on a row of x
GOOD, BAD = "hello 12", "x" * 5000


@pytest.fixture
def slow(tmp_path):
    """A tokenizer whose first expression takes exponential time."""
    folder = write_folder("llama", tmp_path / "slow")
    spec = json.loads((folder / "tokenizer.json").read_text())
    first = {"type": "Split", "pattern": {"Regex": SLOW}, "behavior": "Isolated", "invert": False}
    spec["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [first, spec["pre_tokenizer"]]}
    (folder / "tokenizer.json").write_text(json.dumps(spec))
    return folder


@pytest.mark.parametrize("texts", [[BAD], [GOOD, BAD, GOOD]], ids=["alone", "among others"])
def test_the_text_is_named(slow, texts):
    vocabulary = load_vocabulary(slow)
    assert len(vocabulary.encode(GOOD))
    with pytest.raises(InputError) as error:
        vocabulary.encode_batch(texts)
    assert str(slow) in error.value.found
    assert "a text of 5,000 characters that begins with 'xxx" in error.value.found
    assert "retry-limit" in error.value.found


def test_tiktoken_too():
    encoder = RankEncoder({bytes([i]): i for i in range(256)}, r"(?:x+x+)+(?=y)|.")
    assert len(encoded(encoder, [GOOD], "own")[0]) == len(GOOD)
    with pytest.raises(InputError, match="the tokenizer own cannot encode a text of 5,000 characters"):
        encoded(encoder, [BAD], "own")


class Interrupted:
    def encode_batch(self, texts):
        raise KeyboardInterrupt


def test_an_interruption_is_none():
    with pytest.raises(KeyboardInterrupt):
        encoded(Interrupted(), [GOOD, GOOD], "own")


VERBS = {
    "align": {"text": BAD},
    "prepare": {"paths": "t.jsonl", "out": "cache"},
    "prepare by workers": {"paths": "t.jsonl", "out": "cache", "workers": "2"},
    "audit": {"text": BAD},
    "build": {"out": "w.safetensors", "rule": "paper"},
}


@pytest.mark.parametrize("name", VERBS)
@pytest.mark.parametrize("side", ["student", "teacher"])
def test_every_verb_that_encodes(name, side, slow, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NEMO_XTOKEN_CACHE", str(tmp_path / "own"))
    other = write_folder("qwen", tmp_path / "other")
    if name == "build":  # it encodes tokens: one of them is such a text, of the other side
        if side == "student":
            pytest.skip("the student's tokenizer encodes nothing here")
        spec = json.loads((other / "tokenizer.json").read_text())
        spec["added_tokens"].append(
            {"id": load_vocabulary(other).size, "content": BAD, "special": False, "normalized": False}
            | dict.fromkeys(("single_word", "lstrip", "rstrip"), False)
        )
        (other / "tokenizer.json").write_text(json.dumps(spec))
    (tmp_path / "t.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in (GOOD, BAD)))
    pair = {"student": slow, "teacher": other} if side == "student" else {"student": other, "teacher": slow}
    values = {**pair, **VERBS[name]}
    assert main([name.split()[0], *(f"{key}={value}" for key, value in values.items())]) == 2
    error = capfd.readouterr().err
    assert "Traceback" not in error
    [message] = re.findall(r"^(?!Onig).*?error: (.*)", error, re.MULTILINE)
    assert message.startswith(f"the tokenizer {slow} cannot encode a text of 5,000 characters")

"""Bits per byte: every token once, what a dense computation says, the same whatever cuts the text."""

import json
import math
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizer_zoo import TEXT
from toy_models import write_model

from nemo_xtoken.errors import InputError
from nemo_xtoken.evaluate.bits import bits_per_byte, take_bytes, windows
from nemo_xtoken.vocab.loading import load_vocabulary

DOCUMENTS = [TEXT[:200], TEXT[300:310], TEXT[500:900]]


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    return write_model("llama-tied", tmp_path_factory.mktemp("bits") / "toy")


def dense(folder, text, start):
    """Nats of a text by one pass over all of it, in float64."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()
    ids = torch.tensor([[start, *load_vocabulary(str(folder)).encode(text).tolist()]])
    with torch.no_grad():
        scores = model(ids).logits[0, :-1].log_softmax(-1)
    return -scores.gather(1, ids[0, 1:, None]).sum().item()


@given(st.integers(2, 300), st.integers(2, 64))
def test_every_token_but_the_first_is_scored_once_with_half_a_window_before_it(length, window):
    scored = []
    for begin, first, stop in windows(length, window):
        assert 0 <= begin < first < stop <= begin + window
        assert begin == 0 or first - begin >= window - window // 2
        scored += range(first, stop)
    assert scored == list(range(1, length))


def test_it_is_what_one_pass_says(toy):
    found = bits_per_byte(toy, [*DOCUMENTS, ""])
    nats = sum(dense(toy, text, load_vocabulary(str(toy)).bos_id) for text in DOCUMENTS)
    size = sum(len(text.encode()) for text in DOCUMENTS)
    assert (found.size, found.documents) == (size, 3)
    assert found.tokens == sum(len(load_vocabulary(str(toy)).encode(text)) for text in DOCUMENTS)
    assert found.per_byte == pytest.approx(nats / math.log(2) / size, rel=1e-5)
    assert f"{found.per_byte:.4f} bits per byte" in str(found)


def test_a_model_without_bos_starts_behind_eos(tmp_path):
    toy = write_model("qwen2", tmp_path / "toy")
    vocabulary = load_vocabulary(str(toy))
    assert vocabulary.bos_id is None
    assert bits_per_byte(toy, DOCUMENTS[:1]).nats == pytest.approx(
        dense(toy, DOCUMENTS[0], vocabulary.eos_id), rel=1e-5
    )


def test_a_document_longer_than_the_window_is_read_in_steps(toy):
    narrow = bits_per_byte(toy, DOCUMENTS, window=32)
    whole = bits_per_byte(toy, DOCUMENTS)
    assert narrow.tokens == whole.tokens
    assert narrow.nats != whole.nats
    assert bits_per_byte(toy, DOCUMENTS, window=256).window == 256


def test_documents_are_taken_until_there_are_enough_bytes():
    assert take_bytes(iter(["äö", "abc", "d"]), 4) == ["äö"]
    assert take_bytes(iter(["äö", "abc", "d"]), 5) == ["äö", "abc"]
    assert take_bytes(["a"], 0) == []


@pytest.mark.parametrize(
    ("texts", "settings", "message"),
    [([""], {}, "no text to measure on"), (["a"], {"window": 1}, "window=1"), (["a"], {"window": 257}, "window=257")],
)
def test_what_cannot_be_measured_is_refused(toy, texts, settings, message):
    with pytest.raises(InputError, match=message):
        bits_per_byte(toy, texts, **settings)


def test_the_verb(toy, tmp_path):
    (tmp_path / "text.jsonl").write_text("".join(json.dumps({"body": text}) + "\n" for text in DOCUMENTS))
    words = ["bits", f"model={toy}", f"text={tmp_path / 'text.jsonl'}", "text_key=body", "bytes=250", "json=true"]
    done = subprocess.run([sys.executable, "-m", "nemo_xtoken", *words], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["documents"], found["size"]) == (3, sum(len(text.encode()) for text in DOCUMENTS))
    assert found["per_byte"] == pytest.approx(bits_per_byte(toy, DOCUMENTS).per_byte, rel=1e-6)

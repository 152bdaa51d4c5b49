"""Bits per byte: every token once, what a dense computation says, the same whatever cuts the text."""

import json
import math
import shutil

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tokenizer_zoo import TEXT, write_folder, zoo
from toy_models import write_model

from nemo_xtoken.commands.cli import main
from nemo_xtoken.errors import InputError
from nemo_xtoken.evaluate.bits import bits_of_tokens, bits_per_byte, take_bytes, windows
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


def test_the_bits_of_each_token_add_up_to_those_of_the_text(toy):
    tokenizer = load_vocabulary(str(toy))
    _, bits = bits_of_tokens(toy, tokenizer, DOCUMENTS[1:])
    assert bits.shape == tokenizer.encode(DOCUMENTS[2]).shape
    assert bits.sum() == pytest.approx(dense(toy, DOCUMENTS[2], tokenizer.bos_id) / math.log(2), rel=1e-5)
    begins = tokenizer.decode_bytes(tokenizer.encode(DOCUMENTS[2])[:5]).decode()
    assert bits[:5].sum() == pytest.approx(dense(toy, begins, tokenizer.bos_id) / math.log(2), rel=1e-4)
    with pytest.raises(InputError, match="whose tokenizer"):
        bits_of_tokens(toy, zoo()["sp_bpe"], DOCUMENTS)


def test_the_audit_shares_the_bits_of_a_teacher_out(toy, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("NEMO_XTOKEN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "200")
    student = write_folder("sp_bpe", tmp_path / "student")
    words = ["audit", f"student={student}", f"teacher={toy}", f"text={DOCUMENTS[2]}", f"model={toy}"]
    assert main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["texts"]["text"]
    bits = bits_of_tokens(toy, load_vocabulary(str(toy)), DOCUMENTS[2:])[0].sum()
    for covered in found.values():
        assert sum(covered["bits"].values()) == pytest.approx(bits)
    assert found["strict_1to1"]["bits"]["none"] > found["prefix_kl"]["bits"]["none"]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert "student tokens scored in full / in part / not" in out
    assert "the teacher's bits scored in full / in part / not" in out
    assert f"text ({bits:,.0f})" in out


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


@pytest.mark.parametrize("device", ["gpu", "cuda", "cuda:7", "CPU", "cpu:x", "", "mps", "meta", "vulkan"])
def test_a_device_that_is_none_is_refused(toy, device, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="device=") as caught:
        bits_per_byte(toy, DOCUMENTS, device=device)
    assert "no GPU" in caught.value.expected


def changed(toy, folder, weights=None, **config):
    """A copy of the toy with other weights (None: taken out) and another configuration."""
    shutil.copytree(toy, folder)
    tensors = load_file(toy / "model.safetensors")
    for name, change in (weights or {}).items():
        old = tensors.pop(name)
        if (new := change(old)) is not None:
            tensors[name] = new
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    content = json.loads((toy / "config.json").read_text()) | config
    (folder / "config.json").write_text(json.dumps(content))
    return folder


def _put(value):
    def change(tensor):
        tensor = tensor.clone()
        tensor.view(-1)[tensor.numel() // 2] = value
        return tensor

    return change


EMBEDDINGS, NORM = "model.embed_tokens.weight", "model.norm.weight"
QUERY = "model.layers.1.self_attn.q_proj.weight"
WRONG = {
    "an id beyond the rows": (
        {EMBEDDINGS: lambda t: t[:40].clone()},
        {"vocab_size": 40, "pad_token_id": None},
        "and 40 rows of embeddings",
    ),
    "NaN in a norm": ({NORM: _put(float("nan"))}, {}, "are not numbers"),
    "NaN in a layer": ({QUERY: _put(float("nan"))}, {}, "are not numbers"),
    "infinity in a layer": ({QUERY: _put(float("inf"))}, {}, "are not numbers"),
    "all weights too large": ({NORM: lambda t: t * 3e38}, {}, "are not numbers"),
    "no final norm": ({NORM: lambda t: None}, {}, "has no model.norm.weight"),
    "no query": ({QUERY: lambda t: None}, {}, f"has no {QUERY}"),
    "no output layer": ({}, {"tie_word_embeddings": False}, "has no lm_head.weight"),
    "a layer more": ({}, {"num_hidden_layers": 4}, "has no model.layers.3"),
    "fewer key heads": ({}, {"num_key_value_heads": 1}, "does not load in transformers"),
    "another width": ({}, {"intermediate_size": 96}, "does not load in transformers"),
    "no heads": ({}, {"num_attention_heads": 0}, "num_attention_heads=0"),
    "heads that are null": ({}, {"num_attention_heads": None}, "num_attention_heads|not accepted by transformers"),
    "heads that are text": ({}, {"num_attention_heads": "4"}, "num_attention_heads|not accepted by transformers"),
    "heads that cannot be": ({}, {"num_attention_heads": 5}, "num_attention_heads"),
    "no layers": ({}, {"num_hidden_layers": -1}, "num_hidden_layers=-1"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_model_that_says_nothing_is_refused(toy, name, tmp_path):
    weights, config, message = WRONG[name]
    with pytest.raises(InputError, match=message):
        bits_per_byte(changed(toy, tmp_path / "changed", weights, **config), DOCUMENTS)


def test_the_verb(toy, tmp_path, capsys):
    (tmp_path / "text.jsonl").write_text("".join(json.dumps({"body": text}) + "\n" for text in DOCUMENTS))
    words = ["bits", f"model={toy}", f"text={tmp_path / 'text.jsonl'}", "text_key=body", "bytes=250", "json=true"]
    assert main(words) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["documents"], found["size"]) == (3, sum(len(text.encode()) for text in DOCUMENTS))
    assert found["per_byte"] == pytest.approx(bits_per_byte(toy, DOCUMENTS).per_byte, rel=1e-6)
    assert main([*words, "text_split=line"]) == 2  # what lines of JSON have no use for
    assert "text_split=line for data of the kind jsonl" in capsys.readouterr().err

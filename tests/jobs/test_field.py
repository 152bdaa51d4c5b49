"""The tokenizers of the field, real and small: what they are; that every pair builds, aligns and is audited.

The sweep of ``benchmarks/``, and that it would tell; certificates of real pairs.
"""

import importlib
import itertools
import json
import unicodedata
import zipfile
from pathlib import Path

import numpy as np
import pytest
from real_tokenizers import ASSETS, real
from tokenizer_zoo import NAMES, zoo

from nemo_xtoken.alignment import Aligner
from nemo_xtoken.commands.cli import main
from nemo_xtoken.vocab import load_vocabulary, loading

sweep = importlib.import_module("sweep")

TEXT = (
    "It was 201 BC. 👩‍👩‍👧‍👦 🏳️‍🌈 机器学习是人工智能的一个分支。 اللُّغَةُ العَرَبِيَّة جميلة. हिन्दी में लिखा हुआ पाठ, "
    "def f(x):\n\tif x < 0:\n\t\treturn -x  # m²\r\n𠮷野家 ꙮ 𒀀 \u0378\ufeff 1234567 <|endoftext|></s><bos>"
)
#: name: size, the ids of "201" as the tokenizer's family has it, what stands in front of a text
PUBLISHED = {
    "llama3": (128256, 1, ""),
    "qwen3": (151669, 3, ""),
    "phi4mini": (200029, 1, ""),
    "gemma3": (262145, 3, ""),
    "mistral_tekken": (131072, 3, ""),
    "mistral_v3": (32768, 3, " "),
    "mistral_v1": (32000, 3, " "),
    "llama2": (32000, 3, " "),
    "gpt2": (50257, 1, ""),
    "cl100k": (100277, 1, ""),
    "deepseek_v3": (128815, 1, ""),
    "gptoss": (200019, 1, ""),
    "smollm2": (49152, 3, ""),
}


#: The tokenizers of the field, each beside one of another kind, so that a ring has each of them on both sides.
FIELD = ("llama3", "qwen3", "mistral_v1", "phi4mini", "gemma3", "gpt2", "mistral_tekken", "smollm2", "deepseek_v3")
FIELD += ("mistral_v3", "gptoss", "llama2", "cl100k")


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_tokenizer_of_the_field(name):
    v = real(name)
    size, pieces, front = PUBLISHED[name]
    assert v.size == size
    text = unicodedata.normalize("NFC", TEXT)
    ids = v.encode(text)
    assert v.decode_bytes(ids) == (front + text).encode()
    assert not set(ids.tolist()) & set(v.roles)  # "</s>" in a text is text
    assert sum(v.byte_length[v.encode("201")] > 0) == pieces + len(front)
    assert v.roles[v.eos_id] == "eos"
    assert v.id_of_bytes[b" the"] == v.encode("by the")[-1]


def mistral_files(folder):
    """The files as Mistral publishes them, beside those that were made from them."""
    wheels = sorted((ASSETS / "cache" / "mistral-common").glob("*.whl"))
    if not wheels:
        pytest.skip(f"no mistral-common wheel in {ASSETS}")
    names = {"mistral_tekken": "tekken_240911.json", "mistral_v1": "tokenizer.model.v1"}
    with zipfile.ZipFile(wheels[0]) as wheel:
        for name, file in names.items():
            target = folder / name / ("tekken.json" if name == "mistral_tekken" else "tokenizer.model")
            target.parent.mkdir()
            target.write_bytes(wheel.read(f"mistral_common/data/{file}"))
            yield name, target.parent


def test_mistrals_own_files_are_the_same_tokenizers(tmp_path):
    """tekken.json and the SentencePiece model, against the tokenizer.json converted from them."""
    pytest.importorskip("sentencepiece")
    pytest.importorskip("tiktoken")
    for name, folder in mistral_files(tmp_path):
        own, converted = load_vocabulary(folder), real(name)
        assert own.size == converted.size
        assert own.token_bytes == converted.token_bytes
        np.testing.assert_array_equal(own.encode(TEXT), converted.encode(TEXT))
        assert (own.bos_id, own.eos_id, own.adds_bos) == (converted.bos_id, converted.eos_id, True)


@pytest.mark.parametrize(("student", "teacher"), list(itertools.permutations(NAMES, 2)))
def test_small_tokenizers_of_every_family(student, teacher):
    texts, chunks, single, problems = sweep.aligned(zoo()[student], zoo()[teacher])
    assert problems == []
    assert texts >= 4 * len(sweep.TEXTS)
    assert chunks >= single > 0


def ring(step):
    """Pairs with each of the field once on either side; all pairs take minutes: ``benchmarks/sweep.py``."""
    return [(FIELD[i], FIELD[(i + step) % len(FIELD)]) for i in range(len(FIELD))]


@pytest.mark.parametrize(("student", "teacher"), ring(1))
def test_real_pairs_build_align_and_are_audited(student, teacher):
    result = sweep.measure(real(student), real(teacher))
    assert result.problems == ()
    assert 0.1 * real(student).size < result.exact <= result.reached <= result.teacher_size
    assert result.loss in ("p_kl", "h_kl")


@pytest.mark.parametrize(("student", "teacher"), ring(5))
def test_real_pairs_align(student, teacher):
    _, chunks, _, problems = sweep.aligned(real(student), real(teacher))
    assert problems == []
    assert chunks > 1000


def changed(chunks: np.ndarray, how: str) -> np.ndarray:
    """What a worse aligner would give."""
    chunks = chunks.copy()
    if how == "one missing":
        return np.delete(chunks, len(chunks) // 2, axis=0)
    if how == "two in one":
        chunks[3, 1::2] = chunks[4, 1::2]
        return np.delete(chunks, 4, axis=0)
    if how == "one for another":
        chunks[3:5, 2:] = chunks[3:5, 2:][::-1]
    elif how == "off by one":
        chunks[-1, 1] -= 1
    else:
        chunks[:, 2:] += 1
    return chunks


@pytest.mark.parametrize("how", ["one missing", "two in one", "one for another", "off by one", "shifted"])
@pytest.mark.parametrize(("student", "teacher"), [("llama", "qwen"), ("sp_bpe", "llama"), ("llama", "sp_unigram")])
def test_the_sweep_tells_what_is_wrong(student, teacher, how):
    s, t = zoo()[student], zoo()[teacher]
    for name, s_ids, t_ids, ends in sweep.cases(s, t):
        chunks = Aligner(s, t).align(s_ids, t_ids)
        assert sweep.problems_of(s, t, s_ids, t_ids, chunks, ends) == [], name
        if name in sweep.TEXTS:
            assert sweep.problems_of(s, t, s_ids, t_ids, changed(chunks, how), ends), name


@pytest.mark.parametrize(("student", "teacher"), [("llama3", "qwen3"), ("smollm2", "mistral_v1")])
def test_certificates_of_real_pairs(student, teacher, capsys, tmp_path_factory, monkeypatch):
    monkeypatch.setenv("NEMO_XTOKEN_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
    monkeypatch.setattr(loading, "load_vocabulary", lambda name: real(Path(name).name))  # read before
    names = {"student": real(student).name, "teacher": real(teacher).name}
    assert all(Path(name).is_relative_to(ASSETS) for name in names.values())
    words = [f"{side}={name}" for side, name in names.items()]
    assert main(["certify", *words, "loss=p_kl,gold", "steps=40", "chunks=2", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    for loss in told["losses"]:
        findings = loss["findings"]
        assert findings["one_to_one"]["verdict"] == "certified"
        if loss["loss"] == "gold":
            assert findings["one_to_several"]["verdict"] == "lost"
        if loss["rule"] == "prefix" and loss["merge"] != "mean":
            assert findings["one_to_several"]["verdict"] == "certified"
        if teacher == "qwen3" and loss["loss"] == "gold":
            (at,) = (i for i, chunk in enumerate(told["chunks"]) if chunk["text"] == "201")
            assert loss["probability"][0][at] == pytest.approx(0.986)
            assert loss["probability"][-1][at] < 0.01

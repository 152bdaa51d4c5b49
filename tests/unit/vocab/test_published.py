"""The tokenizers of the field as vocabularies: the text back from its ids, special tokens, what differs among them."""

import unicodedata
import zipfile

import numpy as np
import pytest
from real_tokenizers import ASSETS, real

from nemo_xtoken.vocab import load_vocabulary

TEXT = (
    "It was 201 BC. 👩‍👩‍👧‍👦 🏳️‍🌈 机器学习是人工智能的一个分支。 اللُّغَةُ العَرَبِيَّة جميلة. हिन्दी में लिखा हुआ पाठ, "
    "def f(x):\n\tif x < 0:\n\t\treturn -x  # m²\r\n𠮷野家 ꙮ 𒀀 \u0378\ufeff 1234567 <|endoftext|></s><bos>"
)
#: name: size, the ids of "201" as the tokenizer's family has it, what stands in front of a text
FIELD = {
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


@pytest.mark.parametrize("name", FIELD)
def test_a_tokenizer_of_the_field(name):
    v = real(name)
    size, pieces, front = FIELD[name]
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

"""Every way to name a tokenizer, and every way in which its files can be broken."""

import base64
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizer_zoo import NAMES, TEXT, write_folder, zoo
from tokenizers import Tokenizer, models

from nemo_xtoken.errors import InputError
from nemo_xtoken.vocab import load_vocabulary


@pytest.mark.parametrize("name", NAMES)
def test_folder_file_and_copy_are_one_tokenizer(name: str, tmp_path: Path) -> None:
    folder = write_folder(name, tmp_path / "a")
    file = next(f for f in folder.iterdir() if f.name != "tokenizer_config.json")
    v = load_vocabulary(str(file))
    assert v.digest == load_vocabulary(folder).digest == zoo()[name].digest
    assert v.name == str(file)


def test_objects(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    folder = write_folder("llama", tmp_path)
    fast = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
    assert load_vocabulary(fast).digest == load_vocabulary(folder).digest
    bare = Tokenizer.from_file(str(folder / "tokenizer.json"))
    bare.enable_truncation(3)
    bare.enable_padding(length=100)
    v = load_vocabulary(bare)
    assert v.encode(TEXT).tolist() == zoo()["llama"].encode(TEXT).tolist()
    assert bare.truncation is not None  # the caller's object is as it was
    assert not bare.encode_special_tokens
    assert (v.bos_id, v.eos_id, v.adds_bos) == (zoo()["llama"].bos_id, zoo()["llama"].eos_id, True)


def test_formatting_of_the_file_is_not_part_of_the_digest(tmp_path: Path) -> None:
    file = write_folder("qwen", tmp_path) / "tokenizer.json"
    file.write_text(json.dumps(json.loads(file.read_text()), indent=7))
    assert load_vocabulary(tmp_path).digest == zoo()["qwen"].digest


@pytest.mark.parametrize("change", ["merge", "eos", "add_bos", "normalizer"])
def test_any_change_of_behaviour_changes_the_digest(change: str, tmp_path: Path) -> None:
    folder = write_folder("llama", tmp_path)
    spec = json.loads((folder / "tokenizer.json").read_text())
    config = json.loads((folder / "tokenizer_config.json").read_text())
    if change == "merge":
        spec["model"]["merges"].pop()
    elif change == "normalizer":
        spec["normalizer"] = {"type": "NFKC"}
    elif change == "eos":
        config["eos_token"] = "<|eot_id|>"
    else:
        config["add_bos_token"] = False
    (folder / "tokenizer.json").write_text(json.dumps(spec))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    v = load_vocabulary(folder)
    assert v.digest != zoo()["llama"].digest
    if change == "eos":
        assert v.token_bytes[v.eos_id or 0] is None
        assert v.id_of_role["eos"] == v.eos_id != zoo()["llama"].eos_id
    if change == "add_bos":
        assert not v.adds_bos


def test_tokens_of_the_configuration_are_added(tmp_path: Path) -> None:
    folder = write_folder("qwen", tmp_path)
    size = zoo()["qwen"].size
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config["added_tokens_decoder"] = {
        str(size): {"content": "<|extra|>", "special": True},
        str(size - 1): {"content": "</think>", "special": True},  # was text
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    v = load_vocabulary(folder)
    assert v.size == size + 1
    assert v.roles[size] == "special:<|extra|>"
    assert v.roles[size - 1] == "special:</think>"
    assert v.decode_bytes(v.encode("a</think><|extra|>")) == b"a</think><|extra|>"
    config["added_tokens_decoder"] = {str(size + 7): {"content": "<|extra|>", "special": True}}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="declared as id"):
        load_vocabulary(folder)


def test_tekken(tmp_path: Path) -> None:
    lines = (write_folder("tiktoken", tmp_path) / "zoo.tiktoken").read_text().split("\n")
    vocab = [{"rank": int(r), "token_bytes": t, "token_str": None} for t, r in (x.split() for x in lines if x)]
    surplus = {"rank": len(vocab), "token_bytes": base64.b64encode(b"not used").decode(), "token_str": None}
    pattern = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s+"
    config = {"pattern": pattern, "default_vocab_size": len(vocab) + 10, "default_num_special_tokens": 10}
    (tmp_path / "tokenizer_config.json").unlink()  # of the other tokenizer
    file = tmp_path / "tekken.json"
    file.write_text(json.dumps({"config": config, "vocab": [*vocab, surplus]}))
    v = load_vocabulary(file)
    assert v.size == len(vocab) + 10
    assert (v.bos_id, v.eos_id, v.adds_bos) == (1, 2, True)
    assert b"not used" not in v.id_of_bytes
    assert v.decode_bytes(v.encode(TEXT + "<s>")) == TEXT.encode() + b"<s>"
    assert v.encode("a").tolist() == [v.id_of_bytes[b"a"]]


def test_llama3_rank_file_knows_its_special_tokens(tmp_path: Path) -> None:
    singles = [bytes([b]) for b in range(256)]
    pairs = [bytes([a, b]) for a in range(256) for b in range(256)]
    triples = [bytes([a, b, 65]) for a in range(256) for b in range(256)]
    ranks = (singles + pairs + triples)[:128000]
    file = tmp_path / "tokenizer.model"  # Meta's name for it
    file.write_text("".join(f"{base64.b64encode(t).decode()} {i}\n" for i, t in enumerate(ranks)))
    v = load_vocabulary(file)
    assert (v.size, v.bos_id, v.eos_id, v.pad_id) == (128256, 128000, 128001, 128004)
    assert (v.roles[128009], v.roles[128002]) == ("eot", "special:<|reserved_special_token_0|>")
    assert v.roles[128255] == "special:<|reserved_special_token_247|>"


def broken(kind: str, folder: Path) -> Any:
    """A source that cannot be loaded."""
    good = write_folder("llama", folder / "good")
    if kind == "missing":
        return folder / "nowhere" / "tokenizer.json"
    if kind == "not on the hub":
        return "nobody/has-this-model"
    if kind == "empty folder":
        (folder / "empty").mkdir()
        return folder / "empty"
    if kind == "two models":
        for name in ("a.tiktoken", "b.tiktoken"):
            shutil.copy(write_folder("tiktoken", folder / "t") / "zoo.tiktoken", folder / name)
        return folder
    if kind == "object":
        return 17
    if kind in ("config list", "config text"):
        (good / "tokenizer_config.json").write_text("[]" if kind == "config list" else "{")
        return good
    if kind == "word pieces":
        Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1}, unk_token="[UNK]")).save(str(folder / "tokenizer.json"))
        return folder
    content = {
        "empty.json": b"",
        "list.json": b"[1, 2]",
        "half.json": (good / "tokenizer.json").read_bytes()[:5000],
        "other.json": b'{"hidden_size": 7}',
        "model-only.json": b'{"model": {}}',
        "model-null.json": b'{"model": null, "version": "1.0"}',
        "latin.json": '{"é": 1}'.encode("latin-1"),
        "tekken-half.json": b'{"config": {}, "vocab": []}',
        "empty.model": b"",
        "garbage.model": b"garbage, and more of it",
        "half.model": zoo()["sp_model"].__dict__["_encoder"].model[:4000],
        "text.txt": b"hello",
        "bad.tiktoken": b"IQ== 0\nI@@= 1\n",
        "empty.tiktoken": b"",
    }[kind]
    (folder / kind).write_bytes(content)
    return folder / kind


KINDS = ["missing", "not on the hub", "empty folder", "two models", "object", "config list", "config text"]
KINDS += ["word pieces", "empty.json", "list.json", "half.json", "other.json", "model-only.json", "model-null.json"]
KINDS += ["latin.json", "tekken-half.json", "empty.model", "garbage.model", "half.model", "text.txt", "bad.tiktoken"]
KINDS += ["empty.tiktoken"]


@pytest.mark.parametrize("kind", KINDS)
def test_broken_sources(kind: str, tmp_path: Path) -> None:
    source = broken(kind, tmp_path)
    with pytest.raises(InputError) as e:
        load_vocabulary(source)
    assert e.value.expected
    assert e.value.fix
    if isinstance(source, (str, Path)):
        assert Path(source).name in str(e.value)


def test_a_panic_in_a_library_is_an_input_error_and_an_interrupt_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_folder("llama", tmp_path)
    for kind, expected in ((type("PanicException", (BaseException,), {}), InputError), (KeyboardInterrupt,) * 2):

        def fail(*args: Any, kind: type[BaseException] = kind) -> None:
            raise kind("inside")

        monkeypatch.setattr("nemo_xtoken.vocab.loading.read_tokenizers_json", fail)
        with pytest.raises(expected, match="inside"):
            load_vocabulary(folder)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.sampled_from(["llama", "sp_unigram", "sp_model", "tiktoken"]),
    at=st.integers(0, 10**6),
    data=st.binary(max_size=3),
)
def test_damaged_files_load_or_say_why(name: str, at: int, data: bytes, tmp_path: Path) -> None:
    folder = write_folder(name, tmp_path / name)
    file = next(f for f in folder.iterdir() if f.name != "tokenizer_config.json")
    content = bytearray(file.read_bytes())
    at %= len(content)
    content[at : at + max(1, len(data))] = data
    file.write_bytes(content)
    try:
        v = load_vocabulary(folder)
    except InputError:
        return
    assert v.size > 0

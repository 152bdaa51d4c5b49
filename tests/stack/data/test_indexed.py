"""Against files that Megatron's own builder writes."""

import numpy as np
import pytest
import torch
from tokenizer_zoo import TEXT, write_folder

from nemo_xtoken.data import DataConfig, Tokenization
from nemo_xtoken.data.indexed import IndexedFile, read_indexed
from nemo_xtoken.data.sources import Reading, resolve_sources
from nemo_xtoken.errors import InputError
from nemo_xtoken.vocab import load_vocabulary

TEXTS = [*TEXT.split("\n\n")[:1], *TEXT.split("\n")[:20], "naïve 中文 🙂"]


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    root = tmp_path_factory.mktemp("tokenizers")
    return {name: str(write_folder(name, root / name)) for name in ("llama", "qwen", "sp_bpe")}


def build(prefix, documents, dtype):
    """``documents``: for each, its sequences of ids."""
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=dtype)
    for sequences in documents:
        for ids in sequences:
            builder.add_item(torch.tensor(ids))
        builder.end_document()
    builder.finalize(f"{prefix}.idx")


def ids_of(name, text):
    vocabulary = load_vocabulary(name)
    front = [vocabulary.bos_id] if vocabulary.adds_bos else []
    return [*front, *vocabulary.encode(text).tolist(), vocabulary.eos_id]


@pytest.mark.parametrize("dtype", [np.uint16, np.int32])
@pytest.mark.parametrize("name", ["llama", "sp_bpe"])
def test_text_comes_back(tokenizers, tmp_path, name, dtype):
    ids = [ids_of(tokenizers[name], text) for text in TEXTS]
    split = [[i[:3], i[3:]] if n % 2 else [i] for n, i in enumerate(ids)]  # several sequences in some documents
    build(tmp_path / "d", split, dtype)
    file = IndexedFile(str(tmp_path / "d.idx"))
    assert [file.document(n).tolist() for n in range(len(file))] == ids
    for path in (tmp_path / "d", tmp_path / "d.idx", tmp_path / "d.bin", tmp_path / "d.*", tmp_path):
        (source,) = resolve_sources(path, Reading(indexed_tokenizer=tokenizers[name]))
        assert [*source.texts()] == TEXTS


def test_training_from_another_tokenizers_ids(tokenizers, tmp_path):
    build(tmp_path / "d", [[ids_of(tokenizers["sp_bpe"], text)] for text in TEXTS], np.int32)
    options = {"student_length": 100, "cache_dir": str(tmp_path / "cache"), "progress": False}
    sides = [load_vocabulary(tokenizers[name]) for name in ("llama", "qwen")]
    given = DataConfig([str(tmp_path / "d")], indexed_tokenizer=tokenizers["sp_bpe"], **options)
    (tmp_path / "lines.txt").write_text("\n".join(t for t in TEXTS if "\n" not in t))
    data, _ = given.build(sides[0], [Tokenization(sides[1])])
    texts = DataConfig([str(tmp_path / "lines.txt")], text_split="line", **options)
    shard = tmp_path.glob("cache/alignment/*/shard-*")
    assert len([*shard]) == 1
    lines = len([t for t in TEXTS if "\n" not in t and t.strip()])
    assert texts.build(sides[0], [Tokenization(sides[1])])[0].report.documents == lines
    assert len([*tmp_path.glob("cache/alignment/*/shard-*")]) == 1  # the lines were there already
    assert data.report.documents == lines + 1


def test_what_is_no_indexed_data_set(tokenizers, tmp_path):
    build(tmp_path / "d", [[ids_of(tokenizers["llama"], text)] for text in TEXTS], np.int32)
    with pytest.raises(InputError, match="holds ids, not text"):
        resolve_sources(tmp_path / "d")
    with pytest.raises(InputError, match="has no columns"):
        resolve_sources(tmp_path / "d", Reading("chat", indexed_tokenizer="x"))
    with pytest.raises(InputError, match=r"ids come back|which .* made"):
        list(read_indexed(str(tmp_path / "d.idx"), tokenizers["qwen"]))
    index, data = (tmp_path / "d.idx").read_bytes(), (tmp_path / "d.bin").read_bytes()
    for name, content, error in (
        ("idx", index[:50], "50 bytes for"),
        ("idx", index[:9], "9 bytes"),
        ("idx", b"x" * 100, "it starts with"),
        ("bin", data[:-4], "more are said"),
    ):
        (tmp_path / "d.idx").write_bytes(index)
        (tmp_path / "d.bin").write_bytes(data)
        (tmp_path / f"d.{name}").write_bytes(content)
        with pytest.raises(InputError, match=error):
            IndexedFile(str(tmp_path / "d.idx"))
    (tmp_path / "d.bin").unlink()
    with pytest.raises(InputError, match="No such file"):
        IndexedFile(str(tmp_path / "d.idx"))

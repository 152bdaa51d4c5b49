"""What a preflight says of the text: how much of it there is, in each form that a run reads."""

import json
import shutil
import struct
from collections import namedtuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import save
from test_preflight import SENTENCE, _own_home, look, of_status, world  # noqa: F401 (fixtures)

from nemo_xtoken.vocab.loading import load_vocabulary

TEXTS = [SENTENCE] * 300
SIZE = len(SENTENCE.encode()) * len(TEXTS)


def write_indexed(path, documents):
    """The two files of Megatron's indexed data, with a sequence a document."""
    lengths = np.array([len(ids) for ids in documents], "<i4")
    offsets = np.concatenate([[0], np.cumsum(4 * lengths.astype("<i8"))[:-1]]).astype("<i8")
    bounds = np.arange(len(documents) + 1, dtype="<i8")
    header = struct.pack("<9sQBQQ", b"MMIDIDX\0\0", 1, 4, len(documents), len(bounds))
    path.write_bytes(header + lengths.tobytes() + offsets.tobytes() + bounds.tobytes())
    path.with_suffix(".bin").write_bytes(np.concatenate(documents).astype("<i4").tobytes())


@pytest.fixture(params=["parquet", "jsonl", "txt", "indexed"])
def texts(request, tmp_path, world):  # noqa: F811
    """Words that name them, and how far their size may be misjudged: files hold a little more than text."""
    kind = request.param
    path = tmp_path / "own" / f"text.{'idx' if kind == 'indexed' else kind}"
    path.parent.mkdir()
    words = [f"data.text.paths={path}"]
    if kind == "parquet":
        pq.write_table(
            pa.table({"text": TEXTS, "other": [str(i) * 500 for i in range(300)]}), path, use_dictionary=False
        )
    elif kind == "indexed":
        tokenizer = world / "teacher" / "context" / "tokenizer"
        write_indexed(path, [load_vocabulary(tokenizer).encode(text) for text in TEXTS])
        words.append(f"data.text.indexed_tokenizer={tokenizer}")
    else:
        path.write_text("".join(f"{json.dumps({'text': text}) if kind == 'jsonl' else text}\n" for text in TEXTS))
    return words, 0.15 if kind == "jsonl" else 0.05


def test_its_size_is_known_in_every_form(texts, look):  # noqa: F811
    words, near = texts
    _, report = look(*words)
    assert {c["status"] for c in report["checks"] if c["check"] == "data"} <= {"green", "yellow"}
    assert report["figures"]["data_bytes"] == pytest.approx(SIZE, rel=near)


def test_aligned_text_of_other_tokenizers_makes_no_room(look, world, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setenv("NEMO_XTOKEN_CACHE", str(tmp_path / "cache"))
    _, report = look()
    need = report["figures"]["cache_bytes"]
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(0, 0, need / 2))
    sides = [load_vocabulary(world / side / "context" / "tokenizer").digest for side in ("student", "teacher")]

    def status():
        return next(c["status"] for c in look()[1]["checks"] if c["check"] == "disk")

    def write(pair, student, teacher, name="shard-000000-x.safetensors"):
        (tmp_path / "cache" / "alignment" / pair).mkdir(parents=True, exist_ok=True)
        about = {"student_digest": student, "teacher_digest": teacher}
        path = tmp_path / "cache" / "alignment" / pair / name
        path.write_bytes(save({"ids": np.zeros(need, np.uint8)}, about))

    assert status() == "red"
    write("other", sides[0], "another")
    write("swapped", *sides[::-1])
    (tmp_path / "cache" / "alignment" / "damaged").mkdir()
    (tmp_path / "cache" / "alignment" / "damaged" / "shard-000000-x.safetensors").write_bytes(b"x" * 2 * need)
    assert status() == "red"
    write("own", *sides)
    assert status() == "green"


def test_a_file_without_text_among_others_is_no_error(look, tmp_path, world):  # noqa: F811
    """Such as the first of the parts that Spark writes, where a filter has left nothing of it."""
    (tmp_path / "part-00000.jsonl").write_bytes(b"")
    (tmp_path / "part-00001.jsonl").write_text('{"text": ""}\n')
    (tmp_path / "part-00002.jsonl").write_bytes((world / "text.jsonl").read_bytes())
    status, report = look(f"data.text.paths={tmp_path}")
    assert (status, of_status(report, "red")) == (0, [])
    assert report["figures"]["data_tokens"] > 0
    (tmp_path / "part-00002.jsonl").unlink()
    status, report = look(f"data.text.paths={tmp_path}")
    assert status == 1
    assert [c["found"] for c in of_status(report, "red")] == [
        "no document with any text in part-00000.jsonl, part-00001.jsonl"
    ]

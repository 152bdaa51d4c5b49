"""What goes wrong on disks while text is prepared: one message each, nothing lost, and the next start is as ever."""

import errno
import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from fakes import STUDENT, TEACHER, CountingAligner
from safetensors.numpy import save_file

from nemo_xtoken.alignment import shard_file, shard_writer
from nemo_xtoken.alignment.aligned import AlignedBatch, AlignedDocument, text_digest
from nemo_xtoken.alignment.cache import AlignmentCache
from nemo_xtoken.alignment.shard_file import DamagedShard, OpenShards, Shard, _checksum_1
from nemo_xtoken.data import documents, prepare, prepare_documents, workers
from nemo_xtoken.errors import InputError

TEXTS = [f"the cat {n} sat" for n in range(40)]


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps({"text": t}) + "\n" for t in TEXTS))
    return path


def prepared(data, aligner=None, **options):
    return prepare_documents(
        data, STUDENT, TEACHER, aligner, cache_dir=data.parent / "cache", progress=False, **options
    )


def document(number):
    ids = np.arange(number, number + 5, dtype=np.int32)
    return AlignedDocument(text_digest(str(number)), ids, ids, np.array([[1, 2, 1, 2], [2, 3, 2, 3]], np.int32))


# --- surveys


def test_any_byte_of_a_survey_may_be_damaged(data):
    """It is made again: it never stops a data set, and never gives other documents."""
    whole = prepared(data)
    (path,) = data.parent.glob("cache/surveys/*")
    content = path.read_bytes()
    for place in range(0, len(content), 41):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        assert prepared(data).digest == whole.digest, place
    assert documents._kept(path) is not None


def test_an_edit_that_keeps_size_and_time_is_noticed(data):
    prepared(data)
    before = data.stat()
    data.write_text(data.read_text().replace("cat 7", "dog 7"))
    os.utime(data, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (data.stat().st_size, data.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    assert text_digest("the dog 7 sat").rstrip(b"\0") in prepared(data).digests.tolist()


def test_data_that_is_not_what_was_surveyed_is_surveyed_anew_by_the_next_start(data, monkeypatch):
    """As where a file system tells no change of any kind."""
    monkeypatch.setattr(documents.Source, "state", lambda self: "the same as ever")
    documents.survey(prepare.resolve_sources(data), prepare.survey_folder(data.parent / "cache"))
    data.write_text(data.read_text().replace("cat 7", "dog 7"))
    with pytest.raises(InputError, match="the data changed"):
        prepared(data)
    assert len(prepared(data)) == len(TEXTS)


# --- shards


@pytest.mark.parametrize("column", ["digests", "scored", "student_offsets", "checksums"])
def test_what_is_said_of_each_document_has_a_checksum(tmp_path, column):
    cache = AlignmentCache(tmp_path, "pair")
    with cache.lock():
        path = cache.write([document(n) for n in range(8)])
    places, _ = shard_file.tensor_places(path)
    content = bytearray(path.read_bytes())
    content[places[column].begin + 8] ^= 1
    path.write_bytes(content)
    with pytest.raises(DamagedShard):
        Shard(path, "pair")


def test_shards_of_the_version_before_are_read(tmp_path):
    found = [document(n) for n in range(3)]
    batch = AlignedBatch.of(found)
    tensors = {
        "digests": np.frombuffer(batch.digests, np.uint8).reshape(-1, 16),
        "student_offsets": shard_writer.offsets_of(batch.student_lengths),
        "teacher_offsets": shard_writer.offsets_of(batch.teacher_lengths),
        "chunk_offsets": shard_writer.offsets_of(batch.chunk_counts),
        "student_ids": batch.student_ids,
        "teacher_ids": batch.teacher_ids,
        "chunks": batch.chunks,
        "scored": np.array([d.scored for d in found], np.int32),
        "checksums": np.array([_checksum_1(d) for d in found], np.uint32),
    }
    path = tmp_path / "shard-000000-0.safetensors"
    save_file(tensors, path, {"format_version": "1", "pair_digest": "pair"})
    shard = Shard(path, "pair")
    assert shard.document(2).student_ids.tolist() == found[2].student_ids.tolist()
    tensors["scored"] = tensors["scored"] + 1
    save_file(tensors, path, {"format_version": "1", "pair_digest": "pair"})
    with pytest.raises(InputError, match="checksum"):
        Shard(path, "pair").document(2)


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EMFILE])
def test_a_file_that_cannot_be_read_now_is_not_taken_for_a_damaged_one(data, monkeypatch, number):
    """It is not deleted, its documents do not count as missing, and the message says what is wrong."""
    whole = prepared(data)
    (path,) = data.parent.glob("cache/alignment/*/shard-*")

    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(shard_file, "map_tensors", refuse)
    with pytest.raises((InputError, OSError), match=os.strerror(number)):
        prepared(data)
    cache = object.__new__(AlignmentCache)
    with pytest.raises(OSError, match=os.strerror(number)):
        AlignmentCache.__init__(cache, path.parent, whole.pair_digest)
    monkeypatch.undo()
    assert path.exists()
    aligner = CountingAligner(STUDENT, TEACHER)
    assert prepared(data, aligner).digest == whole.digest
    assert aligner.calls == 0


_FEW_DESCRIPTORS = """
import resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
sys.path.insert(0, sys.argv[1])
import fakes
from nemo_xtoken.alignment.aligner import Aligner
from nemo_xtoken.data import prepare_documents
aligner = fakes.CountingAligner(fakes.STUDENT, fakes.TEACHER)
found = prepare_documents(sys.argv[2], fakes.STUDENT, fakes.TEACHER, aligner, cache_dir=sys.argv[3], progress=False)
for i in range(len(found)):
    found.document(i)
print(len(found), aligner.calls, sum(1 for _ in found.shards()))
"""


def test_more_shards_than_descriptors(data, monkeypatch):
    """With a soft and hard limit of 64, documents in a hundred files are all there, and all can be read."""
    texts = [f"number {n}" for n in range(100)]
    data.write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    monkeypatch.setattr(prepare, "_SHARD_TOKENS", 1)
    monkeypatch.setattr(workers, "_BATCH_DOCUMENTS", 1)
    prepared(data)
    assert len([*data.parent.glob("cache/alignment/*/shard-*")]) == 100
    command = [
        sys.executable,
        "-c",
        _FEW_DESCRIPTORS,
        str(Path(__file__).parent),
        str(data),
        str(data.parent / "cache"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["100", "0", "100"], done.stderr


def test_the_number_of_open_files_is_bounded(tmp_path, monkeypatch):
    cache = AlignmentCache(tmp_path, "pair")
    with cache.lock():
        for n in range(12):
            cache.write([document(n)])
    monkeypatch.setattr(resource, "getrlimit", lambda which: (20, 20))
    shards = OpenShards(cache.shards.paths, "pair")
    first = shards[0].document(0)
    for n in range(12):
        assert shards[n].document(0).student_ids[0] == n
    assert len(shards._open) == 5
    assert first.student_ids.tolist() == [0, 1, 2, 3, 4]  # views outlive the file's turn


# --- writing


@pytest.mark.parametrize("where", ["spool", "shard"])
def test_a_full_disk_is_one_message_and_leaves_nothing_half_written(data, monkeypatch, where):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(shard_writer.ShardWriter, "_add_whole" if where == "spool" else "_write", full)
    with pytest.raises(InputError, match="No space left") as error:
        prepared(data)
    assert "room" in error.value.fix
    monkeypatch.undo()
    assert not [*data.parent.glob("cache/alignment/*/*.safetensors")]
    assert not [*data.parent.glob("cache/**/*.tmp")]
    assert len(prepared(data)) == len(TEXTS)


def test_a_disk_that_is_full_for_a_survey_alone_stops_nothing(data, monkeypatch):
    """It saves reading the data once more, and is no part of what is prepared."""
    write, tried = Path.write_bytes, []

    def full(path, content):
        if "surveys" not in path.parts:
            return write(path, content)
        tried.append(write(path, content[:10]))
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    found = prepared(data)
    assert len(found) == len(TEXTS)
    assert tried == [10]
    assert not [*data.parent.glob("cache/surveys/*")]
    monkeypatch.undo()
    assert prepared(data).digest == found.digest
    assert len([*data.parent.glob("cache/surveys/*.safetensors")]) == 1


def test_what_a_killed_writer_had_kept_becomes_a_shard_of_the_next(tmp_path):
    cache = AlignmentCache(tmp_path, "pair")
    with cache.lock():
        writer = cache.writer()
        for n in range(3):
            writer.add(AlignedBatch.of([document(n)]))
            assert writer.keep()
        writer.close()  # and no publish, as after a kill
        (tmp_path / "open-000001.safetensors").write_bytes(b"damaged")
    assert not len(AlignmentCache(tmp_path, "pair").shards)
    with cache.lock():
        assert len(cache.shards) == 1
    assert not [*tmp_path.glob("open-*")]
    digests = np.array([document(n).digest for n in range(3)], "S16")
    assert (cache.find(digests)[0] >= 0).tolist() == [True, False, True]
    assert cache.shards[0].metadata["student_labels"] == "8"
    assert [cache.shards[0].document(i).student_ids[0] for i in range(2)] == [0, 2]

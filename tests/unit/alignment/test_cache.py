import pickle
import subprocess
import tracemalloc
import warnings

import numpy as np
import pytest
from damage import flip_first_bit
from safetensors import safe_open

from nemo_xtoken.alignment.cache import AlignedDocument, AlignmentCache, DamagedShard, Shard, text_digest
from nemo_xtoken.errors import InputError
from nemo_xtoken.leftovers import host_name


def document(number: int) -> AlignedDocument:
    """Sizes from 0 up, so that empty arrays are met as well."""
    ids = np.arange(number * 10, number * 10 + number, dtype=np.int32)
    chunks = np.arange(4 * (number // 2), dtype=np.int32).reshape(-1, 4)
    return AlignedDocument(text_digest(f"text {number}"), ids, ids[::-1].copy(), chunks)


def digests(numbers) -> np.ndarray:
    return np.array([document(n).digest for n in numbers], "S16")


@pytest.fixture
def cache(tmp_path):
    cache = AlignmentCache(tmp_path / "pair", "abc", {"student": "s"})
    with cache.lock():
        cache.write([document(n) for n in range(5)])
        cache.write([document(n) for n in range(5, 7)])
    return cache


def test_what_is_written_is_found_and_read_back(cache):
    for reader in (cache, AlignmentCache(cache.folder, "abc")):
        shard, row = reader.find(digests([6, 0, 99, 4]))
        assert shard.tolist() == [1, 0, -1, 0]
        assert row.tolist() == [1, 0, -1, 4]
        for number in range(7):
            s, r = (int(a[0]) for a in reader.find(digests([number])))
            found, wanted = reader.shards[s].document(r), document(number)
            assert found.digest == wanted.digest
            for a, b in zip(found[1:], wanted[1:], strict=True):
                assert a.dtype == np.int32
                np.testing.assert_array_equal(a, b)
    assert cache.shards[0].student_lengths.tolist() == [0, 1, 2, 3, 4]
    assert cache.shards[0].chunk_counts.tolist() == [0, 0, 1, 1, 2]
    assert cache.shards[0].scored.tolist() == [0, 0, 0, 0, 1]  # those that start at token 0 are not


def test_an_open_file_takes_little_memory_for_each_of_its_documents(tmp_path):
    """A reader keeps a thousand open, of which each may hold millions of short documents."""
    one, documents = document(3), 50_000
    many = [one._replace(digest=number.to_bytes(16, "big")) for number in range(documents)]
    cache = AlignmentCache(tmp_path / "pair", "abc")
    with cache.lock():
        path = cache.write(many)
    tracemalloc.start()
    try:
        shard = Shard(path, "abc")
        assert [len(shard.document(row).student_ids) for row in (0, documents - 1)] == [3, 3]
        assert tracemalloc.get_traced_memory()[0] < 4 * documents
        assert shard.student_lengths.sum() == 3 * documents
        assert tracemalloc.get_traced_memory()[0] < 4 * documents
    finally:
        tracemalloc.stop()


def test_a_shard_needs_nothing_but_itself(cache):
    path = cache.shards[1].path
    with safe_open(path, "numpy") as file:
        header = file.metadata()
        assert header["student"] == "s"
        assert header["pair_digest"] == "abc"
        assert (header["documents"], header["student_tokens"], header["chunks"]) == ("2", "11", "5")
    cache.shards[0].path.unlink()
    assert AlignmentCache(cache.folder, "abc").find(digests([0, 5]))[0].tolist() == [-1, 0]


def test_documents_are_views_of_the_file(cache):
    found = cache.shards[0].document(4)
    assert not found.student_ids.flags.owndata
    assert not found.student_ids.flags.writeable


def damage_cut(path):
    path.write_bytes(path.read_bytes()[:-3])


def damage_longer(path):
    path.write_bytes(path.read_bytes() + b"more")


def damage_empty(path):
    path.write_bytes(b"")


def damage_header(path):
    data = bytearray(path.read_bytes())
    data[20] ^= 0xFF
    path.write_bytes(data)


def damage_size(path):
    path.write_bytes(b"\xff" * 8 + path.read_bytes()[8:])


def damage_offsets(path):
    """The offsets come first: tensors are sorted by the size of their type."""
    data = bytearray(path.read_bytes())
    start = 8 + int.from_bytes(data[:8], "little")
    data[start + 8 : start + 16] = (1 << 40).to_bytes(8, "little")
    path.write_bytes(data)


def damage_names(path):
    path.write_bytes(path.read_bytes().replace(b'"scored"', b'"scores"', 1))


def damage_kind(path):
    path.write_bytes(b"not a shard at all, but long enough to look like one" * 10)


DAMAGES = [v for k, v in sorted(globals().items()) if k.startswith("damage_")]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda f: f.__name__)
def test_a_damaged_shard_is_passed_over_and_replaced_by_the_next_writer(cache, damage, caplog):
    path = cache.shards[0].path
    damage(path)
    with pytest.raises(DamagedShard):
        Shard(path, "abc")
    reader = AlignmentCache(cache.folder, "abc")
    assert reader.find(digests([0, 6]))[0].tolist() == [-1, 0]
    assert path.exists()  # only a writer deletes
    lock = reader.lock()
    lock.__enter__()
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert path.name in record.getMessage()
    assert not path.exists()
    reader.write([document(0)])
    lock.__exit__(None, None, None)
    assert (AlignmentCache(cache.folder, "abc").find(digests([0, 6]))[0] >= 0).all()


def test_a_changed_document_is_noticed_when_it_is_read(cache):
    path = cache.shards[0].path
    flip_first_bit(path, "teacher_ids")  # in document 1, the first with a token
    shard = Shard(path, "abc")
    shard.document(4)
    with pytest.raises(InputError, match=path.name) as error:
        shard.document(1)
    assert "delete" in error.value.fix


def test_a_shard_of_another_pair_is_refused(cache):
    with pytest.raises(DamagedShard, match="another"):
        Shard(cache.shards[0].path, "other")


def test_the_lock_tidies_up_and_sees_what_others_wrote(cache, tmp_path):
    other = AlignmentCache(cache.folder, "abc")
    ended = subprocess.Popen(["true"])
    ended.wait()
    stray = cache.folder / f".shard-000009-x.safetensors.{host_name()}-{ended.pid}-0123abcd.tmp"
    stray.write_bytes(b"half")
    with cache.lock():
        cache.write([document(50)])
        assert not stray.exists()
    assert other.find(digests([50]))[0][0] == -1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with other.lock():
            assert other.find(digests([50]))[0][0] == 2


def test_an_empty_cache_makes_no_folder(tmp_path):
    cache = AlignmentCache(tmp_path / "none", "abc")
    assert cache.find(digests([1, 2]))[0].tolist() == [-1, -1]
    assert not (tmp_path / "none").exists()


def test_digest_keys_may_end_in_zero_bytes(tmp_path):
    cache = AlignmentCache(tmp_path, "abc")
    keys = [b"\0" * 16, b"a" * 15 + b"\0", b"\0" * 15 + b"a"]
    with cache.lock():
        cache.write([document(3)._replace(digest=key) for key in keys])
    assert cache.find(np.frombuffer(b"".join(keys), "S16"))[1].tolist() == [0, 1, 2]
    assert cache.shards[0].document(1).digest == keys[1]


def test_input_error_survives_the_way_back_from_a_worker():
    error = pickle.loads(pickle.dumps(InputError("a", "b", "c")))  # noqa: S301
    assert (error.found, error.fix) == ("a", "c")

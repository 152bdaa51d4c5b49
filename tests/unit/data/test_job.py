"""Several processes of a job read one data set: the first prepares it, the others map what it wrote down."""

import json
import multiprocessing
import os
import tracemalloc

import numpy as np
import pytest
from fakes import STUDENT, TEACHER, TEACHER_BOS
from safetensors.numpy import load_file
from small_disk import small_disk

from nemo_xtoken.alignment.shard_file import OpenShards
from nemo_xtoken.data import DataConfig, Tokenization, documents, prepare, sample_index
from nemo_xtoken.data.packing import Pieces
from nemo_xtoken.data.packing_report import PackingReport
from nemo_xtoken.data.prepared import PreparedDocuments
from nemo_xtoken.data.sample_index import read_index
from nemo_xtoken.errors import InputError
from nemo_xtoken.sharing.first_process import Launch

SIDES = [Tokenization(TEACHER), Tokenization(TEACHER_BOS, 20)]


@pytest.fixture
def config(tmp_path):
    for name in ("web", "code"):
        texts = [f"the {name} cat {n} sat abcde {n * 345}" for n in range(60)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))

    def make(**options):
        where = {"paths": [str(tmp_path / "web.jsonl")]} if "sources" not in options else {}
        return DataConfig(
            **where | {"student_length": 24, "held_out": 5, "cache_dir": str(tmp_path / "cache")} | options
        )

    return make


def told(data):
    """Everything that a training sees of a data set."""
    items = [data[i] for i in range(len(data))]
    return data.fingerprint, len(data), [str(item) for item in items], [data.describe(0), data.describe(len(data) - 1)]


def _rank(config, rank, barrier, queue):
    if rank:  # only the first may read text, open all shards, or pack
        refuse = None
        documents.survey = prepare.survey = lambda *_, **__: refuse.used
        prepare.AlignmentCache.find = lambda *_: refuse.used
    barrier.wait()
    try:
        built = config.build(STUDENT, SIDES, 100, Launch(rank, 3, "job"))
        queue.put((rank, [told(data) for data in built]))
    except BaseException as error:
        queue.put((rank, error))
        raise


@pytest.mark.parametrize("several", [False, True])
def test_all_processes_have_the_samples_of_one_by_itself(config, several, tmp_path):
    options = {"progress": False}
    if several:
        options["sources"] = {name: {"paths": [str(tmp_path / f"{name}.jsonl")]} for name in ("web", "code")}
    made = config(**options)
    context = multiprocessing.get_context("fork")
    barrier, queue = context.Barrier(3), context.Queue()
    ranks = [context.Process(target=_rank, args=(made, rank, barrier, queue)) for rank in range(3)]
    for rank in ranks:
        rank.start()
    found = dict(queue.get(timeout=60) for _ in ranks)
    for rank in ranks:
        rank.join(60)
        assert rank.exitcode == 0
    alone = [
        told(data)
        for data in config(
            **options,
        ).build(STUDENT, SIDES, 100)
    ]
    assert found == dict.fromkeys(range(3), alone)


def test_an_error_of_the_first_ends_all(config, tmp_path):
    (tmp_path / "web.jsonl").write_text('{"text": 3}\n')
    made = config(progress=False)
    with pytest.raises(InputError, match="is a int"):
        made.build(STUDENT, SIDES, 100, Launch(0, 2, "job"))
    (beat,) = (tmp_path / "cache/samples").glob("*.json")
    os.utime(beat, (2**33, 2**33))  # as written after the other process began
    with pytest.raises(InputError, match=r"the first process of the job .* stopped while preparing text: .*is a int"):
        made.build(STUDENT, SIDES, 100, Launch(1, 2, "job"))


def test_the_file_has_what_a_data_set_is_and_maps_it(config, tmp_path):
    data, _ = config(progress=False).build(STUDENT, SIDES)
    path = data.keep(tmp_path / "samples")
    assert data.keep(tmp_path / "samples") == path  # the same again
    prepared, pieces, fingerprint = read_index(path)
    assert fingerprint == data.fingerprint
    assert pieces.report == data.report
    assert [p.digest for p in prepared] == [p.digest for p in data.prepared]
    for ours, theirs in zip(prepared, data.prepared, strict=True):
        for name in sample_index._LENGTHS:
            assert getattr(ours, name).tolist() == getattr(theirs, name).tolist()
    assert not pieces.table.flags.owndata
    assert not prepared[0].digests.flags.owndata
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(InputError, match="cannot be read"):
        read_index(path)


def test_writing_the_file_takes_no_memory_of_its_size(tmp_path):
    """Nor of that of a column whose type is another in the file."""
    n, sides = 250_000, 2
    ids = np.arange(n)
    shards = OpenShards([tmp_path / "shard"], "pair")
    digests = ids.astype("S16")
    one = PreparedDocuments.placed(shards, digests, ids.astype(np.int32), ids, ids + 1, ids + 2, ids + 3, ids + 4)
    table = np.arange(n * (3 + 4 * sides)).reshape(n, -1)
    counts = PackingReport(**dict.fromkeys(PackingReport.__dataclass_fields__, 0) | {"teachers": ()})
    pieces = Pieces(table, ids, counts)
    tracemalloc.start()
    try:
        path = sample_index.write_index(tmp_path, [one, one], pieces, "fingerprint")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert path.stat().st_size > 40_000_000
    assert peak < 8_000_000
    (first, second), found, fingerprint = read_index(path)
    assert fingerprint == "fingerprint"
    assert (found.table == table).all()
    assert (found.first == ids).all()
    for read in (first, second):
        assert (read.digests == digests).all()
        assert [array.tolist() == ids.tolist() for array in read.places()[1:]] == [True, True]
        for number, name in enumerate(sample_index._LENGTHS):
            assert getattr(read, name).dtype == np.int32
            assert (getattr(read, name) == ids + number + 1).all()
    assert load_file(path).keys() == {"table", "first", "digests"} | {
        f"{name}{number}" for name in ("shard", "row", *sample_index._LENGTHS) for number in range(2)
    }


def test_a_full_disk_leaves_no_half_file(config, tmp_path):
    data, _ = config(progress=False).build(STUDENT, SIDES)
    with small_disk(), pytest.raises(OSError, match="too large"):
        data.keep(tmp_path / "samples")
    assert not [*(tmp_path / "samples").iterdir()]

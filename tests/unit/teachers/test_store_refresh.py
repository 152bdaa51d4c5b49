"""A folder that grows under a reader: it sees what a new reader would, and opens each file once."""

import numpy as np
import pytest
from test_state_store import OF, piece, read, write

from nemo_xtoken.teachers.store import state_store
from nemo_xtoken.teachers.store.state_store import StateStore


@pytest.fixture
def opens(monkeypatch):
    """Names of the files that are opened, in order."""
    opened = []

    class Counted(state_store.StateShard):
        def __init__(self, path):
            opened.append(path.name)
            super().__init__(path)

    monkeypatch.setattr(state_store, "StateShard", Counted)
    return opened


def added(folder, number, name="one"):
    """A file of another process, which no index knows."""
    index = folder / state_store.INDEX
    before = index.read_bytes() if index.exists() else None
    write(folder, [piece(number, 0, 10)], part=f"run-{number}-{name}")
    index.unlink() if before is None else index.write_bytes(before)


@pytest.mark.parametrize("indexed", [True, False])
def test_a_look_opens_new_files_alone(tmp_path, opens, indexed):
    if indexed:
        write(tmp_path, [piece(100, 0, 10)])
    for number in range(3):
        added(tmp_path, number)
    store = StateStore(tmp_path, OF)
    opens.clear()
    store.refresh()
    assert opens == []
    added(tmp_path, 3)
    opens.clear()
    store.refresh()
    assert [name.split("-")[0] for name in opens] == ["states"]
    assert len(store) == 4 + indexed


def test_an_index_of_another_process_costs_no_file(tmp_path, opens):
    for number in range(3):
        added(tmp_path, number)
    store = StateStore(tmp_path, OF)
    StateStore(tmp_path, OF).write_index()
    opens.clear()
    store.refresh()
    assert opens == []
    assert len(store) == 3


@pytest.mark.parametrize("seed", range(4))
def test_a_reader_sees_what_a_new_one_sees(tmp_path, seed):
    """After files that come, go and come again, and indexes, of which none, some or all tell of them."""
    numbers = np.random.default_rng(seed)
    store, pieces = StateStore(tmp_path, OF), [piece(n, 0, 10) for n in range(6)]
    for _ in range(40):
        action = numbers.integers(4)
        files = sorted(tmp_path.glob("part-*/states-*"))
        if action == 0 and files:
            files[numbers.integers(len(files))].unlink()
        elif action == 1:
            StateStore(tmp_path, OF).write_index()
        else:
            added(tmp_path, int(numbers.integers(len(pieces))), numbers.integers(3))
        store.refresh()
        new = StateStore(tmp_path, OF)
        there = {int(path.parent.name.split("-")[2]) for path in tmp_path.glob("part-*/states-*")}
        assert [new.holds(digest, start, len(ids)) for digest, start, ids, _ in pieces] == [
            n in there for n in range(6)
        ]
        assert {store.names[n] for n in store.absent} == {new.names[n] for n in new.absent}
        for digest, start, ids, states in pieces:
            if new.holds(digest, start, len(ids)):
                assert store.holds(digest, start, len(ids))
                assert read(store, digest, start, ids).equal(states)
            else:
                assert not store.holds(digest, start, len(ids))


@pytest.mark.parametrize("context", ["piece", "document"])
@pytest.mark.parametrize("length", [10, 30])
def test_a_record_of_a_file_that_is_gone_hides_no_other(tmp_path, context, length):
    """Of the same piece or a longer one; the index, which names the file still, is not written again."""
    digest, start, ids, states = piece(1, 0, 10)
    write(tmp_path, [piece(1, 0, length), piece(2, 0, 10)], part="run-0-old")
    old = StateStore(tmp_path, OF)
    [gone] = tmp_path.glob("part-*/states-*")
    kept = gone.read_bytes()
    gone.unlink()
    old.refresh()
    assert not old.holds(digest, start, len(ids))
    added(tmp_path, 1)
    old.refresh()
    for store in (old, StateStore(tmp_path, OF)):
        assert store.holds(digest, start, len(ids))
        assert read(store, digest, start, ids, context).equal(states)
        assert not store.lacking(np.array([digest], "S16"), np.array([0]), np.array([10]), context)[0]
    gone.write_bytes(kept)  # it comes back: the longer one is found again
    old.refresh()
    longer = piece(1, 0, length)
    assert read(old, digest, start, longer[2], context).equal(longer[3])

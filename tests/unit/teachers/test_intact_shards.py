"""A file of states is removed only where its bytes are certainly wrong."""

import errno
import mmap
import os
import shutil

import pytest
from safetensors import safe_open
from safetensors.torch import save_file
from test_state_store import OF, piece, write

from nemo_xtoken.errors import InputError
from nemo_xtoken.teachers.store import state_shard
from nemo_xtoken.teachers.store.state_formats import format_for
from nemo_xtoken.teachers.store.state_store import StateStore
from nemo_xtoken.teachers.store.state_writer import StateWriter
from nemo_xtoken.teachers.store.store_report import inspect_store


def failing(number):
    def fail(*_, **__):
        raise OSError(number, os.strerror(number))

    return fail


def with_header(path, **changes):
    """The same file with other words in its header."""
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no dict)
        header = file.metadata()
    save_file(tensors, path, metadata=header | changes)


def files_and_bytes(folder):
    return {path.name: path.read_bytes() for path in folder.glob("states-*")}


def opened(folder):
    return StateWriter(folder, OF, format_for(None, OF.dtype))


@pytest.fixture
def folder(tmp_path):
    """Two files."""
    write(tmp_path, [piece(n, 0, 10) for n in range(2)], shard_bytes=1)
    return tmp_path


def refused(folder, match):
    """By a writer, a report and a store, each in one message; and no byte is changed."""
    before = files_and_bytes(folder)
    assert len(before) == 2
    (folder / "index.safetensors").unlink()
    for action in (opened(folder).__enter__, lambda: inspect_store(folder), lambda: StateStore(folder, OF)):
        with pytest.raises(InputError, match=match) as raised:
            action()
        assert "delete" not in raised.value.fix
    assert files_and_bytes(folder) == before


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EMFILE, errno.ENOMEM, errno.EACCES])
@pytest.mark.parametrize("call", ["open", "mmap"])
def test_a_file_that_cannot_be_read_now_stays(folder, monkeypatch, number, call):
    with monkeypatch.context() as patched:
        if call == "open":
            patched.setattr(state_shard, "tensor_places", failing(number))
        else:
            patched.setattr(mmap, "mmap", failing(number))
        refused(folder, os.strerror(number))
    with opened(folder):  # the one that failed holds no lock
        pass
    assert len(StateStore(folder, OF)) == 2


@pytest.mark.parametrize("change", [{"format_version": "2"}, {"format": "fp6"}])
def test_a_file_of_another_version_stays(folder, change):
    with_header(next(iter(sorted(folder.glob("states-*")))), **change)
    refused(folder, "its header names format")


def test_a_file_of_somebody_else_stays_where_states_are_written(folder):
    shutil.copy(next(folder.glob("states-*")), folder / "states-foo.safetensors")
    (folder / "states-1.safetensors").write_bytes(b"other")
    with opened(folder):
        pass
    assert len(files_and_bytes(folder)) == 4


def test_a_damaged_file_is_removed(folder):
    one, two = sorted(folder.glob("states-*"))
    one.write_bytes(one.read_bytes()[:-1])
    with opened(folder):
        pass
    assert list(files_and_bytes(folder)) == [two.name]

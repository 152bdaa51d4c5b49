"""A student's side of a teacher elsewhere, with a real service: what it asks for, and what it keeps."""

import errno
import os
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("zmq")

from test_service import IDS, LENGTH, OF, QUICK, WIDTH, service, states_of  # noqa: F401 (a fixture)

from nemo_xtoken.data.batch import TeacherSide
from nemo_xtoken.leftovers import host_name
from nemo_xtoken.parallel.context_parallel import ContextLayout
from nemo_xtoken.teachers.service import keeping, remote
from nemo_xtoken.teachers.source_settings import CacheConfig, ServiceConfig
from nemo_xtoken.teachers.store.state_store import StateStore


def side(*texts):
    """A micro-batch of whole documents of LENGTH tokens, each named by a number."""
    ids = [torch.randint(0, IDS, (LENGTH,), generator=torch.Generator().manual_seed(text)) for text in texts]
    nothing, rows = torch.zeros(0, 5, dtype=torch.int64), torch.arange(len(texts))
    pieces = torch.stack([rows, rows * 0, rows * 0 + LENGTH, rows * 0], 1)
    digests = torch.tensor([[text, *[7] * 15] for text in texts], dtype=torch.uint8)
    tokens = torch.stack(ids)
    positions = torch.arange(LENGTH).expand_as(tokens)
    return TeacherSide(tokens, positions, tokens * 0, rows, tokens, pieces, digests, nothing, nothing)


@pytest.fixture
def student(service, tmp_path, monkeypatch):  # noqa: F811
    """``student(kind)``: a teacher of the kind, of a run of one process; its service has one replica, ``.replica``."""
    parallel = SimpleNamespace(is_pipeline_last_stage=lambda: True)
    monkeypatch.setitem(sys.modules, "megatron.core", SimpleNamespace(parallel_state=parallel))
    monkeypatch.setattr(remote.torch.cuda, "current_device", lambda: "cpu")
    monkeypatch.setattr(remote, "Patience", lambda *_: QUICK)
    made, form = [], SimpleNamespace(context_layout=lambda one: ContextLayout.zigzag(*one.tokens.shape, None))
    settings = SimpleNamespace(
        source="remote+cached",
        service=ServiceConfig(str(tmp_path / "service")),
        cache=CacheConfig(str(tmp_path / "states")),
    )
    config = SimpleNamespace(hidden_size=WIDTH)
    host = SimpleNamespace(
        label="teacher", settings=settings, dtype=torch.float32, config=config, form=form, fingerprint=lambda: OF
    )

    def make(kind=keeping.KeepingTeacher):
        made.append(kind(host))
        return made[-1]

    make.replica, make.folder = service("one"), tmp_path / "states"
    yield make
    for one in made:
        one.close()


def check(teacher, *sides):
    """The states of each micro-batch, one after the other, are those of its rows."""
    for one in sides:
        [states] = teacher.states([one])
        expected = torch.cat([states_of(sample.row) for sample in remote.samples_of(one)])
        assert torch.equal(states.hidden, expected)


def parts(folder):
    return sorted(path.name for path in folder.glob("part-*"))


def test_one_text_in_many_micro_batches_is_asked_for_once(student):
    """As held-out text is filled up to whole batches; announced or not; and nothing is held after the step."""
    teacher, step = student(remote.RemoteTeacher), [side(1, 2), side(3, 1), side(1, 1), side(1, 2)]
    teacher.wait(step)
    check(teacher, *step)
    assert len(student.replica.rows) == 3
    for _ in range(2):  # two steps ahead, of the same text
        teacher.announce(step)
    for _ in range(2):
        teacher.wait(step)
        teacher.wait(step)  # some frameworks wait before a step, and again when it begins
        check(teacher, *step)
    assert len(student.replica.rows) == 6
    assert not teacher.pool._rows
    assert not teacher.pool._results
    assert not teacher._due


def test_states_that_nobody_has_announced_are_held_no_longer(student):
    teacher = student(remote.RemoteTeacher)
    check(teacher, side(1, 2), side(1))
    assert len(student.replica.rows) == 3
    assert not teacher.pool._rows
    assert not teacher._due


def test_a_restart_takes_over_the_part_of_the_process_before(student):
    """With what it left; while two are at work each has its own.

    What a machine of the same name is writing stays: locks of one may not be seen by the other.
    """
    ended = subprocess.Popen(["true"])
    ended.wait()
    for text in (1, 2):
        teacher = student()
        check(teacher, side(text))
        teacher.close()
        own = student.folder / f"part-run-{host_name()}-0"
        left, written = (
            own / f".states-00000{number}-0.safetensors.{host_name()}-{ended.pid}{space}-0123abcd.tmp"
            for number, space in ((9, ""), (8, "-7"))
        )
        left.write_bytes(b"of a writer that was killed")
        written.write_bytes(b"of one on another machine")
    two = [student(), student()]
    assert not left.exists()
    assert written.exists()
    assert parts(student.folder) == [f"part-run-{host_name()}-{number}" for number in range(2)]
    check(two[0], side(1, 2))
    assert len(student.replica.rows) == 2


def test_what_other_machines_left_goes_when_it_is_old(student):
    left = student.folder / "part-run-elsewhere-0" / ".states-000000-0.safetensors.elsewhere-7-0123abcd.tmp"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"half a file")
    student().close()
    assert left.exists()
    os.utime(left, (0, 0))
    student()
    assert not left.exists()


def test_what_is_written_is_remembered_by_the_store_alone(student, monkeypatch):
    """Each piece is written once, whenever a look falls between its arrival and its use, and memory does not grow."""
    monkeypatch.setattr(keeping, "LOOK_SECONDS", 0.0)
    teacher = student()
    for text in range(12):
        step = [side(text, text // 2), side(text)]
        teacher.announce(step)
        teacher.wait(step)
        teacher.announce([side(100)])  # of the next step: a look
        check(teacher, *step)
        assert len(teacher._written) <= 2
    teacher.close()
    assert len(StateStore(student.folder, OF)) == 12
    assert len(set(student.replica.rows)) == len(student.replica.rows)


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.ENOSPC])
def test_a_folder_that_cannot_be_written_at_the_start_is_read_all_the_same(student, monkeypatch, caplog, number):
    """A run that has gone on with a full disk must be able to start again."""
    first = student()
    check(first, side(1))
    first.close()

    mkdir = Path.mkdir

    def refused(path, *arguments, **options):
        if student.folder in path.parents:
            raise OSError(number, os.strerror(number))
        mkdir(path, *arguments, **options)

    monkeypatch.setattr(Path, "mkdir", refused)
    teacher = student()
    check(teacher, side(1, 2))
    assert [record.message.split(":")[0] for record in caplog.records] == [
        "the states of the teacher are not kept any more"
    ]
    teacher.close()
    assert len(student.replica.rows) == 2
    assert len(StateStore(student.folder, OF)) == 1


def test_what_the_folder_has_is_read_once_and_ahead(student, monkeypatch):
    """A step waits for its states and takes them later: two questions, one reading, on the reader's thread."""
    first = student()
    check(first, side(1, 2), side(3))
    first.close()
    reads, original = [], StateStore.read

    def read(self, segment, ids, dtype):
        reads.append(threading.current_thread())
        return original(self, segment, ids, dtype)

    monkeypatch.setattr(StateStore, "read", read)
    before = set(threading.enumerate())
    teacher, steps = student(), [[side(1, 2)], [side(3, 1)]]
    for step in steps:
        teacher.announce(step)
    for step in steps:
        teacher.wait(step)
        teacher.wait(step)
        check(teacher, *step)
    assert len(reads) == 3  # of the text that comes twice the states are still there
    assert threading.main_thread() not in reads
    assert len(student.replica.rows) == 3
    assert not teacher._reader._wanted
    assert not teacher._due
    teacher.close()
    assert set(threading.enumerate()) == before

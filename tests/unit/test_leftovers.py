"""What killed processes leave behind, whoever wrote it: removed by the next run, and by nobody while it is written."""

import os
import signal
import subprocess
import sys
import time

import pytest

from nemo_xtoken import files, leftovers
from nemo_xtoken.files import atomic_path
from nemo_xtoken.leftovers import host_name, temporary_name, tidy
from nemo_xtoken.weights.folder import new_folder


def dead() -> int:
    """The number of a process that has ended."""
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def name(pid: int, host: str | None = None, kind: str = "tmp") -> str:
    return f".model.json.{host or host_name()}-{pid}-0123abcd.{kind}"


def test_a_temporary_name_can_be_told_from_all_others(tmp_path):
    for target in ("a", "model.json", ".hidden", "spaces in it", "é" * 200, "x.tmp"):
        temporary = temporary_name(target)
        assert leftovers._NAME.fullmatch(temporary), temporary
        (tmp_path / temporary).touch()
    assert tidy(tmp_path) == []  # this process runs
    for other in ("model.json", ".model.json.tmp", "..tmp", ".a.b-c.tmp", ".x.1h2c4eo6.tmp"):
        (tmp_path / other).touch()
    assert not [path for path in tidy(tmp_path) if path.name[0] != "."]
    assert (tmp_path / ".x.1h2c4eo6.tmp").exists()


@pytest.mark.parametrize("folder", [False, True])
@pytest.mark.parametrize(
    ("host", "running", "age", "removed"),
    [
        (None, False, 0, True),
        (None, True, 0, False),
        (None, True, 2 * 86400, True),
        ("elsewhere", False, 0, False),  # whether it runs there cannot be told from here
        ("elsewhere", False, 2 * 86400, True),
    ],
)
def test_only_what_nobody_writes_any_more_is_removed(tmp_path, host, running, age, removed, folder):
    path = tmp_path / name(os.getpid() if running else dead(), host)
    if folder:
        path.mkdir()
        (path / "weights").write_text("half")
    else:
        path.write_text("half")
    then = time.time() - age
    os.utime(path, (then, then))
    assert tidy(tmp_path) == [path] * removed
    assert path.exists() != removed


@pytest.mark.parametrize("kind", ["tmp", "old"])
def test_containers_of_one_machine_leave_each_other_alone(tmp_path, monkeypatch, kind):
    """They may bear one name, and each has processes of the other's numbers, or has none of them."""
    monkeypatch.setattr(os, "getpid", dead)
    monkeypatch.setattr(leftovers, "_space", lambda: 4026532000)
    other = tmp_path / temporary_name("model.json", kind)
    (other / "model.json").mkdir(parents=True)
    monkeypatch.undo()
    assert tidy(tmp_path) == []
    assert (other / "model.json").is_dir()
    then = time.time() - 2 * 86400
    os.utime(other, (then, then))
    assert tidy(tmp_path) == [other]
    own = tmp_path / temporary_name("model.json", kind).replace(f"-{os.getpid()}-", f"-{dead()}-")
    own.touch()
    assert tidy(tmp_path) == [own]


def test_machines_of_one_name_leave_each_other_alone(tmp_path, monkeypatch):
    """Outside of containers the kernel's number of what counts processes is the same on all of them."""
    monkeypatch.setattr(os, "getpid", dead)
    monkeypatch.setattr(leftovers, "system_name", lambda: f"another boot {os.readlink('/proc/self/ns/pid')}")
    other = tmp_path / temporary_name("model.json")
    other.touch()
    monkeypatch.undo()
    assert tidy(tmp_path) == []
    assert other.exists()


@pytest.mark.parametrize("replaced", [False, True])
def test_a_model_that_was_set_aside_comes_back_if_nothing_took_its_place(tmp_path, replaced):
    aside = tmp_path / name(dead(), kind="old")
    (aside / "model.json").mkdir(parents=True)
    (aside / "model.json" / "weights").write_text("old")
    if replaced:
        (tmp_path / "model.json").mkdir()
    tidy(tmp_path)
    assert not aside.exists()
    assert (tmp_path / "model.json").exists()
    assert (tmp_path / "model.json" / "weights").exists() != replaced


_KILLED = """
import os, signal, sys
from pathlib import Path
from nemo_xtoken.files import atomic_path
from nemo_xtoken.weights.folder import new_folder
kind, target = sys.argv[1:]
with (atomic_path if kind == "file" else new_folder)(Path(target)) as temporary:
    assert temporary.exists()
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_killed_writer_leaves_nothing_for_longer_than_the_next_one(tmp_path, kind):
    target = tmp_path / "out"
    done = subprocess.run([sys.executable, "-c", _KILLED, kind, str(target)], timeout=60)
    assert done.returncode == -signal.SIGKILL
    assert len(list(tmp_path.iterdir())) == 1
    files._tidy_once.cache_clear()
    if kind == "file":
        with atomic_path(tmp_path / "another") as temporary:
            temporary.write_text("whole")
    else:
        with new_folder(tmp_path / "another") as temporary:
            (temporary / "config.json").write_text("{}")
    assert [path.name for path in tmp_path.iterdir()] == ["another"]

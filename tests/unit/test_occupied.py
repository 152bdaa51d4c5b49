"""One process at a time in a run's folder, and what becomes of a folder whose owner is dead."""

import json
import os
import resource
import subprocess
import sys
import time

import pytest

from nemo_xtoken import occupied
from nemo_xtoken.errors import InputError
from nemo_xtoken.occupied import FILE, Occupied


@pytest.fixture(autouse=True)
def _fast(monkeypatch):
    """Signs of life every 10 ms; silence after 0.2 s."""
    for name, seconds in (("BEAT", 0.01), ("SILENCE", 0.2), ("WAIT", 0.02)):
        monkeypatch.setattr(occupied, name, seconds)


def owner(folder, **changes):
    """Writes the file of another owner."""
    me = {**occupied._identity(), "since": "2026-01-02 03:04:05 +0000", "beats": 7, **changes}
    (folder / FILE).write_text(json.dumps(me))
    return me


def dead_pid():
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    return done.pid


def test_it_is_held_and_given_back(tmp_path):
    folder = tmp_path / "runs" / "a"
    with Occupied(folder):
        said = json.loads((folder / FILE).read_text())
        assert said["pid"] == os.getpid()
        assert {"host", "system", "start", "since", "beats"} <= said.keys()
    assert not list(folder.iterdir())


def test_it_is_given_back_after_an_error(tmp_path):
    with pytest.raises(ZeroDivisionError), Occupied(tmp_path):
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())


def test_a_second_process_is_refused_and_told_who_is_there(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    program = (
        "import sys; from pathlib import Path; from nemo_xtoken.occupied import Occupied\n"
        "with Occupied(Path(sys.argv[1])): print('there', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout.readline() == "there\n"
        with pytest.raises(InputError) as caught, Occupied(tmp_path):
            pass
        for word in (str(other.pid), occupied.socket.gethostname(), "job 4711", "since 20", str(tmp_path / FILE)):
            assert word in str(caught.value)
        other.kill()
        other.wait()
    assert (tmp_path / FILE).is_file()
    with Occupied(tmp_path):  # its owner was killed: this is seen at once
        assert json.loads((tmp_path / FILE).read_text())["pid"] == os.getpid()
    assert not list(tmp_path.iterdir())


def test_a_rank_that_is_not_the_first_does_nothing(tmp_path):
    with Occupied(tmp_path), Occupied(tmp_path, first=False):
        pass
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "change",
    [
        {"pid": dead_pid},  # on this machine
        {"start": lambda: "1"},  # its number was used again
        {"system": lambda: "another boot"},  # another machine, or this one started anew: no sign of life
        {"system": lambda: "another", "pid": lambda: 1},
        {"pid": lambda: "none", "beats": lambda: None},
    ],
)
def test_a_dead_owner_is_replaced(tmp_path, change, caplog):
    owner(tmp_path, **{name: value() for name, value in change.items()})
    with Occupied(tmp_path):
        assert json.loads((tmp_path / FILE).read_text())["pid"] == os.getpid()
    assert "this run goes on there" in caplog.text
    assert "2026-01-02" in caplog.text
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", ["", "{", "[]", "3", '{"pid": "x"}', "\0" * 100])
def test_a_file_cut_short_is_one_of_the_dead(tmp_path, content):
    (tmp_path / FILE).write_text(content)
    with Occupied(tmp_path):
        pass
    assert not list(tmp_path.iterdir())


def test_an_owner_on_another_machine_lives_as_long_as_it_says_so(tmp_path, monkeypatch):
    me = owner(tmp_path, system="another machine", host="node7")
    beats = iter(range(8, 10**6))

    def sleep(seconds):
        (tmp_path / FILE).write_text(json.dumps({**me, "beats": next(beats)}))

    monkeypatch.setattr(occupied.time, "sleep", sleep)
    with pytest.raises(InputError, match=r"on node7.*a sign of life"), Occupied(tmp_path):
        pass
    assert json.loads((tmp_path / FILE).read_text())["host"] == "node7"


def test_a_disk_that_is_full_takes_the_folder_from_nobody(tmp_path, caplog):
    """What is said there stays, and is said again when there is room: an empty file would be one of the dead."""
    with Occupied(tmp_path):
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (10, before[1]))
        try:
            time.sleep(0.2)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        said = json.loads((tmp_path / FILE).read_text())
        assert said["pid"] == os.getpid()
        time.sleep(0.2)
        assert json.loads((tmp_path / FILE).read_text())["beats"] > said["beats"]
    assert not list(tmp_path.iterdir())
    assert "taken" not in caplog.text


def test_who_waits_for_another_machine_is_told_of_it_once(tmp_path, monkeypatch, caplog):
    me = owner(tmp_path, system="another machine", host="node7")
    beats = iter(range(8, 200))

    def sleep(seconds):
        number = next(beats, None)
        if number is None:
            (tmp_path / FILE).unlink(missing_ok=True)
        else:
            (tmp_path / FILE).write_text(json.dumps({**me, "beats": number}))

    with monkeypatch.context() as patch:
        patch.setattr(occupied.time, "sleep", sleep)
        with Occupied(tmp_path, wait=True):
            pass
    assert caplog.text.count("for a sign of life") == 1


def test_who_waits_comes_after_the_other_and_says_once_for_whom(tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO", "nemo_xtoken.progress")
    owner(tmp_path, pid=os.getppid(), start=occupied._start(os.getppid()))
    looks = []

    def sleep(seconds):
        looks.append(seconds)
        if len(looks) == 3:
            (tmp_path / FILE).unlink()

    monkeypatch.setattr(occupied.time, "sleep", sleep)
    with Occupied(tmp_path, wait=True):
        assert len(looks) == 3
    [line] = caplog.messages
    assert line.startswith(f"{tmp_path} is held by process {os.getppid()} ")
    assert line.endswith(": waiting for its end")


def test_a_sign_of_life_is_given(tmp_path):
    with Occupied(tmp_path):
        first = json.loads((tmp_path / FILE).read_text())["beats"]
        end = time.monotonic() + 20
        while json.loads((tmp_path / FILE).read_text() or '{"beats": 0}')["beats"] <= first:
            assert time.monotonic() < end


def test_who_was_replaced_does_not_take_the_other_away(tmp_path):
    with Occupied(tmp_path):
        other = owner(tmp_path, pid=1)
    assert json.loads((tmp_path / FILE).read_text()) == other


def test_of_many_that_find_it_dead_one_takes_it(tmp_path):
    owner(tmp_path, pid=dead_pid())
    program = (
        "import sys, os; from pathlib import Path; from nemo_xtoken.occupied import Occupied\n"
        "with Occupied(Path(sys.argv[1]), wait=True):\n"
        "    place = Path(sys.argv[1], 'inside'); place.mkdir(); place.rmdir()\n"
    )
    crowd = [subprocess.Popen([sys.executable, "-c", program, str(tmp_path)]) for _ in range(4)]
    assert [process.wait(60) for process in crowd] == [0] * 4
    assert not list(tmp_path.iterdir())

"""Processes that share a folder, on file systems whose locks may hold within a node alone."""

import json
import multiprocessing
import os
import threading
from pathlib import Path

import pytest

from nemo_xtoken.errors import InputError
from nemo_xtoken.leftovers import host_name, system_name
from nemo_xtoken.sharing import exclusive as lock
from nemo_xtoken.sharing import file_lock, first_process, heartbeat
from nemo_xtoken.sharing.exclusive import Busy, exclusive
from nemo_xtoken.sharing.first_process import ALONE, Launch, made_by_first
from nemo_xtoken.sharing.heartbeat import Beat, Heartbeat, Watcher, read_beat


class Clock:
    """Time that passes when somebody waits."""

    def __init__(self, then=lambda: None):
        self.now, self.then = 0.0, then

    def __call__(self):
        return self.now

    def pause(self, seconds):
        self.now += seconds
        self.then()


def beats(path, **changes):
    """A process elsewhere that writes a beat each time it is called."""
    count = iter(range(10**6))

    def write():
        path.parent.mkdir(exist_ok=True, parents=True)
        beat = vars(Beat("elsewhere", 7, "n", "aligning text")) | {"count": next(count)} | changes
        path.write_text(json.dumps(beat))

    return write


def _work(folder, node, barrier, together, queue):
    heartbeat.host_name = lambda: "one"  # containers' names may be equal: nodes differ in system and in its locks
    lock.system_name = heartbeat.system_name = lambda: node
    lock.LOCK = f".lock-{node}"
    lock.time.sleep = lambda seconds: barrier_free.wait(0.001)
    barrier_free = threading.Event()
    barrier.wait()
    said = []
    for _ in range(5):
        with exclusive(folder, f"work on {node}", said.append, pause=lambda s: barrier_free.wait(0.001)):
            with together.get_lock():
                together.value += 1
                alone = together.value == 1
            barrier_free.wait(0.002)
            with together.get_lock():
                together.value -= 1
            queue.put((node, alone))


def test_one_at_a_time_with_locks_that_are_local_to_a_node(tmp_path):
    """Without the file that only one can make, processes on two nodes would hold the lock at once."""
    context = multiprocessing.get_context("fork")
    barrier, together, queue = context.Barrier(4), context.Value("i", 0), context.Queue()
    nodes = ["a", "a", "b", "c"]
    processes = [context.Process(target=_work, args=(tmp_path, n, barrier, together, queue)) for n in nodes]
    for process in processes:
        process.start()
    found = [queue.get(timeout=60) for _ in range(20)]
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert all(alone for _, alone in found)
    assert not (tmp_path / lock.OWNER).exists()


def test_who_waits_says_for_whom_and_takes_over_from_the_dead(tmp_path):
    said, clock = [], Clock()
    beats(tmp_path / lock.OWNER)()  # once, and never again
    with exclusive(tmp_path, "mine", said.append, clock, clock.pause):
        assert read_beat(tmp_path / lock.OWNER).host == host_name()
    assert said == ["process 7 on elsewhere (aligning text)"]
    assert lock.DEAD < clock.now < lock.DEAD + 5


def test_an_owner_on_another_machine_of_this_name_is_not_taken_for_a_dead_one_of_this(tmp_path):
    """By locks that hold within a node this process has the lock; that owner lives all the same."""
    write = beats(tmp_path / lock.OWNER, host=host_name(), system="another boot")
    write()

    def then():
        write() if clock.now < 200 else (tmp_path / lock.OWNER).unlink(missing_ok=True)

    clock = Clock(then)
    with exclusive(tmp_path, "mine", clock=clock, pause=clock.pause):
        assert clock.now >= 200


def test_a_beat_of_a_later_version_is_read(tmp_path):
    """What it has besides is passed over; taken for none, its owner would count as silent."""
    beats(tmp_path / "beat", more="of it")()
    assert read_beat(tmp_path / "beat").host == "elsewhere"
    (tmp_path / "beat").write_text("[1]")
    assert read_beat(tmp_path / "beat") is None


def test_a_living_owner_is_waited_for(tmp_path):
    write = beats(tmp_path / lock.OWNER)
    write()

    def then():
        write() if clock.now < 1000 else (tmp_path / lock.OWNER).unlink(missing_ok=True)

    clock = Clock(then)
    with exclusive(tmp_path, "mine", clock=clock, pause=clock.pause):
        assert clock.now >= 1000


def test_a_killed_owner_on_this_machine_is_known_at_once(tmp_path):
    beats(tmp_path / lock.OWNER, system=system_name())()
    clock = Clock()
    with exclusive(tmp_path, "mine", clock=clock, pause=clock.pause):
        assert clock.now < lock.DEAD


def test_who_is_not_patient_is_told_who_is_at_work(tmp_path):
    """At once on this machine; from another node's owner as soon as it shows that it lives, or takes over."""
    with lock.file_lock(tmp_path / lock.LOCK), pytest.raises(Busy):
        exclusive(tmp_path, "mine", patient=False).__enter__()
    write = beats(tmp_path / lock.OWNER)
    write()
    clock = Clock(write)
    with pytest.raises(Busy, match="process 7 on elsewhere"):
        exclusive(tmp_path, "mine", None, clock, clock.pause, patient=False).__enter__()
    still = Clock()
    with exclusive(tmp_path, "mine", None, still, still.pause, patient=False):
        assert still.now > lock.DEAD


def test_a_lock_that_is_held_in_silence_is_an_error_that_names_its_owner(tmp_path):
    beats(tmp_path / lock.OWNER)()
    held = lock.file_lock(tmp_path / lock.LOCK)
    times = iter(range(0, 10**6, 300))
    with held, pytest.raises(InputError, match="process 7 on elsewhere") as error:
        exclusive(tmp_path, "mine", clock=lambda: float(next(times))).__enter__()
    assert "10 minutes" in error.value.found


# --- the first process of a job

SLURM = {
    "RANK": "0",
    "WORLD_SIZE": "16",
    "LOCAL_WORLD_SIZE": "8",
    "TORCHELASTIC_RUN_ID": "slurm-12-0",
    "SLURM_JOB_ID": "12",
}


def test_a_launch_by_its_environment(monkeypatch):
    assert Launch.of({}) == Launch.of({"RANK": "0", "WORLD_SIZE": "1"}) == ALONE
    first, other = Launch.of(SLURM), Launch.of(SLURM | {"RANK": "9"})
    assert first.first
    assert not other.first
    assert first.name == other.name
    assert first.certain
    again = Launch.of(SLURM | {"SLURM_RESTART_COUNT": "1"})
    assert again.name != first.name
    alone = SLURM | {"LOCAL_WORLD_SIZE": "16"}
    here = Launch.of(alone)
    monkeypatch.setattr(first_process, "system_name", lambda: "a machine with processes of the same numbers")
    assert Launch.of(alone).name != here.name
    by_hand = Launch.of({"RANK": "3", "WORLD_SIZE": "16", "LOCAL_WORLD_SIZE": "8", "TORCHELASTIC_RUN_ID": "none"})
    assert not by_hand.certain  # the next one has the same variables
    assert Launch.of({"RANK": "3", "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "8", "TORCHELASTIC_RUN_ID": "none"}).certain


def _rank(folder, rank, calls, queue):
    def make():
        with calls.get_lock():
            calls.value += 1
        return {"made": 42}

    queue.put((rank, made_by_first(Launch(rank, 4, "job"), folder, "key", "preparing text", make)))


def test_one_makes_it_for_all(tmp_path):
    context = multiprocessing.get_context("fork")
    calls, queue = context.Value("i", 0), context.Queue()
    processes = [context.Process(target=_rank, args=(tmp_path, rank, calls, queue)) for rank in (3, 2, 1, 0)]
    for process in processes:
        process.start()
    assert dict(queue.get(timeout=60) for _ in processes) == {rank: {"made": 42} for rank in range(4)}
    for process in processes:
        process.join(60)
    assert calls.value == 1


@pytest.fixture
def waiting(tmp_path):
    """Rank 1 of a job, and the file that it looks at."""

    def run(then, certain=True, key="key"):
        clock = Clock(then)
        launch = Launch(1, 2, "job", certain)
        path = tmp_path / f"{first_process.digest_of('made by first', 'job', key)[:32]}.json"
        arguments = launch, tmp_path, key, "preparing text", dict, clock, clock.pause, 0.0
        return lambda: made_by_first(*arguments), path, clock

    return run


def test_nobody_begins(waiting):
    run, _, clock = waiting(lambda: None)
    with pytest.raises(InputError, match="nobody has begun preparing text") as error:
        run()
    assert "NEMO_XTOKEN_CACHE" in error.value.fix
    assert clock.now < first_process.SILENT + 10


def test_the_first_dies(waiting):
    def then():
        if clock.now < 100:
            write()

    run, path, clock = waiting(then)
    write = beats(path)
    with pytest.raises(InputError, match=r"7 on elsewhere.* no sign of life for 10 minutes while aligning text"):
        run()
    assert 700 < clock.now < 800


def test_the_first_works_for_hours(waiting):
    def then():
        write() if clock.now < 7200 else beats(path, state="done", result={"a": 1}, count=9)()

    run, path, clock = waiting(then)
    write = beats(path)
    assert run() == {"a": 1}


def test_the_first_fails(waiting):
    run, path, _ = waiting(lambda: beats(path, state="failed", said="no data at x")())
    with pytest.raises(InputError, match="stopped while aligning text: no data at x"):
        run()


@pytest.mark.parametrize("certain", [True, False])
def test_what_an_earlier_launch_of_that_name_left_is_not_taken_for_the_result(waiting, certain):
    """Where names repeat, only a process that still beats has the result of this launch."""
    run, path, _ = waiting(lambda: None, certain)
    beats(path, state="done", result={"old": 1})()
    if certain:
        assert run() == {"old": 1}
        return
    with pytest.raises(InputError, match="nobody has begun"):
        run()
    os.utime(path, (1, 1))
    beats(path, state="failed", said="long ago")()
    os.utime(path, (-100, -100))
    with pytest.raises(InputError, match="nobody has begun"):
        run()


def test_an_error_of_the_first_is_told_and_raised(tmp_path):
    with pytest.raises(KeyError):
        made_by_first(Launch(0, 2, "job"), tmp_path, "key", "work", lambda: {"a": {}["x"]})
    (path,) = tmp_path.glob("*.json")
    assert read_beat(path).state == "failed"


@pytest.mark.parametrize(
    ("method", "error"), [("stat", FileNotFoundError), ("unlink", FileNotFoundError), ("unlink", PermissionError)]
)
def test_old_files_that_another_removes_or_owns_do_not_stop_the_first(tmp_path, monkeypatch, method, error):
    """Files of earlier launches, tidied by several at once or left by another user in a folder that all share."""
    for name in ("a", "b"):
        (tmp_path / f"{name}.json").write_text("{}")
        os.utime(tmp_path / f"{name}.json", (1, 1))
    original, met = getattr(Path, method), []

    def of_another(path, *arguments, **named):
        if path.name == "a.json":
            met.append(path)
            raise error(2, "gone", str(path))
        return original(path, *arguments, **named)

    monkeypatch.setattr(Path, method, of_another)
    assert made_by_first(Launch(0, 2, "job"), tmp_path, "key", "work", lambda: {"a": 1}) == {"a": 1}
    assert met
    assert not (tmp_path / "b.json").exists()


def test_a_heart_beats_by_itself_and_stops(tmp_path, monkeypatch):
    monkeypatch.setattr(heartbeat, "SECONDS", 0.001)
    watcher = Watcher(tmp_path / "beat")
    assert watcher.look() is None
    with Heartbeat(tmp_path / "beat", "work"):
        while not watcher.alive or watcher.beat.count < 3:
            watcher.look()
        assert watcher.beat.who == f"process {os.getpid()} on {host_name()}"
    assert watcher.look() is None
    assert list(tmp_path.iterdir()) == []


def test_a_lock_that_is_a_link_is_refused_by_every_version_of_filelock(tmp_path, monkeypatch):
    """Those before 3.20.1 empty what it leads to."""
    (tmp_path / "victim").write_text("kept")
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / lock.LOCK).symlink_to(tmp_path / "victim")
    monkeypatch.setattr(file_lock, "FileLock", lambda path: path.write_text(""))
    with pytest.raises(OSError, match="symbolic links"), exclusive(tmp_path / "work", "mine"):
        pass
    assert (tmp_path / "victim").read_text() == "kept"

"""Work in forked processes: results, errors, kills and interruptions; certificates do not depend on the processes."""

import errno
import json
import logging
import multiprocessing
import os
import signal
import sys
import time

import pytest
from tokenizer_zoo import write_folder

from nemo_xtoken.certify.side_by_side import beside, side_by_side
from nemo_xtoken.commands.cli import main

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are forked on Linux alone")


def ended(pid):
    """Whether there is no such process, or nothing of it but its number."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii") as file:
            return file.read().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def wait_until(condition):
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.parametrize("workers", [0, 1, 2, 3, 9])
def test_every_piece_is_done_once(workers):
    told = []
    found = list(side_by_side(lambda n: (n * n, os.getpid()), 7, workers, lambda n, done: told.append((n, done))))
    assert {n: square for n, (square, _) in found} == {n: n * n for n in range(7)}
    assert len(found) == 7
    here = {pid == os.getpid() for _, (_, pid) in found}
    assert here == {workers < 2}
    assert [n for n, _ in told] == list(range(7))
    assert [done for _, done in told] == sorted(done for _, done in told)
    assert 0 <= told[-1][1] <= 6
    assert not multiprocessing.active_children()


def test_an_error_is_raised_with_its_cause():
    def work(n):
        return 1 // (n - 3)

    found = {}
    with pytest.raises(ZeroDivisionError) as caught:
        found.update(side_by_side(work, 6, 2))
    assert "1 // (n - 3)" in str(caught.traceback[-1].statement)  # not the traceback of a pipe
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("which", [{0}, {5}, {1, 2}, set(range(6))])
def test_what_a_killed_process_leaves_is_done_here(which):
    me = os.getpid()

    def work(n):
        if n in which and os.getpid() != me:
            os.kill(os.getpid(), signal.SIGKILL)
        return n

    assert dict(side_by_side(work, 6, 2)) == {n: n for n in range(6)}


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_a_piece_beside(workers):
    with beside(os.getpid, workers) as found:
        assert (found() == os.getpid()) == (workers < 2)
    assert not multiprocessing.active_children()


def test_what_a_process_says_is_said_here_once(caplog):
    logger = logging.getLogger("nemo_xtoken.somewhere")

    def work(n):
        logger.warning("piece %d by %s", n, "nobody")
        return 1 // (n - 1)

    with pytest.raises(ZeroDivisionError):
        list(side_by_side(work, 3, 2))
    assert sorted(record.getMessage() for record in caplog.records) == [f"piece {n} by nobody" for n in range(3)]
    assert {record.name for record in caplog.records} == {logger.name}


def test_a_process_says_nothing_by_handlers_of_its_own(capfd):
    """A program that uses the package may write all that is said to a stream, which a process inherits."""
    logger, root, handler = logging.getLogger("nemo_xtoken.somewhere"), logging.getLogger(), logging.StreamHandler()
    root.addHandler(handler)
    try:
        list(side_by_side(lambda n: logger.warning("piece %d", n), 3, 2))
    finally:
        root.removeHandler(handler)
    assert sorted(capfd.readouterr().err.split("\n")) == ["", "piece 0", "piece 1", "piece 2"]


@pytest.mark.parametrize("allowed", [0, 1])
def test_where_no_more_processes_may_be_the_work_is_done_by_fewer_or_here(allowed, monkeypatch):
    start, started = multiprocessing.process.BaseProcess.start, []

    def refused(process):
        if len(started) == allowed:
            raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")
        started.append(process)
        start(process)

    monkeypatch.setattr(multiprocessing.process.BaseProcess, "start", refused)
    assert dict(side_by_side(lambda n: n, 5, 3)) == {n: n for n in range(5)}
    assert len(started) == allowed
    with beside(os.getpid, 2) as found:
        assert found() == os.getpid()
    assert not multiprocessing.active_children()


def test_tokenizers_may_use_no_threads_when_a_process_is_forked(monkeypatch):
    """They look at the moment of the fork."""
    monkeypatch.delenv("TOKENIZERS_PARALLELISM", raising=False)
    start, seen = multiprocessing.process.BaseProcess.start, []

    def looked_at(process):
        seen.append(os.environ.get("TOKENIZERS_PARALLELISM"))
        start(process)

    monkeypatch.setattr(multiprocessing.process.BaseProcess, "start", looked_at)
    assert dict(side_by_side(lambda n: os.environ["TOKENIZERS_PARALLELISM"], 2, 2)) == {0: "false", 1: "false"}
    assert seen == ["false", "false"]
    assert "TOKENIZERS_PARALLELISM" not in os.environ


def test_a_piece_beside_that_fails_is_done_here():
    me = os.getpid()
    with beside(lambda: os.getpid() if os.getpid() == me else os.kill(os.getpid(), signal.SIGKILL), 2) as found:
        assert found() == me
    with pytest.raises(ZeroDivisionError), beside(lambda: 1 // 0, 2) as found:
        found()
    started = time.monotonic()
    with pytest.raises(KeyError), beside(lambda: time.sleep(600), 2):
        raise KeyError
    assert time.monotonic() - started < 300
    assert not multiprocessing.active_children()


def test_an_interruption_ends_the_processes_at_once():
    running = side_by_side(lambda n: time.sleep(600 * n) or os.getpid(), 4, 2)
    _, pid = next(running)
    assert not ended(pid)
    with pytest.raises(KeyboardInterrupt):
        running.throw(KeyboardInterrupt)
    assert ended(pid)
    assert not multiprocessing.active_children()


def test_a_process_leaves_an_interruption_to_its_parent():
    def work(n):
        os.kill(os.getpid(), signal.SIGINT)
        return os.getpid()

    assert os.getpid() not in dict(side_by_side(work, 3, 2)).values()


def test_processes_end_with_a_killed_parent(tmp_path):
    def work(n):
        (tmp_path / f"{n}").write_text(str(os.getpid()))
        os.replace(tmp_path / f"{n}", tmp_path / f"{n}.pid")
        time.sleep(600)

    parent = os.fork()
    if not parent:
        try:
            list(side_by_side(work, 2, 2))
        finally:
            os._exit(1)
    wait_until(lambda: len(list(tmp_path.glob("*.pid"))) == 2)
    os.kill(parent, signal.SIGKILL)
    os.waitpid(parent, 0)
    pids = [int(file.read_text()) for file in tmp_path.glob("*.pid")]
    wait_until(lambda: all(map(ended, pids)))


def test_certificates_are_the_same_in_any_number_of_processes(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("NEMO_XTOKEN_CACHE", str(tmp_path / "cache"))
    sides = (("student", "llama"), ("teacher", "qwen"))
    words = [f"{side}={write_folder(name, tmp_path / name)}" for side, name in sides]
    found = []
    for workers in (0, 2):
        assert main(["certify", *words, "chunks=2", "steps=5", f"workers={workers}", "--json"]) == 0
        out, _ = capfd.readouterr()
        found.append(json.loads(out))
    assert found[0] == found[1]
    assert len(found[0]["losses"]) == 22

"""Runs that end before their last step: what asks them to, what survives that, and what they say."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from nemo_xtoken.data.workers import heed_parent_alone
from nemo_xtoken.errors import InputError
from nemo_xtoken.launch.unfinished import VARIABLE, report_unfinished, stopped_by_signal
from nemo_xtoken.training.step import explained
from nemo_xtoken.training.stopped import StoppedRun, StopRequests


@pytest.fixture
def requests():
    taken = StopRequests()
    taken.take()
    yield taken
    taken.leave()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_a_wish(requests, number):
    assert requests.asked == 0
    signal.raise_signal(number)
    assert requests.asked == number


def test_the_first_wish_counts_and_a_second_ctrl_c_stops_at_once(requests):
    signal.raise_signal(signal.SIGINT)
    signal.raise_signal(signal.SIGTERM)
    assert requests.asked == signal.SIGINT
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_handlers_are_put_back():
    before = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
    taken = StopRequests()
    taken.take()
    taken.take()
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)] != before
    taken.leave()
    taken.leave()
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)] == before
    thread = threading.Thread(target=StopRequests().take)  # where there are no handlers
    thread.start()
    thread.join()


def test_ctrl_c_for_a_loop_that_listens_to_sigterm():
    heard = []
    taken = StopRequests()
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        taken.take_ctrl_c()
        with pytest.raises(KeyboardInterrupt):  # nothing listens yet
            signal.raise_signal(signal.SIGINT)
        taken.asked = 0
        signal.signal(signal.SIGTERM, lambda *_: heard.append(1))
        signal.raise_signal(signal.SIGINT)
        assert (heard, taken.asked) == ([1], signal.SIGINT)
    finally:
        taken.leave()
        signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize(
    ("number", "status", "text"),
    [
        (signal.SIGTERM, 75, "stopped by SIGTERM after step 3 of 1,000; kept: runs/a; the same command goes on"),
        (signal.SIGINT, 130, "stopped by SIGINT after step 3 of 1,000; kept: runs/a"),
        (0, 75, "stopped after step 3 of 1,000; kept: runs/a"),
    ],
)
def test_what_is_said_and_the_status(number, status, text):
    stop = StoppedRun(number, 3, 1000, Path("runs/a"))
    assert stop.code == status
    assert text in str(stop)
    assert "no checkpoint is kept" in str(StoppedRun(number, 3, 1000, None))


def test_the_status_of_a_process():
    code = "from pathlib import Path; from nemo_xtoken.training.stopped import StoppedRun as S; raise S(15, 1, 2, None)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 75


@pytest.mark.parametrize("rank", ["0", "1"])
def test_a_job_s_script_is_told_by_a_file(tmp_path, monkeypatch, rank):
    monkeypatch.setenv("RANK", rank)
    for asked in (tmp_path / "file", None):
        monkeypatch.setenv(VARIABLE, str(asked or ""))
        with pytest.raises(SystemExit) as end, report_unfinished():
            raise StoppedRun(signal.SIGTERM, 1, 2, None)
        assert end.value.code == (75 if asked is None else 0)  # another status would let srun kill the other ranks
    assert (tmp_path / "file").exists() == (rank == "0")
    with pytest.raises(SystemExit) as end, report_unfinished():
        raise SystemExit(2)
    assert end.value.code == 2


@pytest.mark.parametrize("asked", [True, False])
def test_work_without_steps_is_stopped_by_a_signal(tmp_path, monkeypatch, asked):
    """A part of the data, or of a teacher's states: what is done is kept, and a job's script is told."""
    file, before = tmp_path / "file", signal.getsignal(signal.SIGTERM)
    monkeypatch.setenv(VARIABLE, str(file) if asked else "")
    with pytest.raises(SystemExit) as end, stopped_by_signal():
        signal.raise_signal(signal.SIGTERM)
    assert (end.value.code, file.exists()) == ((0, True) if asked else (143, False))
    assert signal.getsignal(signal.SIGTERM) is before


class _Numbers(torch.utils.data.Dataset):
    """The process that reads each sample."""

    def __len__(self):
        return 64

    def __getitem__(self, number):
        return os.getpid()


def test_readers_outlive_a_signal_to_all_but_not_their_parent():
    loader = torch.utils.data.DataLoader(_Numbers(), num_workers=1, worker_init_fn=heed_parent_alone)
    batches = iter(loader)
    reader = int(next(batches))
    for name in ("TERM", "INT"):  # from a process that is not the parent
        subprocess.run(["bash", "-c", f"kill -{name} {reader}"], check=True)
    assert len(list(batches)) == 63
    batches = iter(loader)
    process = batches._workers[0]
    next(batches)
    process.terminate()  # as PyTorch and multiprocessing end those that they have started
    process.join(10)
    assert process.exitcode is not None
    process.kill()


@pytest.mark.parametrize(
    ("text", "part"),
    [
        (
            "Unexpected result nan (message='found NaN in local grad norm for bucket #0 in backward pass')",
            "not a number",
        ),
        ("Unexpected result inf (message='found Inf in local grad norm for bucket #0')", "infinite"),
        ("Unexpected result 1e30 (message='found unexpectedly large grads in bucket #3')", "far too large"),
    ],
)
def test_a_gradient_is_named_as_such(text, part):
    error = RuntimeError(f"Rank 0, node n, device 0, iteration 7: {text}")
    found = explained(error, 8, SimpleNamespace(check_given=lambda step: None))
    assert isinstance(found, InputError)
    assert f"step 8: a gradient is {part}" in str(found)
    reason = InputError("step 8: the teacher's states are not numbers", "numbers", "see the teacher")

    def check_given(step):
        assert step == 8
        raise reason

    assert explained(error, 8, SimpleNamespace(check_given=check_given)) is reason


def test_other_errors_stay_as_they_are():
    for error in (RuntimeError("found NaN in the soup"), InputError("a", "b", "c"), ValueError("grad")):
        assert explained(error, 1, None) is error  # no teacher is asked

"""What is forked within the context ends with its parent, what is forked outside goes on."""

import os
import signal
import time
from contextlib import nullcontext

import pytest

from nemo_xtoken.sharing.forked_children import end_with_this_process


def _fork(context) -> tuple[int, int]:
    """A process and the one that it has forked, which sleeps."""
    reading, writing = os.pipe()
    if not (parent := os.fork()):
        with context:
            if not (child := os.fork()):
                time.sleep(60)
                os._exit(0)
        os.write(writing, str(child).encode())
        time.sleep(60)
        os._exit(0)
    return parent, int(os.read(reading, 20))


def _runs(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize(("context", "left"), [(end_with_this_process, False), (nullcontext, True)])
def test_a_killed_parent(context, left):
    parent, child = _fork(context())
    os.kill(parent, signal.SIGKILL)
    os.waitpid(parent, 0)
    end = time.monotonic() + (0.3 if left else 10)
    while _runs(child) and time.monotonic() < end:
        time.sleep(0.01)
    assert _runs(child) == left
    if left:
        os.kill(child, signal.SIGKILL)


def test_a_parent_that_goes_on():
    with end_with_this_process():
        if not (child := os.fork()):
            os._exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7

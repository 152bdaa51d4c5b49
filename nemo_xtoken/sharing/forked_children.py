"""Processes that are forked from this one, and end with it.

Megatron forks processes that write checkpoints.  Those of a process that is killed, for want of memory for example,
can wait for its answer for ever, and hold what they have inherited.
"""

import contextlib
import ctypes
import os
import signal
import sys
from collections.abc import Iterator

__all__ = ["cores_here", "end_with_this_process", "without_tokenizers_threads"]

_PR_SET_PDEATHSIG = 1  # prctl(2)
_prctl = ctypes.CDLL(None).prctl if sys.platform == "linux" else None
_parents: list[int] = []


@contextlib.contextmanager
def end_with_this_process() -> Iterator[None]:
    """What is forked meanwhile gets SIGKILL when this process ends, however that is; programs that are started do not.

    On Linux alone.  The kernel sends it when the *thread* ends that forked: for the main thread, and for others that
    outlive what they fork.
    """
    _parents.append(os.getpid())
    try:
        yield
    finally:
        _parents.pop()


@contextlib.contextmanager
def without_tokenizers_threads() -> Iterator[None]:
    """Tokenizers of processes that are started or forked meanwhile start no threads, and say nothing of it."""
    before = os.environ.get("TOKENIZERS_PARALLELISM")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    try:
        yield
    finally:
        if before is None:
            del os.environ["TOKENIZERS_PARALLELISM"]
        else:
            os.environ["TOKENIZERS_PARALLELISM"] = before


def cores_here() -> int:
    """That this process may use, where the system says so; else those of the machine."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _follow() -> None:
    if _prctl is None or not _parents:
        return
    parent = _parents[-1]
    _parents.clear()
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # which has ended in between
        os._exit(1)


os.register_at_fork(after_in_child=_follow)

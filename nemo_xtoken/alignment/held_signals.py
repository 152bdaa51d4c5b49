"""Signals that wait for the end of work which must not be left half done."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

__all__ = ["held_signals"]


@contextlib.contextmanager
def held_signals() -> Iterator[None]:
    """SIGTERM and Ctrl-C do what they do at the end of this context, and nothing within.

    Python runs their handlers between any two instructions of the main thread, and those of a job that is to stop raise
    an exception.  Outside of the main thread nothing is held, for there none is raised.  May be nested.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        came.append(number)

    numbers = [n for n in (signal.SIGTERM, signal.SIGINT) if callable(signal.getsignal(n))]
    before = {number: signal.signal(number, note) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for one in came:
            signal.raise_signal(one)

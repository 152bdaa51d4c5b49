"""A run that ends before its last step: how it is asked to, what is said of it, and its exit status.

No torch: the scripts of jobs know the status too.
"""

import signal
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

__all__ = ["EXIT_STATUS", "INTERRUPTED", "StopRequests", "StoppedRun"]

EXIT_STATUS = 75  # sysexits.h calls it "temporary failure, try again"
INTERRUPTED = 128 + signal.SIGINT


class StoppedRun(SystemExit):
    """Ends the process: 130 after Ctrl-C, else 75, which says that the same command goes on.

    Args:
        number: of the signal; 0: none, the trainer stopped by itself (``trainer.max_time``).
        step, steps: that are done, and those of the whole run.
        kept: the checkpoint; None: there is none.
    """

    def __init__(self, number: int, step: int, steps: int, kept: Path | None) -> None:
        super().__init__(INTERRUPTED if number == signal.SIGINT else EXIT_STATUS)
        by = f" by {signal.Signals(number).name}" if number else ""
        left = f"kept: {kept}; the same command goes on from there" if kept else "no checkpoint is kept (log.ckpt)"
        self.message = f"stopped{by} after step {step:,} of {steps:,}; {left}"

    def __str__(self) -> str:
        """For people."""
        return self.message


class StopRequests:
    """Takes SIGTERM and Ctrl-C as wishes to stop after the step that is going on; a second Ctrl-C stops at once.

    ``asked`` is the signal's number, 0 while there is none.  Outside of the main thread, where Python has no handlers,
    nothing is taken.
    """

    def __init__(self) -> None:
        self.asked = 0
        self._before: dict[int, Callable[[int, FrameType | None], Any] | int | None] = {}

    def take(self) -> None:
        """From now on."""
        if threading.current_thread() is threading.main_thread() and not self._before:
            self._before = {n: signal.signal(n, self._note) for n in (signal.SIGTERM, signal.SIGINT)}

    def take_ctrl_c(self) -> None:
        """Ctrl-C alone, as a SIGTERM to this process: for a loop that listens to that by itself."""
        if threading.current_thread() is threading.main_thread() and not self._before:
            self._before = {signal.SIGINT: signal.signal(signal.SIGINT, self._hand_on)}

    def leave(self) -> None:
        """As it was before."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _hand_on(self, number: int, frame: FrameType | None) -> None:
        self._note(number, frame)
        if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:  # nothing listens yet
            raise KeyboardInterrupt
        signal.raise_signal(signal.SIGTERM)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT == self.asked:
            raise KeyboardInterrupt
        self.asked = self.asked or number

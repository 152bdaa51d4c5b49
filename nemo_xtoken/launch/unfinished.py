"""How a run tells the job around it that it was stopped before its end.

Such a run ends with a status of its own (`training.stopped`).  Under a job's script it makes the file that the script
named instead, and ends with status 0 on every rank: if one rank ends with another one, srun kills those that are still
ending, and then reports that.  The script requeues the job or fails it, so that the next of a chain starts.
"""

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nemo_xtoken.training.stopped import EXIT_STATUS, StoppedRun

__all__ = ["EXIT_STATUS", "VARIABLE", "report_unfinished", "stopped_by_signal"]

VARIABLE = "NEMO_XTOKEN_STOPPED"


@contextlib.contextmanager
def report_unfinished() -> Iterator[None]:
    """Context around a run: tells the script if the run was stopped, or ends the process with status 0 by itself."""
    try:
        yield
    except SystemExit as stop:
        path = os.environ.get(VARIABLE)
        if not path or not (isinstance(stop, StoppedRun) or stop.code in (None, 0)):
            raise
        if os.environ.get("RANK", "0") == "0":
            Path(path).touch()
        raise SystemExit(0) from stop


@contextlib.contextmanager
def stopped_by_signal() -> Iterator[None]:
    """Context around work that keeps what it has done: SIGTERM ends it in good order, as `report_unfinished` says."""

    def stop(*_: Any) -> None:
        # Status 0 where a job's script looks for the file that says "not finished", see report_unfinished.
        raise SystemExit(0 if os.environ.get(VARIABLE) else 128 + signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        with report_unfinished():
            yield
    finally:
        signal.signal(signal.SIGTERM, before)

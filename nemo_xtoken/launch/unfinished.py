"""How a run tells the job around it that it was stopped before its end.

Such a run ends with a status of its own (`training.stopped`).  Under a job's script it makes the file that the script
named instead, and ends with status 0 on every rank: if one rank ends with another one, srun kills those that are still
ending, and then reports that.  The script requeues the job or fails it, so that the next of a chain starts.
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from nemo_xtoken.training.stopped import EXIT_STATUS, StoppedRun

__all__ = ["EXIT_STATUS", "VARIABLE", "report_unfinished"]

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

"""How a run tells the job around it that it was stopped before its end.

A run that gets SIGTERM saves a checkpoint and ends with status 0, on every rank, as a finished one does.  The first
rank then makes the file that the job's script named, and the script requeues the job or fails it, so that the next of a
chain starts.  (An exit status would not work: if one rank ends with another one than 0, srun kills those that are still
ending, and then reports that.)
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

__all__ = ["EXIT_STATUS", "VARIABLE", "report_unfinished"]

VARIABLE = "NEMO_XTOKEN_STOPPED"
EXIT_STATUS = 75  # of the job: sysexits.h calls it "temporary failure, try again"


@contextlib.contextmanager
def report_unfinished() -> Iterator[None]:
    """Context around a run: tells the script if the run ends the process with status 0 instead of returning."""
    try:
        yield
    except SystemExit as stop:
        path = os.environ.get(VARIABLE)
        if path and stop.code in (None, 0) and os.environ.get("RANK", "0") == "0":
            Path(path).touch()
        raise

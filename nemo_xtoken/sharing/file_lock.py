"""The lock of a file, as everything here takes it."""

import errno
import os
from pathlib import Path

from filelock import FileLock

__all__ = ["file_lock"]


def file_lock(path: str | Path) -> FileLock:
    """A lock that one process of a node can hold; see ``exclusive`` for one that holds between nodes.

    Raises:
        OSError: the file is a link: filelock before 3.20.1 follows it, and empties the file that it leads to.
    """
    if os.path.islink(path):
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
    return FileLock(path)

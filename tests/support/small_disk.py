"""A disk that is full, as far as a process can have one by itself."""

import contextlib
import resource

__all__ = ["small_disk"]


@contextlib.contextmanager
def small_disk():
    """No file may have more than 2,000 bytes, as on a disk that is full; pytest's own output neither, if it is one."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)

"""Memory that a training step gives back, kept for the next one.

A block above a size (at most 32 MiB) glibc gets from the kernel and gives back each time, and what is free at the end
of its heap it gives back too.  A step of a model with a large vocabulary asks for gigabytes in such blocks, again and
again, and the kernel clears each page anew: a third of the time of a step in bfloat16.
"""

import ctypes
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

__all__ = ["kept"]

#: Options of glibc's ``mallopt``.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4
_KEEPING = {_MMAP_MAX: 0, _TRIM_THRESHOLD: -1, _TOP_PAD: 64 * 2**20}
_OWN = {_MMAP_MAX: 65536, _TRIM_THRESHOLD: 128 * 2**10, _TOP_PAD: 128 * 2**10}


@contextmanager
def kept(environment: Mapping[str, str] = os.environ) -> Iterator[bool]:
    """Within it glibc takes all blocks from its heap and keeps what is free there; yields whether it does.

    Not where there is another allocator, or where the user has set glibc's (``MALLOC_..``, ``GLIBC_TUNABLES``).
    Afterwards it has its own defaults again, and the kernel what is free.
    """
    own = "GLIBC_TUNABLES" in environment or any(name.startswith("MALLOC_") for name in environment)
    libc = ctypes.CDLL(None)
    if own or not hasattr(libc, "gnu_get_libc_version"):
        yield False
        return
    try:
        yield all(libc.mallopt(option, value) for option, value in _KEEPING.items())
    finally:
        for option, value in _OWN.items():
            libc.mallopt(option, value)
        libc.malloc_trim(0)

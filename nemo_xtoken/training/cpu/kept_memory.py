"""Memory that a training step gives back, kept for the next one.

A block above a size (at most 32 MiB) glibc gets from the kernel and gives back each time, and what is free at the end
of its heap it gives back too.  A step of a model with a large vocabulary asks for gigabytes in such blocks, again and
again, and the kernel clears each page anew: a third of the time of a step in bfloat16.
"""

import ctypes
import os
from collections.abc import Mapping

__all__ = ["Kept"]

#: Options of glibc's ``mallopt``.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4
_KEEPING = {_MMAP_MAX: 0, _TRIM_THRESHOLD: -1, _TOP_PAD: 64 * 2**20}
_OWN = {_MMAP_MAX: 65536, _TRIM_THRESHOLD: 128 * 2**10, _TOP_PAD: 128 * 2**10}


class Kept:
    """Within it glibc takes all blocks from its heap and keeps what is free there.

    Not where there is another allocator, or where the user has set glibc's (``MALLOC_..``, ``GLIBC_TUNABLES``).
    Afterwards it has its own defaults again, and the kernel what is free.
    """

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        own = "GLIBC_TUNABLES" in environment or any(name.startswith("MALLOC_") for name in environment)
        self._libc = None if own else ctypes.CDLL(None)
        if not hasattr(self._libc, "gnu_get_libc_version"):
            self._libc = None

    def __enter__(self) -> bool:
        """Whether it does."""
        return self._set(_KEEPING)

    def __exit__(self, *_: object) -> None:
        if self._libc is not None:
            self._set(_OWN)
            self._libc.malloc_trim(0)

    def _set(self, options: Mapping[int, int]) -> bool:
        return self._libc is not None and all(self._libc.mallopt(*option) for option in options.items())

"""Standard output and standard error of this process in a file, C libraries' and child processes' too."""

import contextlib
import ctypes
import io
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

__all__ = ["OutputLog"]


class OutputLog:
    """Sends file descriptors 1 and 2 to a file, and Python's streams where they write elsewhere; keeps the real ones.

    The file is a temporary one until `move` says where it belongs.

    Attributes:
        out, err: the real standard output and error.
        path: the file.
        active: whether output goes to the file now.
    """

    def __init__(self) -> None:
        self._copies = [os.dup(descriptor) for descriptor in (1, 2)]  # children do not inherit these
        self.out, self.err = _stream(sys.stdout, 1, self._copies[0]), _stream(sys.stderr, 2, self._copies[1])
        handle, name = tempfile.mkstemp(prefix="nemo_xtoken-", suffix=".log")
        os.close(handle)
        self.path = Path(name)
        self._file = self.path.open("a", encoding="utf-8", errors="replace", buffering=1)
        self.active = False
        self._streams = contextlib.ExitStack()

    @contextlib.contextmanager
    def active_as(self, active: bool) -> Iterator[None]:
        """Within the context output goes to the file, or to the real streams; afterwards as before."""
        before = self.active
        self._switch(active)
        try:
            yield
        finally:
            self._switch(before)

    def write(self, line: str) -> None:
        """Adds a line to the file."""
        self._file.write(f"{line}\n")

    def move(self, path: Path) -> None:
        """Appends what was written so far to ``path``, and continues there.  The folder is made if needed."""
        if path == self.path:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        _flush()
        self._file.flush()
        with self.path.open("rb") as old, path.open("ab") as new:
            shutil.copyfileobj(old, new)
        target = os.open(path, os.O_WRONLY | os.O_APPEND)
        for descriptor in [self._file.fileno(), *((1, 2) if self.active else ())]:
            os.dup2(target, descriptor, inheritable=descriptor in (1, 2))
        os.close(target)
        self.path.unlink()
        self.path = path

    def tail(self, lines: int) -> list[str]:
        """The last lines of the file."""
        _flush()
        with self.path.open("rb") as file:
            file.seek(max(0, self.path.stat().st_size - 16384))
            return file.read().decode(errors="replace").splitlines()[-lines:]

    def close(self, keep: bool) -> None:
        """Output goes to the real streams again.

        Args:
            keep: False: the file is removed.
        """
        self._switch(False)
        self._file.close()
        for copy in self._copies:
            os.close(copy)
        if not keep:
            self.path.unlink(missing_ok=True)

    def _switch(self, active: bool) -> None:
        if active == self.active:
            return
        _flush()
        self.active = active
        targets = [self._file.fileno()] * 2 if active else self._copies
        for descriptor, target in zip((1, 2), targets, strict=True):
            os.dup2(target, descriptor)
        self._streams.close()
        if active:
            # Streams on the descriptors stay: others keep references to them, also beyond the life of the file.
            if sys.stdout is self.out:
                self._streams.enter_context(contextlib.redirect_stdout(self._file))
            elif isinstance(sys.stdout, io.TextIOWrapper):
                sys.stdout.reconfigure(line_buffering=True)
            if sys.stderr is self.err:
                self._streams.enter_context(contextlib.redirect_stderr(self._file))


def _stream(stream: TextIO, descriptor: int, copy: int) -> TextIO:
    """What writes to the real file behind ``stream`` whatever becomes of the descriptor."""
    try:
        own = stream.fileno() == descriptor
    except (AttributeError, OSError, ValueError, io.UnsupportedOperation):
        own = False
    if not own:  # another stream has replaced it: that one keeps its target
        return stream
    encoding, errors = getattr(stream, "encoding", None) or "utf-8", getattr(stream, "errors", None) or "replace"
    return open(copy, "w", encoding=encoding, errors=errors, buffering=1, closefd=False)


def _flush() -> None:
    """Flushes Python's and C's buffers to where their content was meant to go."""
    for stream in {sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__}:
        with contextlib.suppress(AttributeError, OSError, ValueError):
            stream.flush()  # type: ignore[union-attr]
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).fflush(None)

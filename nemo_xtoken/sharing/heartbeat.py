"""A small file that a working process writes again and again, so that others, on any node, see that it lives.

Clocks of different machines are not compared: whoever waits looks whether the content changes.
"""

import contextlib
import json
import os
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from nemo_xtoken.leftovers import host_name, system_name, temporary_name

__all__ = ["Beat", "Heartbeat", "Watcher", "read_beat"]

SECONDS = 10.0  # between two beats
State = Literal["working", "done", "failed"]


@dataclass(frozen=True)
class Beat:
    """What the file says.

    Attributes:
        host, pid: the process that wrote it.
        nonce: another for every heartbeat.
        doing: what it is about, as in "preparing text".
        count: beats so far.
        state: whether it still works.
        said: of one that failed, the error.
        result: of one that is done, what it made.
        system: what counts the process; another machine may have the same host name.
    """

    host: str
    pid: int
    nonce: str
    doing: str
    count: int = 0
    state: State = "working"
    said: str = ""
    result: dict[str, Any] = field(default_factory=dict)
    system: str = ""

    @property
    def who(self) -> str:
        """The process, for messages."""
        return f"process {self.pid} on {self.host}"


def read_beat(path: Path) -> Beat | None:
    """What a heartbeat's file says; None where there is none."""
    try:
        found = json.loads(path.read_bytes())
        return Beat(**{name: value for name, value in found.items() if name in Beat.__dataclass_fields__})
    except (FileNotFoundError, ValueError, TypeError, AttributeError):
        return None


class Heartbeat:
    """Writes a beat every few seconds while the context lasts, from a thread of its own.

    Errors in writing are passed over: they are no reason to stop the work, and whoever waits then says so.

    Args:
        path: the file.
        doing: what is being done.
        kept: leave the file behind.
    """

    def __init__(self, path: Path, doing: str, kept: bool = False) -> None:
        self._path, self._kept = path, kept
        self.beat = Beat(host_name(), os.getpid(), secrets.token_hex(8), doing, system=system_name())
        self._left: float | None = None
        self._ended = threading.Event()
        self._writing = threading.Lock()
        self._thread = threading.Thread(target=self._go_on, name="heartbeat", daemon=True)

    def tell(self, **changes: Any) -> None:
        """Changes fields of the beat, and writes it."""
        with self._writing:
            self.beat = Beat(**(vars(self.beat) | {"count": self.beat.count + 1} | changes))
            temporary = self._path.parent / temporary_name(self._path.name)
            with contextlib.suppress(OSError):
                try:
                    temporary.write_text(json.dumps(vars(self.beat)), "utf-8")
                    os.replace(temporary, self._path)
                finally:
                    temporary.unlink(missing_ok=True)

    def start(self) -> "Heartbeat":
        """The first beat; others follow until `stop`, or the end of the process."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self.tell()
        self._thread.start()
        return self

    def stop(self) -> None:
        """No more beats."""
        self._ended.set()
        self._thread.join()
        if not self._kept:
            with contextlib.suppress(OSError):
                self._path.unlink(missing_ok=True)

    def fade(self, seconds: float) -> None:
        """Beats for so long still, whatever else the process does; nothing waits for the end."""
        self._left = seconds

    def __enter__(self) -> "Heartbeat":
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _go_on(self) -> None:
        while not self._ended.wait(SECONDS) and (self._left is None or self._left > 0):
            self.tell()
            if self._left is not None:
                self._left -= SECONDS


class Watcher:
    """Looks at a heartbeat's file again and again.

    Attributes:
        beat: what it said last; None: nothing yet.
        alive: it has changed since the first look.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._path, self._clock = path, clock
        self._changed = clock()
        self._looked = False
        self.beat: Beat | None = None
        self.alive = False

    def look(self) -> Beat | None:
        """What the file says now."""
        beat = read_beat(self._path)
        if (None if beat is None else (beat.nonce, beat.count)) != (
            None if self.beat is None else (self.beat.nonce, self.beat.count)
        ):
            self._changed, self.alive = self._clock(), self._looked and beat is not None
            self.beat = beat
        self._looked = True
        return self.beat

    @property
    def silent(self) -> float:
        """Seconds since it last changed, or since the first look."""
        return self._clock() - self._changed

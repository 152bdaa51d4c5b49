"""The progress of a piece of work as log records, which a terminal shows as a bar and a log as a line now and then.

    with Phase("aligning", total=documents, unit="documents") as phase:
        phase.at(64, {"tokens/s": "12,000"})

Records go to the logger ``nemo_xtoken.progress``: at level INFO those that are worth a line, at DEBUG all others.  Each
has its `Snapshot` as the attribute ``progress``.  If logging is not set up, the lines go to standard error.
"""

import contextlib
import itertools
import logging
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Literal

__all__ = ["LOGGER", "Pace", "Parts", "Phase", "Snapshot", "as_time", "in_megabytes", "say"]

#: The logger of all progress.
LOGGER = logging.getLogger("nemo_xtoken.progress")

_keys = itertools.count()


@dataclass(frozen=True)
class Snapshot:
    """A phase at some moment.

    Attributes:
        key: tells it from other phases of the process.
        title: what is being done.
        unit: what is counted: "steps", "documents".
        state: its beginning, a moment between, its end, or its end by an error.
        done, total: how many; the total is None where it is not known.
        values: what else there is to see, as text, the most important first.
        seconds: since the beginning.
        left: seconds to the end at the present speed; None: not known.
    """

    key: int
    title: str
    unit: str
    state: Literal["begin", "at", "end", "failed"]
    done: int = 0
    total: int | None = None
    values: Mapping[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    left: float | None = None


class Phase:
    """A piece of work, from `begin` to `end`; as a context manager both are called.

    Phases may be nested.  Not for several threads.

    Args:
        title: what is being done, in a few words: "aligning".
        total: how much there is to do; None: not known.
        unit: what is counted.
        shown: False: nothing is reported, as on all ranks but the first.
        announced: the beginning is worth a line in a log.
    """

    def __init__(
        self, title: str, total: int | None = None, unit: str = "", shown: bool = True, announced: bool = True
    ) -> None:
        self.title, self.total, self.unit, self.shown, self.announced = title, total, unit, shown, announced
        self.done = 0
        self._first = 0
        self._start = time.monotonic()
        self._key = next(_keys)
        self._running = False
        self._listener = contextlib.ExitStack()

    def begin(self, done: int = 0, said: str = "") -> "Phase":
        """Starts the clock.

        Args:
            done: what an interrupted run has done before.
            said: more of what is to be done, for the line in a log.
        """
        self._first = self.done = done
        self._start = time.monotonic()
        self._running = True
        self._listener.close()
        if self.shown:
            self._listener.enter_context(_somebody_listens())
        count = "" if self.total is None else f"{self.total:,} {self.unit}"
        more = ", ".join(filter(None, [count, said]))
        self._tell("begin", f"{self.title} ({more})" if more else self.title, self.announced, {})
        return self

    def at(self, done: int, values: Mapping[str, str] | None = None, line: bool = False) -> None:
        """So many are done.

        Args:
            values: what else there is to see, as text, the most important first.
            line: this moment is worth a line in a log.
        """
        self.done = done
        values = dict(values or {})
        parts = [f"{done:,} {self.unit}" if self.total is None else f"{done:,} of {self.total:,} {self.unit}"]
        parts += [f"{name} {value}" for name, value in values.items()]
        if (left := self._seconds_left()) is not None:
            parts.append(f"{as_time(left)} left")
        self._tell("at", f"{self.title}: {', '.join(parts)}", line, values)

    def note(self, text: str) -> None:
        """A line for a log; a bar shows nothing of it."""
        self._tell("at", f"{self.title}: {text}", True, {})

    def end(self, said: str = "", values: Mapping[str, str] | None = None) -> None:
        """It is done; a second call does nothing.

        Args:
            said: the result, worth a line in a log.
            values: what remains visible beside the bar.
        """
        if self._running:
            self._tell("end", f"{self.title}: {said}", bool(said), dict(values or {}))
            self._close()

    def fail(self) -> None:
        """An error has ended it, which is reported elsewhere."""
        if self._running:
            self._tell("failed", f"{self.title}: stopped at {self.done:,} {self.unit}", False, {})
            self._close()

    @property
    def seconds(self) -> float:
        """Since the beginning."""
        return time.monotonic() - self._start

    @property
    def running(self) -> bool:
        """Whether it has begun and not ended."""
        return self._running

    def __enter__(self) -> "Phase":
        return self if self._running else self.begin()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.end()
        else:
            self.fail()

    def _seconds_left(self) -> float | None:
        if self.total is None or self.done <= self._first or self.done >= self.total:
            return None
        return self.seconds / (self.done - self._first) * (self.total - self.done)

    def _tell(
        self, state: Literal["begin", "at", "end", "failed"], text: str, line: bool, values: Mapping[str, str]
    ) -> None:
        level = logging.INFO if line else logging.DEBUG
        if self.shown and LOGGER.isEnabledFor(level):
            counts = self.done, self.total, values, self.seconds, self._seconds_left()
            seen = Snapshot(self._key, self.title, self.unit, state, *counts)
            LOGGER.log(level, "%s", text, extra={"progress": seen})

    def _close(self) -> None:
        self._running = False
        self._listener.close()


def in_megabytes(phase: Phase) -> Callable[[int, int], None]:
    """What tells a phase in MB how many bytes are written, of how many."""

    def show(written: int, total: int) -> None:
        phase.total = total // 1_000_000
        phase.at(written // 1_000_000, {"MB/s": f"{written / 1e6 / max(phase.seconds, 1e-9):,.0f}"})

    return show


def say(line: str, shown: bool = True) -> None:
    """A line that belongs to no phase.

    Args:
        shown: False: nothing is reported.
    """
    if shown:
        with _somebody_listens():
            LOGGER.info("%s", line)


class Parts:
    """What a command does one after the other, under a heading each: ``2 of 3: training the student``.

    Args:
        count: how many there are; a single one needs no heading.
        shown: False: nothing is reported.
    """

    def __init__(self, count: int, shown: bool = True) -> None:
        self._count, self._shown, self._begun = count, shown, 0

    def begin(self, doing: str) -> None:
        """The next one."""
        self._begun += 1
        say(f"{self._begun} of {self._count}: {doing}", self._shown and self._count > 1)


@contextlib.contextmanager
def _somebody_listens() -> Iterator[None]:
    """Within the context lines go to standard error if logging is not set up."""
    if LOGGER.hasHandlers():
        yield
        return
    handler, level = _Lines(), LOGGER.level
    LOGGER.addHandler(handler)
    LOGGER.setLevel(logging.INFO)
    try:
        yield
    finally:
        LOGGER.removeHandler(handler)
        LOGGER.setLevel(level)


class _Lines(logging.Handler):
    """Prints to what is standard error at the time."""

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), file=sys.stderr, flush=True)


class Pace:
    """Decides when the next line, or the next look, is due.

    Args:
        seconds: between two.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds, self._last = seconds, time.monotonic()

    def due(self) -> bool:
        """Whether it is time; if so the next is due so many seconds later."""
        now = time.monotonic()
        if now - self._last < self._seconds:
            return False
        self._last = now
        return True


def as_time(seconds: float) -> str:
    """``0:07``, ``12:30``, ``1:02:03``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"

"""How far the preparation of the data is: a bar on a terminal, a line at start and end elsewhere, or nothing."""

import time
from types import TracebackType
from typing import Any

from rich import progress as bars
from rich.console import Console

__all__ = ["Progress", "Surveying", "say"]

_QUIET_SECONDS = 10.0


def say(line: str, shown: bool = True, console: Console | None = None) -> None:
    """One line of plain text on ``console``, by default the standard error output."""
    if shown:
        (console or Console(stderr=True)).print(line, highlight=False, markup=False, soft_wrap=True)


class Progress:
    """A context around the preparation.

    Args:
        documents: to be aligned.
        characters: of all their texts.
        workers: processes, for the first line.
        shown: False: nothing is printed at all.
        console: where to; default the standard error output.
    """

    def __init__(
        self, documents: int, characters: int, workers: int, shown: bool = True, console: Console | None = None
    ) -> None:
        self._documents, self._characters, self._workers = documents, characters, workers
        self._shown = shown and documents > 0
        self._console = console or Console(stderr=True)
        self._done = self._tokens = 0
        self._bar: bars.Progress | None = None
        self._start = self._updated = time.monotonic()

    def __enter__(self) -> "Progress":
        self._start = time.monotonic()
        if self._shown and self._console.is_terminal:
            columns: tuple[Any, ...] = (
                bars.TextColumn("{task.description}"),
                bars.BarColumn(),
                bars.MofNCompleteColumn(),
                bars.TextColumn("documents, {task.fields[rate]:,.0f} tokens/s"),
                bars.TimeRemainingColumn(),
            )
            self._bar = bars.Progress(*columns, console=self._console)
            self._task = self._bar.add_task("tokenising and aligning", total=self._documents, rate=0.0)
            self._bar.start()
        elif self._shown:
            say(
                f"tokenising and aligning {self._documents:,} documents ({self._characters:,} characters, "
                f"{self._workers or 'no'} worker processes)",
                console=self._console,
            )
        return self

    def advance(self, documents: int, tokens: int) -> None:
        """So many more are done; tokens of both sides."""
        self._done += documents
        self._tokens += tokens
        if self._bar is not None and (time.monotonic() - self._updated > 0.1 or self._done == self._documents):
            self._updated = time.monotonic()
            self._bar.update(self._task, completed=self._done, rate=self._rate())

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        if self._shown and kind is None:
            say(
                f"aligned {self._done:,} documents, {self._tokens:,} tokens, in "
                f"{time.monotonic() - self._start:.1f} s ({self._rate():,.0f} tokens/s)",
                console=self._console,
            )

    def _rate(self) -> float:
        return self._tokens / max(time.monotonic() - self._start, 1e-9)


class Surveying:
    """How far the reading of files is: a bar on a terminal; elsewhere a line now and then, once it takes longer.

    Args:
        files: to be read.
        shown: False: nothing is printed at all.
    """

    def __init__(self, files: int, shown: bool = True, console: Console | None = None) -> None:
        self._files, self._shown = files, shown
        self._console = console or Console(stderr=True)
        self._done = self._documents = 0
        self._bar: bars.Progress | None = None
        self._said = time.monotonic()

    def __enter__(self) -> "Surveying":
        self._said = time.monotonic()
        if self._shown and self._console.is_terminal and self._files > 1:
            columns: tuple[Any, ...] = (
                bars.TextColumn("reading"),
                bars.BarColumn(),
                bars.MofNCompleteColumn(),
                bars.TextColumn("files, {task.fields[documents]:,} documents"),
                bars.TimeRemainingColumn(),
            )
            self._bar = bars.Progress(*columns, console=self._console, transient=True)
            self._task = self._bar.add_task("", total=self._files, documents=0)
            self._bar.start()
        return self

    def advance(self, documents: int) -> None:
        """One more file is read, with so many documents."""
        self._done += 1
        self._documents += documents
        if self._bar is not None:
            self._bar.update(self._task, completed=self._done, documents=self._documents)
        elif self._shown and time.monotonic() - self._said > _QUIET_SECONDS:
            self._said = time.monotonic()
            say(f"read {self._done:,} of {self._files:,} files, {self._documents:,} documents", console=self._console)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

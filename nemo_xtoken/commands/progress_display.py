"""Shows this package's messages: a bar for each phase on a terminal, plain lines elsewhere."""

import logging
import os
from collections.abc import Callable

from rich import progress as bars
from rich.console import Console
from rich.markup import escape
from rich.table import Column
from rich.text import Text

from nemo_xtoken.progress import LOGGER, Snapshot, as_time

__all__ = ["ProgressDisplay", "listen"]

TITLE, VALUES = 18, 34  # characters: with bar, count and time 80 are enough


class ProgressDisplay(logging.Handler):
    """Shows records of ``nemo_xtoken`` on a console.

    Of lines that are said twice, as by two runs on the same data, the first is shown; the log has both.

    Args:
        console: of the real standard error output.
        moving: bars that move; else lines without control characters.
        level: of the lines that are shown and are not of a phase.
        prefix: before every line.
        log: gets every record too.
    """

    def __init__(
        self,
        console: Console,
        moving: bool,
        level: int = logging.INFO,
        prefix: str = "",
        log: Callable[[logging.LogRecord], None] | None = None,
    ) -> None:
        super().__init__()
        self.console, self.moving, self.prefix, self.log = console, moving, prefix, log
        self._least = level
        self._process = os.getpid()
        self._bars: bars.Progress | None = None
        self._tasks: dict[int, bars.TaskID] = {}
        self._said: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        """Shows a record; a process that was forked from this one does not own the terminal and writes to the log."""
        if self.log is not None:
            self.log(record)
        if os.getpid() != self._process:
            return
        snapshot: Snapshot | None = getattr(record, "progress", None)
        if snapshot is not None and self.moving:
            self._draw(snapshot)
        elif record.levelno >= (self._least if snapshot is None or self._least >= logging.ERROR else logging.INFO):
            text = record.getMessage()
            if snapshot is not None or record.levelno > logging.INFO or text not in self._said:
                self.say(text, record.levelno)
            self._said.add(text)

    def say(self, text: str, level: int = logging.INFO) -> None:
        """A line, or a few."""
        style = "yellow" if level >= logging.WARNING else ""
        word = "" if level < logging.WARNING else "error: " if level >= logging.ERROR else "warning: "
        # A line of a log is not broken; on a terminal it breaks between words.
        self.console.print(Text(f"{self.prefix}{word}{text}", style), soft_wrap=not self.console.is_terminal)

    def close(self) -> None:
        """Leaves the bars as they are."""
        self.pause()
        super().close()

    def _draw(self, seen: Snapshot) -> None:
        if self._bars is None:
            self._bars = self._new_bars(counted=seen.total is not None or bool(seen.unit))
            self._bars.start()
            self.console.show_cursor(True)  # a killed process could not bring it back
        ended, indent = seen.state in ("end", "failed"), "  " * len(self._tasks)
        task = self._tasks.get(seen.key)
        if task is None:
            task = self._bars.add_task(indent + escape(seen.title), count="", values="", ended="", left=None)
            self._tasks[seen.key] = task
        self._bars.update(
            task,
            completed=(seen.total or 1) if seen.state == "end" else seen.done,
            total=(seen.total or 1) if ended else seen.total,
            count="" if seen.total is None else f"{seen.done:,}/{seen.total:,}",
            ended=as_time(seen.seconds) if ended else "",
            left=seen.left,
        )
        if seen.state == "failed":
            self._bars.update(task, values="stopped")
        elif seen.values:
            self._bars.update(task, values=escape(_fitting([f"{name} {value}" for name, value in seen.values.items()])))
        if ended:
            del self._tasks[seen.key]
            if self._tasks:  # within another phase, whose line has the result
                self._bars.remove_task(task)
            else:
                self.pause()

    def _new_bars(self, counted: bool) -> bars.Progress:
        time = _Time(table_column=Column(width=8, no_wrap=True, justify="right"))
        if counted:
            columns: tuple[bars.ProgressColumn, ...] = (
                bars.TextColumn("{task.description}", table_column=Column(width=TITLE, no_wrap=True)),
                bars.BarColumn(None, table_column=Column(ratio=1, min_width=5)),
                bars.TextColumn("{task.fields[count]}", justify="right", table_column=Column(no_wrap=True)),
                bars.TextColumn("{task.fields[values]}", table_column=Column(width=VALUES, no_wrap=True)),
                time,
            )
        else:
            columns = (bars.TextColumn("{task.description}", table_column=Column(ratio=1, no_wrap=True)), time)
        return bars.Progress(
            *columns,
            console=self.console,
            refresh_per_second=4,
            redirect_stdout=False,
            redirect_stderr=False,
            expand=True,
        )

    def pause(self) -> None:
        """Leaves the bars as they are; nothing moves until the next record."""
        if self._bars is not None:
            self._bars.stop()
            self._bars, self._tasks = None, {}


def _fitting(parts: list[str]) -> str:
    """As many of the first values as fit without being cut."""
    text = ""
    for part in parts:
        if len(text) + len(part) + 1 > VALUES:
            break
        text += f" {part}" if text else part
    return text


class _Time(bars.ProgressColumn):
    """The time left; of an ended phase the time it took; if neither is known, the time since the beginning."""

    def render(self, task: bars.Task) -> Text:
        if task.fields["ended"]:
            return Text(task.fields["ended"])
        left = task.fields["left"]
        return Text(as_time(task.elapsed or 0.0) if left is None else f"-{as_time(left)}")


def listen(display: ProgressDisplay, level: int) -> Callable[[], None]:
    """Makes a display the one that shows this package's records.

    Args:
        level: of the records, beside those of phases.

    Returns:
        what puts everything back.
    """
    package = logging.getLogger("nemo_xtoken")
    before = package.handlers[:], package.level, package.propagate, LOGGER.level
    package.handlers[:], package.propagate = [display], False
    package.setLevel(level)
    LOGGER.setLevel(logging.DEBUG if display.moving else logging.INFO)

    def undo() -> None:
        display.close()
        package.handlers[:], package.propagate = before[0], before[2]
        package.setLevel(before[1])
        LOGGER.setLevel(before[3])

    return undo

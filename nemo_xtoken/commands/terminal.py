"""The terminal of a command: this package writes to the terminal, all others to the run's log file."""

import contextlib
import faulthandler
import logging
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import TextIO

import rich
from rich.console import Console

from nemo_xtoken.commands.output_log import OutputLog
from nemo_xtoken.commands.progress_display import ProgressDisplay, listen
from nemo_xtoken.run.records import RUN_LOG

__all__ = ["VERBOSE", "Terminal", "wants_verbose"]

#: The environment variable that lets everything through to the terminal, as --verbose does.
VERBOSE = "NEMO_XTOKEN_VERBOSE"
TAIL = 15  # lines of the log that are shown after an unexpected error

_LOG_LINE = logging.Formatter("[%(asctime)s %(name)s %(levelname)s] %(message)s")


class Terminal:
    """A context around a command.

    Within `captured` everything that is printed goes to a log file: a temporary one until `log_to` says where the run's
    folder is and that folder is made.  Verbose, nothing is captured and there is no log file.

    Args:
        verbose: everything comes to the terminal.
        level: of this package's messages that are shown on the first rank; of the others' errors are.
        captures: False: `captured` does nothing, for commands that need no log.
    """

    def __init__(self, verbose: bool = False, level: int = logging.INFO, captures: bool = True) -> None:
        environment = os.environ
        self.rank = _rank(environment)
        self.verbose, self._captures = verbose, captures and not verbose
        self._level = level if self.rank == 0 else logging.ERROR
        self._batch = "SLURM_JOB_ID" in environment or int(environment.get("WORLD_SIZE", "1")) > 1
        self._output: OutputLog | None = None
        self._target: Path | None = None
        self._keep = False
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> "Terminal":
        errors: TextIO = sys.stderr
        if self._captures:
            self._output = OutputLog()
            errors = self._output.err
            self._stack.callback(_show_faults(errors))
        moving = not self.verbose and not self._batch and errors.isatty()
        # A prefix tells this package's lines from others'; where there are no others they need none.
        prefix = "[nemo_xtoken] " if self.verbose else ""
        self._display = ProgressDisplay(_console(errors), moving, self._level, prefix, self._log)
        self._stack.callback(listen(self._display, min(self._level, logging.INFO)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()
        if self._output is not None:
            self._settle()
            settled = self._output.path == self._target
            self._output.close(keep=settled or self._keep)

    @contextlib.contextmanager
    def captured(self) -> Iterator[None]:
        """Within the context output goes to the log, except on `rich.get_console()`, which shows results."""
        with self._captured(True):
            yield

    @contextlib.contextmanager
    def released(self) -> Iterator[None]:
        """Within `captured`: sends output to the terminal, for a question or a listing."""
        self._display.pause()
        with self._captured(False):
            yield

    def log_to(self, folder: Path) -> Path | None:
        """Says which folder the run has; the log goes there once it is made.

        Returns:
            where the log will be; None: there is none.
        """
        if self._output is None:
            return None
        self._target = folder / RUN_LOG if self.rank == 0 else folder / "logs" / f"rank{self.rank}.log"
        self._folder = folder
        return self._target

    @property
    def log(self) -> Path | None:
        """The log in the run's folder; None if there is none yet."""
        self._settle()
        return self._target if self._output is not None and self._output.path == self._target else None

    def say(self, text: str) -> None:
        """Shows lines to the user, on the first rank."""
        if self._level <= logging.INFO:
            self._display.say(text)
            if self._output is not None:
                self._output.write(text)

    def unexpected(self, error: BaseException) -> None:
        """Shows the traceback of an error that is the program's, not the user's, and the end of the log."""
        self._display.pause()
        with self._captured(False):
            traceback.print_exception(error)
            self.show_log()
            if self._output is not None:
                self._output.write("".join(traceback.format_exception(error)))

    def show_log(self) -> None:
        """Shows the end of the log, after an error, and where the whole is; that stays."""
        if self._output is None:
            return
        with self._captured(False):
            self._settle()
            if self.rank == 0:
                print("the last lines of the log:", *self._output.tail(TAIL), sep="\n  ", file=sys.stderr)
            print(f"the log: {self._output.path}", file=sys.stderr, flush=True)
            self._keep = True

    @contextlib.contextmanager
    def _captured(self, active: bool) -> Iterator[None]:
        if self._output is None:
            yield
            return
        before = self._output.active
        with self._output.active_as(active):
            self._results(active)
            try:
                yield
            finally:
                self._results(before)

    def _results(self, captured: bool) -> None:
        """What is printed on rich's console, tables of results for one, always comes to the real standard output."""
        assert self._output is not None
        if captured:
            rich.reconfigure(file=self._output.out, width=_width(self._output.out))
        else:
            rich.reconfigure()

    def _log(self, record: logging.LogRecord) -> None:
        if self._output is not None:
            self._settle()
            if record.levelno >= logging.INFO:
                self._output.write(_LOG_LINE.format(record))

    def _settle(self) -> None:
        """The log moves into the run's folder when that has been made: a run that is refused makes none."""
        if self._output is not None and self._target is not None and self._folder.is_dir():
            self._output.move(self._target)


def _rank(environment: Mapping[str, str]) -> int:
    """Of this process among those that say the same: 0 is the one that speaks.

    A process that Lightning starts is told its node and its place there alone; with several nodes this is a number of
    its own and not its rank.
    """
    if "RANK" in environment:
        return int(environment["RANK"])
    node, place = (int(environment.get(name, "0")) for name in ("NODE_RANK", "LOCAL_RANK"))
    return node * int(environment.get("WORLD_SIZE", "1")) + place


def wants_verbose(arguments: list[str], environment: Mapping[str, str]) -> bool:
    """Whether a command line or the environment asks for everything."""
    return environment.get(VERBOSE, "") not in ("", "0") or "--verbose" in arguments or "-v" in arguments


def _console(stream: TextIO) -> Console:
    return Console(file=stream, width=_width(stream), highlight=False, markup=False, emoji=False)


def _width(stream: TextIO) -> int | None:
    """Of the terminal behind a stream; None where rich finds out by itself, and follows it, or where there is none."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        if not os.isatty(0) and stream.isatty() and "COLUMNS" not in os.environ:
            return os.get_terminal_size(stream.fileno()).columns
    return None


def _show_faults(stream: TextIO) -> Callable[[], None]:
    """Shows the stack if C code of a library ends the process; returns the function that undoes this."""
    if faulthandler.is_enabled():
        return lambda: None
    try:
        faulthandler.enable(stream)
    except (OSError, ValueError, AttributeError):  # no file
        return lambda: None
    return faulthandler.disable

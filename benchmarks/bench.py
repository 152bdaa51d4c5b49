"""What the benchmarks share: turns of competitors in one process, peak memory of a call, the machine, JSON."""

import argparse
import contextlib
import ctypes
import gc
import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from nemo_xtoken.files import atomic_path

if TYPE_CHECKING:
    from rich.console import Console

__all__ = [
    "Parser",
    "in_turns",
    "load_pair",
    "machine",
    "machine_line",
    "markdown",
    "peak_memory",
    "ratio",
    "show_table",
    "wide_console",
    "write_json",
]

T = TypeVar("T")


class Parser(argparse.ArgumentParser):
    """A parser whose help keeps the lines of the script's own text, and knows the arguments that all share."""

    def __init__(self, text: str | None) -> None:
        super().__init__(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)

    def add_pair(self) -> None:
        """``--student``, ``--teacher``: what `load_pair` reads."""
        what = "tokenizer: a folder, a file or a name on the Hugging Face hub (default: the small one of xtoken_tiny)"
        self.add_argument("--student", help=f"the student's {what}")
        self.add_argument("--teacher", help=f"the teacher's {what}")

    def add_output(self) -> None:
        """``--json``: what `write_json` writes."""
        self.add_argument("--json", type=Path, metavar="FILE", help="also write every figure to this file")


def load_pair(arguments: argparse.Namespace) -> tuple[Any, Any]:
    """The student's and the teacher's `Vocabulary`."""
    from nemo_xtoken.recipes.tiny_text import student_tokenizer, teacher_tokenizer
    from nemo_xtoken.vocab import load_vocabulary

    return (
        load_vocabulary(arguments.student or student_tokenizer()),
        load_vocabulary(arguments.teacher or teacher_tokenizer()),
    )


def in_turns(
    competitors: Mapping[str, Callable[[], Any]], rounds: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, list[float]]:
    """Seconds of each call by a clock, ``rounds`` of each, one after the other: A B C A B C ..

    A machine that slows down for a while slows all of them, so that the ratios within a round hold.  Each is called
    once before, uncounted.  The garbage collector rests during a call and collects between two.
    """
    for call in competitors.values():
        call()
    seconds: dict[str, list[float]] = {name: [] for name in competitors}
    for _ in range(rounds):
        for name, call in competitors.items():
            gc.collect()
            gc.disable()
            start = clock()
            call()
            seconds[name].append(clock() - start)
            gc.enable()
    return seconds


def ratio(seconds: Mapping[str, list[float]], name: str, reference: str) -> float:
    """Median over the rounds of how many times longer ``name`` took than ``reference`` in the same round."""
    return statistics.median(a / b for a, b in zip(seconds[name], seconds[reference], strict=True))


def peak_memory(call: Callable[[], T]) -> tuple[T, int | None]:
    """What ``call`` returns, and by how many bytes the process grew at its largest; None where that is not known.

    Linux only: memory that is free but not given back is given back first, so that none of it is used unseen.
    """
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    except OSError:
        return call(), None
    before = _status("VmRSS")
    result = call()
    return result, _status("VmHWM") - before


def _status(field: str) -> int:
    """Bytes, from this process's status."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"no {field} in /proc/self/status")


def machine() -> dict[str, Any]:
    """When, where and with what a benchmark ran, as plain values."""
    packages = {}
    for name in ("nemo_xtoken", "numpy", "tokenizers", "torch"):
        with contextlib.suppress(PackageNotFoundError):
            packages[name] = version(name)
    return {
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 2),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "packages": packages,
        "commit": _commit(),
    }


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown"


def _commit() -> str | None:
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    with contextlib.suppress(OSError):
        run = subprocess.run(command, capture_output=True, text=True, check=False)
        return run.stdout.strip() or None
    return None


def machine_line() -> str:
    """`machine` in one line."""
    about = machine()
    packages = ", ".join(f"{name} {number}" for name, number in about["packages"].items())
    return (
        f"{about['date']}; {about['processor']}, {about['cores']} cores, load {about['load']}; {about['system']}; "
        f"Python {about['python']}; {packages}; commit {about['commit']}"
    )


def wide_console() -> "Console":
    """A console on which a table of figures keeps one line a row, also where the output is a file."""
    from rich.console import Console

    console = Console()
    return console if console.width >= 110 else Console(width=110)


def markdown(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table as Markdown."""
    lines = [f"| {' | '.join(headings)} |", "|" + "---|" * len(headings)]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def show_table(title: str, headings: Sequence[str], rows: Iterable[Sequence[str]], words: Sequence[int]) -> None:
    """Prints a table on the terminal.

    Args:
        words: numbers of the columns that are no figures.
    """
    from rich.table import Table

    table = Table(title=title, title_style="bold")
    for number, name in enumerate(headings):
        table.add_column(name, justify="left" if number in words else "right")
    for row in rows:
        table.add_row(*row)
    wide_console().print(table)


def write_json(path: Path | None, result: dict[str, Any], say: bool = True) -> None:
    """Writes ``result`` with `machine` beside it, and says so; nothing where no file is named."""
    if path is None:
        return
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps({"machine": machine()} | result, indent=1, ensure_ascii=False) + "\n")
    if say:
        print(f"saved in {path}")

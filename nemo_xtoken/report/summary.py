"""The end of a run: a table in the terminal, ``report.json``, and the curves as a picture."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from nemo_xtoken.files import atomic_path
from nemo_xtoken.report.curves import draw_curves
from nemo_xtoken.report.history import read_history
from nemo_xtoken.report.learned import report_learned

__all__ = ["RunSummary", "report_runs", "summarize"]


@dataclass(frozen=True)
class RunSummary:
    """What a run came to.  ``None`` where it has no such thing (nothing held out, no teacher, no step yet).

    Attributes:
        steps: training steps done.
        start_ce, end_ce: held-out cross-entropy in nats a student token, before the first and after the last step.
        start_accuracy, end_accuracy: share of held-out tokens that the student ranked first.
        chunks_per_second: aligned chunks that went through the distillation loss, a second of training steps.
        seconds: of training steps, teacher included.
        checkpoint: the last one.
    """

    name: str
    steps: int
    start_ce: float | None
    end_ce: float | None
    start_accuracy: float | None
    end_accuracy: float | None
    chunks_per_second: float | None
    seconds: float
    checkpoint: str | None


def summarize(name: str, folder: Path) -> RunSummary:
    """Reads a run's folder."""
    records = read_history(folder)
    steps = [r for r in records if "ce" in r]
    held_out = [r for r in records if "held_out_ce" in r]
    first, last = (held_out[0], held_out[-1]) if held_out else ({}, {})
    seconds = sum(r["seconds"] for r in steps)
    chunks = sum(r.get("chunks", 0) for r in steps)
    return RunSummary(
        name=name,
        steps=max((r["step"] for r in steps), default=0),
        start_ce=first.get("held_out_ce"),
        end_ce=last.get("held_out_ce"),
        start_accuracy=first.get("held_out_accuracy"),
        end_accuracy=last.get("held_out_accuracy"),
        chunks_per_second=chunks / seconds if chunks and seconds else None,
        seconds=seconds,
        checkpoint=_last_checkpoint(folder),
    )


def _last_checkpoint(folder: Path) -> str | None:
    found = [p for p in (folder / "checkpoints").glob("*-last") if (p / "weights").is_dir()]
    return str(max(found, key=lambda p: p.stat().st_mtime)) if found else None


def report_runs(runs: Mapping[str, Path], out: Path, console: Console | None = None) -> list[RunSummary]:
    """Prints the table and writes ``report.json`` and ``curves.png`` into ``out``.

    Args:
        runs: name of each run -> its folder, in the order of the table; the last is the one that matters.
        out: where the files go.
    """
    console = console or Console()
    summaries = [summarize(name, folder) for name, folder in runs.items()]
    console.print()
    console.print(_table(summaries))
    figure = out / "curves.png"
    draw_curves({name: read_history(folder) for name, folder in runs.items()}, figure)
    with atomic_path(out / "report.json") as temporary:
        temporary.write_text(json.dumps([asdict(s) for s in summaries], indent=2) + "\n")
    report_learned(list(runs.values())[-1], console)
    if (checkpoint := summaries[-1].checkpoint) is not None:
        console.print(f"checkpoint  {checkpoint}", soft_wrap=True)
    console.print(f"figure      {figure}", soft_wrap=True)
    console.print(f"numbers     {out / 'report.json'}", soft_wrap=True)
    return summaries


def _table(summaries: list[RunSummary]) -> Table:
    table = Table(title="Student on held-out text", caption="CE: nats a token; accuracy: of the next token")
    table.add_column("run", no_wrap=True)
    for heading in ("steps", "CE", "accuracy", "chunks/s", "training"):
        table.add_column(heading, justify="right", no_wrap=True)
    start = next((s for s in summaries if s.start_ce is not None), None)
    if start is not None:
        table.add_row("before", "0", _number(start.start_ce, ".3f"), _number(start.start_accuracy, ".1%"), "", "")
    for s in summaries:
        table.add_row(
            s.name,
            str(s.steps),
            _number(s.end_ce, ".3f"),
            _number(s.end_accuracy, ".1%"),
            _number(s.chunks_per_second, ",.0f"),
            f"{s.seconds:.0f} s",
        )
    return table


def _number(value: Any, form: str) -> str:
    return "" if value is None else format(value, form)

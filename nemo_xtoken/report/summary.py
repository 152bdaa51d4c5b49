"""The end of a run: a table in the terminal, ``report.json``, and the curves as a picture."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import rich
from rich.console import Console
from rich.table import Table

from nemo_xtoken.files import atomic_path
from nemo_xtoken.report.curves import draw_curves
from nemo_xtoken.report.learned_projection import report_learned
from nemo_xtoken.report.scores import evaluations_table
from nemo_xtoken.run.records import (
    STOPPED,
    curve_records,
    read_evaluations,
    read_history,
    read_trained_with,
    settings_changed,
    teacher_names,
)
from nemo_xtoken.weights.checkpoint_names import bridge_checkpoints, finished_checkpoints

__all__ = ["RunSummary", "TeacherSummary", "report_runs", "summarize"]


@dataclass(frozen=True)
class TeacherSummary:
    """What a run learned from one of its teachers.

    Attributes:
        start_kd, end_kd: its distillation loss in nats a chunk, before its weight, in the first and the last step.
        held_out_start_kd, held_out_end_kd: the same on held-out text, in the first and the last evaluation; None:
            there was none.
        alpha: its weight in the last step.
        chunks: that were compared in all steps.
    """

    name: str
    start_kd: float
    end_kd: float
    alpha: float
    chunks: float
    held_out_start_kd: float | None = None
    held_out_end_kd: float | None = None


@dataclass(frozen=True)
class RunSummary:
    """The outcome of a run.  ``None`` for what it does not have (nothing held out, no teacher, no step yet).

    Attributes:
        steps: training steps done.
        start_ce, end_ce: held-out cross-entropy in nats a student token, before the first and after the last step.
        start_accuracy, end_accuracy: share of held-out tokens that the student ranked first.
        chunks_per_second: aligned chunks that went through the distillation loss, a second of training steps.
        seconds: of training steps, teacher included.
        checkpoint: the last one.
        teachers: in the order of the run.
        stopped_early: why the run ended before its last step by itself; None: it did not.
        changes: where it went on with another loss, teacher, W or objective: from which step on, and what differs.
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
    teachers: tuple[TeacherSummary, ...] = ()
    stopped_early: str | None = None
    changes: tuple[tuple[int, tuple[str, ...]], ...] = ()


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
        teachers=tuple(_teacher(name, steps, held_out) for name in teacher_names(steps)),
        stopped_early=next((r[STOPPED] for r in records[-1:] if STOPPED in r), None),
        changes=_changes(folder),
    )


def _changes(folder: Path) -> tuple[tuple[int, tuple[str, ...]], ...]:
    entries = read_trained_with(folder)
    pairs = [(e["after"] + 1, settings_changed(b["settings"], e["settings"])) for b, e in pairwise(entries)]
    return tuple((step, tuple(changed)) for step, changed in pairs if changed)


def _teacher(name: str, steps: Sequence[Mapping[str, Any]], held_out: Sequence[Mapping[str, Any]]) -> TeacherSummary:
    compared = [r for r in steps if f"kd/{name}" in r]
    first, last = compared[0], compared[-1]
    chunks = sum(r[f"chunks/{name}"] for r in compared)
    first_to_last = [r[f"held_out_kd/{name}"] for r in held_out if f"held_out_kd/{name}" in r] or [None]
    start, end = first_to_last[0], first_to_last[-1]
    return TeacherSummary(name, first[f"kd/{name}"], last[f"kd/{name}"], last[f"alpha/{name}"], chunks, start, end)


def _last_checkpoint(folder: Path) -> str | None:
    found = finished_checkpoints(folder) or list(bridge_checkpoints(folder).values())
    return str(found[0]) if found else None


def report_runs(runs: Mapping[str, Path], out: Path, console: Console | None = None) -> list[RunSummary]:
    """Prints the table and writes ``report.json`` and ``curves.png`` into ``out``.

    Args:
        runs: name of each run -> its folder, in the order of the table; the last is the one that matters.
        out: where the files go.
    """
    console = console or rich.get_console()
    summaries = [summarize(name, folder) for name, folder in runs.items()]
    console.print()
    console.print(_table(summaries))
    if len(summaries[-1].teachers) > 1:
        console.print(_teacher_table(summaries[-1]))
    figure = out / "curves.png"
    if records := read_evaluations(list(runs.values())[-1]):
        console.print(evaluations_table(records, f"Evaluation of {summaries[-1].name}"))
    draw_curves({name: read_history(folder) + curve_records(folder) for name, folder in runs.items()}, figure)
    with atomic_path(out / "report.json") as temporary:
        temporary.write_text(json.dumps([asdict(s) for s in summaries], indent=2) + "\n")
    report_learned(list(runs.values())[-1], console)
    for s in summaries:
        for step, changed in s.changes:
            text = f"changed     {s.name}: from step {step:,} on {', '.join(changed)}"
            console.print(text, soft_wrap=True, markup=False)
        if s.stopped_early is not None:
            console.print(f"stopped     {s.name}: early, after step {s.steps:,}: {s.stopped_early}", soft_wrap=True)
    if (checkpoint := summaries[-1].checkpoint) is not None:
        console.print(f"checkpoint  {checkpoint}", soft_wrap=True)
    console.print(f"figure      {figure}", soft_wrap=True)
    console.print(f"numbers     {out / 'report.json'}", soft_wrap=True)
    return summaries


def _table(summaries: list[RunSummary]) -> Table:
    caption = "CE: nats a token; accuracy: of the next token; KD: nats a chunk"
    table = Table(title="Student on held-out text", caption=caption)
    table.add_column("run", no_wrap=True)
    taught = [s.teachers[0] if len(s.teachers) == 1 else None for s in summaries]  # several have a table of their own
    distance = any(t is not None and t.held_out_end_kd is not None for t in taught)
    for heading in ("steps", "CE", "accuracy", *(["KD"] if distance else []), "chunks/s", "training"):
        table.add_column(heading, justify="right", no_wrap=True)

    def row(name: str, steps: int, ce: Any, accuracy: Any, kd: Any, *rest: str) -> None:
        shown = [_number(kd, ".3f")] if distance else []
        table.add_row(name, str(steps), _number(ce, ".3f"), _number(accuracy, ".1%"), *shown, *rest)

    start = next((s for s in summaries if s.start_ce is not None), None)
    if start is not None:
        kd = next((t.held_out_start_kd for t in taught if t is not None), None)
        row("before", 0, start.start_ce, start.start_accuracy, kd, "", "")
    for s, t in zip(summaries, taught, strict=True):
        kd = t.held_out_end_kd if t is not None else None
        row(s.name, s.steps, s.end_ce, s.end_accuracy, kd, _number(s.chunks_per_second, ",.0f"), f"{s.seconds:.0f} s")
    return table


def _teacher_table(summary: RunSummary) -> Table:
    caption = "KD: nats a chunk, in the first and the last step; held out: before and after the run"
    table = Table(title=f"Teachers of {summary.name}", caption=caption)
    table.add_column("teacher", no_wrap=True)
    held_out = any(t.held_out_end_kd is not None for t in summary.teachers)
    for heading in ("weight", "KD first", "KD last", *(["held out", "after"] if held_out else []), "chunks"):
        table.add_column(heading, justify="right", no_wrap=True)
    for t in summary.teachers:
        evaluated = ((t.held_out_start_kd, ".3f"), (t.held_out_end_kd, ".3f")) if held_out else ()
        numbers = ((t.alpha, ".3g"), (t.start_kd, ".3f"), (t.end_kd, ".3f"), *evaluated, (t.chunks, ",.0f"))
        table.add_row(t.name, *(_number(*n) for n in numbers))
    return table


def _number(value: Any, form: str) -> str:
    return "" if value is None else format(value, form)

"""Scores of a run's checkpoints: one JSON object a line, a line for each column of scores and checkpoint."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

__all__ = [
    "EVALUATION",
    "EVALUATIONS",
    "FOLDER",
    "add_evaluations",
    "curve_records",
    "evaluations_table",
    "read_evaluations",
]

EVALUATIONS = "evaluations.jsonl"
FOLDER = "evaluations"  # what belongs to one checkpoint, below the run's folder
EVALUATION = "evaluation/"  # before the name of a column in records for curves


def add_evaluations(run: Path, step: int, columns: Mapping[str, Mapping[str, Any]], limit: float | None) -> None:
    """Adds the columns' scores after ``step`` steps; what is there already is not added again.

    Args:
        columns: by key, each with ``task, metric, score, stderr, samples, shots``.
        limit: questions asked of every task, when not all.
    """
    there = {(r["step"], r["column"]): r for r in read_evaluations(run)}
    lines = []
    for key, scores in columns.items():
        names = ("task", "metric", "score", "stderr", "samples", "shots")
        record = {"step": step, "column": key, **{name: scores.get(name) for name in names}, "limit": limit}
        if there.get((step, key)) != record:
            lines.append(json.dumps(record) + "\n")
    with open(run / EVALUATIONS, "a") as file:
        file.write("".join(lines))


def read_evaluations(run: Path) -> list[dict[str, Any]]:
    """The scores of the run, by step; of one column and step the last, and a line cut short by a crash is left out."""
    found: dict[tuple[int, str], dict[str, Any]] = {}
    path = run / EVALUATIONS
    for line in path.read_text().splitlines() if path.is_file() else ():
        try:
            record = json.loads(line)
            found[record["step"], record["column"]] = record
        except (ValueError, KeyError, TypeError):
            continue
    return [found[key] for key in sorted(found, key=lambda key: key[0])]


def curve_records(run: Path) -> list[dict[str, Any]]:
    """The scores as records of a history: ``step`` and ``evaluation/COLUMN``."""
    return [{"step": r["step"], EVALUATION + r["column"]: r["score"]} for r in read_evaluations(run)]


def evaluations_table(records: Sequence[Mapping[str, Any]], title: str = "Evaluation") -> Table:
    """A row a checkpoint, a column a task, in percent with standard errors."""
    columns = list(dict.fromkeys(r["column"] for r in records))
    shots = sorted({str(r.get("shots")) for r in records})
    table = Table(title=title, caption=f"percent; {', '.join(shots)}-shot{_limits(records)}")
    for heading in ("step", *columns):
        table.add_column(heading, justify="right", no_wrap=True)
    for step in dict.fromkeys(r["step"] for r in records):
        of_step = {r["column"]: r for r in records if r["step"] == step}
        table.add_row(str(step), *(_cell(of_step.get(c)) for c in columns))
    return table


def _limits(records: Sequence[Mapping[str, Any]]) -> str:
    limits = sorted({r["limit"] for r in records if r.get("limit") is not None})
    return f"; limit={', '.join(f'{limit:g}' for limit in limits)}: not all questions were asked" if limits else ""


def _cell(record: Mapping[str, Any] | None) -> str:
    if record is None:
        return ""
    return f"{record['score']:.2f}" + (f" ±{record['stderr']:.2f}" if record.get("stderr") is not None else "")

"""What a run's folder records, one JSON object a line: its course, and the scores of its checkpoints.

The trainer's callbacks and the evaluation write them, the report reads them.
"""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from nemo_xtoken.errors import InputError

__all__ = [
    "EVALUATION",
    "EVALUATIONS",
    "FOLDER",
    "HISTORY",
    "LEARNED",
    "PRECISION",
    "RUN_LOG",
    "SAMPLES",
    "STOPPED",
    "TRAINED_WITH",
    "add_evaluations",
    "append_record",
    "check_run_name",
    "curve_records",
    "read_evaluations",
    "read_history",
    "read_trained_with",
    "settings_changed",
    "teacher_names",
]

HISTORY = "history.jsonl"
RUN_LOG = "run.log"  # what others than this package printed; of the first rank
EVALUATIONS = "evaluations.jsonl"  # a line for each column of scores and checkpoint
FOLDER = "evaluations"  # what belongs to one checkpoint, below the run's folder
LEARNED = "learned_projection"  # the files of learned W, before the teacher's name
STOPPED = "stopped_early"  # in the record of the step after which a run has ended by itself: why
SAMPLES = "samples.md"  # what the student made of beginnings of held-out texts
PRECISION = "trainer.plugins.precision"  # a setting, and its name in the next
TRAINED_WITH = "trained_with.json"  # a list of {"after": step, "settings": ..}: of the steps behind it, to the next one
EVALUATION = "evaluation/"  # before the name of a column in records for curves


def check_run_name(name: Any) -> None:
    """A run has a folder of its own, of this name, inside ``log.log_dir``; None is a logger's default.

    Raises:
        InputError: the folder would be another one, or NeMo, which puts the name into those of checkpoints, would not
            find them again.
    """
    good = isinstance(name, str) and name.strip(". ") and name == name.strip() and name.isprintable()
    if name is not None and not (good and "/" not in name):
        raise InputError(
            f"a run named {name!r}",
            "the name of a folder without slashes, dots and spaces alone, or unprintable characters",
            "put the folder into log.log_dir and the rest into log.name",
        )


def read_history(folder: Path) -> list[dict[str, Any]]:
    """The records of the run in ``folder``; a line cut short by a crash is left out."""
    path, records = folder / HISTORY, []
    if path.is_file():
        for line in path.read_text().splitlines():
            try:
                records.append(json.loads(line))
            except json.JSONDecodeError:
                continue
    return records


def read_trained_with(folder: Path) -> list[dict[str, Any]]:
    """What the run in ``folder`` was trained with, and from which step on; nothing where that was not kept.

    Returns:
        dictionaries of ``after``, a step, and ``settings`` by their names on the command line.
    """
    try:
        found = json.loads((folder / TRAINED_WITH).read_text())
        return [{"after": int(entry["after"]), "settings": dict(entry["settings"])} for entry in found]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def settings_changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What of the settings in two entries differs, as ``name=new (before: old)``, in the order of the new ones.

    A setting that only one of them has is not compared, since another version of this package may have written them; a
    teacher that only one of them has is told by its path.
    """
    names = dict.fromkeys([*now, *before])
    compared = [name for name in names if (name in now and name in before) or name.endswith(".path")]
    return [
        f"{name}={now.get(name)} (before: {before.get(name)})" for name in compared if now.get(name) != before.get(name)
    ]


def teacher_names(records: Iterable[Mapping[str, Any]]) -> list[str]:
    """The teachers that the records of a run speak of, in their order."""
    names = (key.partition("/")[2] for record in records for key in record if key.startswith("kd/"))
    return list(dict.fromkeys(names))


def append_record(folder: Path, record: dict[str, Any]) -> None:
    """Adds a record."""
    _append(folder / HISTORY, json.dumps(record) + "\n")


def _append(path: Path, lines: str) -> None:
    """Adds lines to a file; one that a crash has cut short is ended first, or it would take the next along."""
    with open(path, "ab+") as file:
        torn = file.tell() > 0 and file.seek(-1, os.SEEK_END) >= 0 and file.read(1) != b"\n"
        file.write(b"\n" * torn + lines.encode())


def add_evaluations(run: Path, step: int, columns: Mapping[str, Mapping[str, Any]], limit: float | None) -> None:
    """Adds the columns' scores after ``step`` steps; what is there already is not added again.

    Args:
        columns: by key, each with ``task, metric, score, stderr, samples, shots``.
        limit: questions asked of every task, when not all.
    """
    there = _evaluations(run)
    lines = []
    for key, scores in columns.items():
        names = ("task", "metric", "score", "stderr", "samples", "shots")
        record = {"step": step, "column": key, **{name: scores.get(name) for name in names}, "limit": limit}
        if there.get((step, key, limit)) != record:
            lines.append(json.dumps(record) + "\n")
    _append(run / EVALUATIONS, "".join(lines))


def read_evaluations(run: Path) -> list[dict[str, Any]]:
    """The scores of the run, by step; a line cut short by a crash is left out.

    Of one column and step it is the last score, and one of all questions where there is any: a trial on some of them
    (``limit``) does not take its place.
    """
    found: dict[tuple[int, str], dict[str, Any]] = {}
    for (step, column, limit), record in _evaluations(run).items():
        before = found.get((step, column))
        if limit is None or before is None or before.get("limit") is not None:
            found[step, column] = record
    return [found[key] for key in sorted(found, key=lambda key: key[0])]


def _evaluations(run: Path) -> dict[tuple[int, str, float | None], dict[str, Any]]:
    """The last score of each step, column and number of questions, in the order in which they were written."""
    found: dict[tuple[int, str, float | None], dict[str, Any]] = {}
    path = run / EVALUATIONS
    for line in path.read_text().splitlines() if path.is_file() else ():
        try:
            record = json.loads(line)
            key = record["step"], record["column"], record.get("limit")
            found.pop(key, None)
            found[key] = record
        except (ValueError, KeyError, TypeError, AttributeError):
            continue
    return found


def curve_records(run: Path) -> list[dict[str, Any]]:
    """The scores as records of a history: ``step`` and ``evaluation/COLUMN``."""
    return [{"step": r["step"], EVALUATION + r["column"]: r["score"]} for r in read_evaluations(run)]

"""The course of a run on disk: one JSON object a line, written by the trainer's callback, read by the report."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

__all__ = ["HISTORY", "append_record", "read_history", "teacher_names"]

HISTORY = "history.jsonl"


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


def teacher_names(records: Iterable[Mapping[str, Any]]) -> list[str]:
    """The teachers that the records of a run speak of, in their order."""
    names = (key.partition("/")[2] for record in records for key in record if key.startswith("kd/"))
    return list(dict.fromkeys(names))


def append_record(folder: Path, record: dict[str, Any]) -> None:
    """Adds a record."""
    with open(folder / HISTORY, "a") as file:
        file.write(json.dumps(record) + "\n")

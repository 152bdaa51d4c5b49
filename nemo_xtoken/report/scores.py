"""The scores of a run's checkpoints as a table."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

__all__ = ["evaluations_table"]


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

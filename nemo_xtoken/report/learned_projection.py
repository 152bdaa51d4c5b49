"""Rows of W before and after: the table that a run with learned W ends with, and that `xtoken diff` prints."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from nemo_xtoken.run.records import LEARNED

__all__ = ["ChangedRow", "changed_rows", "report_learned"]

#: Rows in the terminal.
ROWS = 10


class ChangedRow(NamedTuple):
    """A row of W in two versions, in readable text; the token is empty where it is not known."""

    id: int
    token: str
    distance: float
    before: str
    after: str


def changed_rows(title: str, rows: Iterable[ChangedRow], before: str, after: str) -> Table:
    """The table.

    Args:
        before, after: headings.
    """
    table = Table(title=title, title_justify="left", show_edge=False, pad_edge=False)
    table.add_column("id", justify="right", style="dim")
    table.add_column("student token", overflow="fold")
    table.add_column("distance", justify="right")
    table.add_column(before, overflow="fold")
    table.add_column(after, overflow="fold")
    for row in rows:
        token = f"'{row.token}'" if row.token else ""
        table.add_row(str(row.id), escape(token), f"{row.distance:.4f}", escape(row.before), escape(row.after))
    return table


def report_learned(folder: Path, console: Console) -> None:
    """Prints the rows that moved most and where each learned W is; nothing for a run without any."""
    for path in sorted(folder.glob(f"{LEARNED}*.json")):
        record = json.loads(path.read_text())
        rows = [
            ChangedRow(r["id"], r["token"], r["distance"], r["text"], r["text_after"]) for r in record["rows"][:ROWS]
        ]
        console.print()
        title = f"W for the {record['teacher']}: {record['count']:,} rows moved, these most"
        console.print(changed_rows(title, rows, "at the start", "learned"))
        console.print(f"learned W   {record['projection']}", soft_wrap=True)
        console.print(f"rows        {path}", soft_wrap=True)

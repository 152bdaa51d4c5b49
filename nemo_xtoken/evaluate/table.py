"""The paper's table with our row below it."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.table import Table

from nemo_xtoken.evaluate.benchmark_columns import PAPER_COLUMNS, Column
from nemo_xtoken.evaluate.published import PAPER, PublishedRow, paper_row
from nemo_xtoken.evaluate.results import Scores, average

__all__ = ["as_json", "differences", "scores_table"]

SOURCE = "the paper (arXiv 2605.21699): a student Llama-3.2-1B, 3-shot"


def differences(scores: Scores, row: PublishedRow) -> dict[str, float]:
    """Ours minus the paper's, a column; and ``average``, where all five are there."""
    paper = dict(zip((c.key for c in PAPER_COLUMNS), row.scores, strict=True))
    found = {key: scores.columns[key]["score"] - value for key, value in paper.items() if key in scores.columns}
    mean = average(scores.columns)
    return found | ({} if mean is None else {"average": mean - row.average})


def scores_table(scores: Scores, columns: Sequence[Column], beside: Mapping[str, Scores]) -> Table:
    """The paper's rows, those of other files, and ours with its standard errors and what it is above the paper's base.

    The last column says by how much ours is above each row: by the average, or where tasks are missing by the mean of
    those that both have.

    Args:
        columns: asked for; those that the paper does not have come after its five.
        beside: other models' scores by name.
    """
    more = [column for column in columns if column not in PAPER_COLUMNS and column.key in scores.columns]
    shown = [*PAPER_COLUMNS, *more]
    limit = scores.settings.get("limit")
    table = Table(
        title=f"{scores.model}\nbeside {SOURCE}",
        box=box.SIMPLE_HEAD,
        padding=0,
        pad_edge=False,
        show_edge=False,
        caption="percent. The paper names benchmarks, not metrics; ours: "
        + "; ".join(f"{c.title} {c.task} {scores.columns[c.key]['metric']}" for c in shown if c.key in scores.columns)
        + ("" if limit is None else f". limit={limit:g}: not all questions were asked, so no other row is comparable"),
    )
    table.add_column("", no_wrap=True)
    for heading in (*(column.title for column in shown), "Avg", "ours−"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in PAPER:
        cells = [f"{value:.2f}" for value in row.scores] + [""] * len(more)
        table.add_row(row.label, *cells, f"{row.average:.2f}", _signed(_mean_difference(differences(scores, row))))
    table.add_section()
    for name, other in beside.items():
        table.add_row(name, *_cells(other, shown), _number(average(other.columns)), _signed(_to(scores, other, shown)))
    table.add_row("ours", *_cells(scores, shown), _number(average(scores.columns)), "", style="bold")
    errors = [scores.columns.get(column.key, {}).get("stderr") for column in shown]
    table.add_row("  standard error", *(_number(e) for e in errors), "", "")
    above = differences(scores, paper_row("base"))
    table.add_row("  − Llama-3.2-1B", *(_signed(above.get(c.key)) for c in shown), _signed(above.get("average")), "")
    return table


def as_json(scores: Scores, beside: Mapping[str, Scores]) -> dict[str, Any]:
    """All of it for programs."""
    keys = [column.key for column in PAPER_COLUMNS]
    paper = {
        row.key: {
            "label": row.label,
            **dict(zip(keys, row.scores, strict=True)),
            "average": row.average,
            "ours_minus": differences(scores, row),
        }
        for row in PAPER
    }
    return {"ours": scores.as_json(), "beside": {n: s.as_json() for n, s in beside.items()}, "paper": paper}


def _cells(scores: Scores, columns: Sequence[Column]) -> list[str]:
    return [_number(scores.columns.get(column.key, {}).get("score")) for column in columns]


def _mean_difference(by_column: Mapping[str, float]) -> float | None:
    if "average" in by_column or not by_column:
        return by_column.get("average")
    return sum(by_column.values()) / len(by_column)


def _to(ours: Scores, other: Scores, columns: Sequence[Column]) -> float | None:
    keys = [c.key for c in columns if c.key in ours.columns and c.key in other.columns]
    return sum(ours.columns[k]["score"] - other.columns[k]["score"] for k in keys) / len(keys) if keys else None


def _number(value: float | None, form: str = "{:.2f}") -> str:
    return "" if value is None else form.format(value)


def _signed(value: float | None) -> str:
    return _number(value, "{:+.2f}")

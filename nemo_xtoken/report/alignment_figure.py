"""An alignment as a picture: the tokens of both sides in two rows, a band between those of one chunk, gaps in red."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from nemo_xtoken.files import atomic_path
from nemo_xtoken.report.pictures import families, label, width

__all__ = ["draw_alignment"]

STYLES = {  # fill, edge; distinct to colour-blind readers
    "one": ("#d6e9f8", "#0072b2"),
    "several": ("#fbe6c0", "#c97f00"),
    "gap": ("#ffffff", "#c0392b"),
}
MEANINGS = {"one": "1 to 1", "several": "several tokens", "gap": "in no chunk"}
LINE = 88  # columns of text in a line of the picture
MOST_LINES = 14
COLUMN, ROW, BAND, SPACE = 0.0865, 0.27, 0.3, 0.26  # inches: a letter, a token's height, between the rows, the lines


class _Column(NamedTuple):
    """One chunk or gap: its style and the labels on either side."""

    style: str
    sides: tuple[list[str], list[str]]

    @property
    def width(self) -> float:
        """In letters: what the wider side takes, each token with a border of one letter, and a space after it."""
        return max(sum(width(text) + 1.2 for text in side) for side in self.sides) + 0.8


def draw_alignment(
    names: tuple[str, str], rows: Sequence[tuple[str, Sequence[str], Sequence[str]]], path: Path
) -> None:
    """Writes a PNG of at most `MOST_LINES` lines; what does not fit is counted below them.

    Args:
        names: of the student's and the teacher's tokenizer.
        rows: in order, each "chunk" or "gap" with the student's and the teacher's tokens as text.
        path: the picture.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = []
    for kind, student, teacher in rows:
        style = "gap" if kind == "gap" else "one" if len(student) == len(teacher) == 1 else "several"
        columns.append(_Column(style, ([label(t) for t in student], [label(t) for t in teacher])))
    lines = _lines(columns)
    left_out = sum(len(line) for line in lines[MOST_LINES:])
    lines = lines[:MOST_LINES] or [[]]
    margin = 0.15 + 0.075 * max(
        len(f"{side}: {name}") for side, name in zip(("student", "teacher"), names, strict=True)
    )
    margin = min(margin, 2.2)
    across = max((sum(c.width for c in line) for line in lines), default=0) * COLUMN
    size = (max(margin + across + 0.1, 7.5), len(lines) * (2 * ROW + BAND + SPACE) + 0.62)
    figure = Figure(figsize=size)
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, size[0]), ylim=(0, size[1]))
    axes.axis("off")
    y = size[1] - 0.12
    for line in lines:
        for side, (role, name) in enumerate(zip(("student", "teacher"), names, strict=True)):
            middle = y - ROW / 2 - side * (ROW + BAND)
            text = f"{role}: {_short(name)}"
            axes.text(margin - 0.1, middle, text, ha="right", va="center", fontsize=8.5, color="#555", parse_math=False)
        x = margin
        for column in line:
            _draw_column(axes, column, x, y)
            x += column.width * COLUMN
        y -= 2 * ROW + BAND + SPACE
    _legend(axes, margin, columns, left_out)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150)


def _short(name: str) -> str:
    return name if len(name) <= 20 else f"…{name[-19:]}"


def _lines(columns: list[_Column]) -> list[list[_Column]]:
    """The columns broken into lines of `LINE` letters; one that is wider has a line of its own."""
    lines: list[list[_Column]] = []
    used = float("inf")
    for column in columns:
        if used + column.width > LINE:
            lines.append([])
            used = 0.0
        lines[-1].append(column)
        used += column.width
    return lines


def _draw_column(axes: Any, column: _Column, left: float, top: float) -> None:
    """The tokens of a chunk in both rows, spread over its width, and the band between them."""
    from matplotlib.patches import FancyBboxPatch, Polygon

    fill, edge = STYLES[column.style]
    inner = (column.width - 0.8) * COLUMN
    lower = top - ROW - BAND
    if column.style != "gap":
        corners = [(left, top - ROW), (left + inner, top - ROW), (left + inner, lower), (left, lower)]
        axes.add_patch(Polygon(corners, facecolor=fill, alpha=0.55, edgecolor="none"))
    for side, y in zip(column.sides, (top, lower), strict=True):
        if not side:
            continue
        natural = [(width(text) + 1.2) * COLUMN for text in side]
        stretch = 1.0 if column.style == "gap" else inner / sum(natural)
        x = left
        for text, room in zip(side, natural, strict=True):
            box = FancyBboxPatch(
                (x + 0.012, y - ROW + 0.012),
                room * stretch - 0.024,
                ROW - 0.024,
                boxstyle="round,pad=0,rounding_size=0.04",
                facecolor=fill,
                edgecolor=edge,
                linewidth=0.9,
                linestyle="--" if column.style == "gap" else "-",
            )
            axes.add_patch(box)
            axes.text(
                x + room * stretch / 2,
                y - ROW / 2 - 0.005,
                text,
                ha="center",
                va="center",
                fontsize=9.5,
                family=families(),
                color=edge if column.style == "gap" else "#1a1a1a",
                parse_math=False,
            )
            x += room * stretch


def _legend(axes: Any, left: float, columns: list[_Column], left_out: int) -> None:
    """The meaning of the colours with how many of each there are, and what was left out, at the bottom."""
    from matplotlib.patches import Rectangle

    counts = {
        "one": sum(c.style == "one" for c in columns),
        "several": sum(c.style == "several" for c in columns),
        "gap": sum(len(side) for c in columns if c.style == "gap" for side in c.sides),
    }
    x = left
    for style, meaning in MEANINGS.items():
        if not counts[style]:
            continue
        fill, edge = STYLES[style]
        dashes = "--" if style == "gap" else "-"
        axes.add_patch(Rectangle((x, 0.17), 0.2, 0.14, facecolor=fill, edgecolor=edge, linewidth=0.9, linestyle=dashes))
        what = "tokens" if style == "gap" else "chunks"
        text = f"{meaning} ({counts[style]:,} {what[:-1] if counts[style] == 1 else what})"
        axes.text(x + 0.27, 0.235, text, va="center", fontsize=8.5, color="#333")
        x += 0.45 + 0.075 * len(text)
    if left_out:
        axes.text(x, 0.235, f"and {left_out:,} more, not drawn", va="center", fontsize=8.5, color="#333")

"""W as a picture: which tokens of either side it covers, how many entries its rows have, and some rows themselves."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nemo_xtoken.files import atomic_path
from nemo_xtoken.report.pictures import families, label

__all__ = ["draw_projection"]

COLORS = {"exact": "#0072b2", "multi": "#e69f00", "empty": "#d55e00", "reached": "#0072b2", "unreached": "#d55e00"}
STUDENT = (("exact", "one teacher token"), ("multi", "several"), ("empty", "none: REST"))
TEACHER = (("reached", "gets mass"), ("unreached", "gets none: REST"))
MOST_ROWS = 9


def draw_projection(
    names: tuple[str, str],
    classes: Sequence[Mapping[str, Any]],
    teacher: Mapping[str, Any],
    entries_per_row: Mapping[str, int],
    rows: Sequence[Mapping[str, Any]],
    path: Path,
) -> None:
    """Writes a PNG.

    Args:
        names: of the student's and the teacher's tokenizer.
        classes: each with ``name``, ``label``, and the student's tokens ``exact``, ``multi`` and ``empty``.
        teacher: ``reached`` and ``tokens`` in all, and ``by_class`` and ``unreached_by_class``, number by class.
        entries_per_row: number of rows by number of entries.
        rows: some rows of W, each with ``token`` and ``entries`` of ``id``, ``token`` and ``weight``; the first
            `MOST_ROWS` are drawn.
        path: the picture.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown = [c for c in classes if sum(c[part] for part, _ in STUDENT) or teacher["by_class"].get(c["name"])]
    rows = [row for row in rows if row["entries"]][:MOST_ROWS]
    heights = [0.7 + 0.27 * len(shown), 0.7 + 0.3 * max(len(rows), 5)]
    figure = Figure(figsize=(9, sum(heights) + 0.4), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(f"W: {names[0]} → {names[1]}", fontsize=12, parse_math=False)
    parts: Any = figure.subfigures(2, 1, height_ratios=heights)
    upper, lower = parts
    ours, theirs = upper.subplots(1, 2, sharey=True)
    total = sum(c[part] for c in shown for part, _ in STUDENT)
    exact = sum(c["exact"] for c in shown)
    _bars(ours, f"student tokens: {exact:,} of {total:,} are a teacher token", shown, STUDENT)
    columns = []
    for c in shown:
        every, missed = (teacher[key].get(c["name"], 0) for key in ("by_class", "unreached_by_class"))
        columns.append({"label": c["label"], "reached": every - missed, "unreached": missed})
    _bars(theirs, f"teacher tokens: {teacher['reached']:,} of {teacher['tokens']:,} get mass", columns, TEACHER)
    theirs.tick_params(axis="y", labelleft=False)
    counts, links = lower.subplots(1, 2, width_ratios=[1, 2.6])
    _counts(counts, entries_per_row)
    _links(links, rows)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=130)


def _bars(axes: Any, title: str, classes: Sequence[Mapping[str, Any]], parts: Sequence[tuple[str, str]]) -> None:
    """A bar of 100% per class, in parts, with the number of tokens in each part that has room for it."""
    totals = [sum(c[part] for part, _ in parts) for c in classes]
    left = [0.0] * len(classes)
    for part, meaning in parts:
        widths = [100 * c[part] / total if total else 0.0 for c, total in zip(classes, totals, strict=True)]
        bars = axes.barh(range(len(classes)), widths, left=left, color=COLORS[part], label=meaning, height=0.74)
        inside = [f"{c[part]:,}" if width >= 13 else "" for c, width in zip(classes, widths, strict=True)]
        axes.bar_label(bars, inside, label_type="center", color="white", fontsize=7.5)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    for y, total in enumerate(totals):
        if not total:
            axes.text(1, y, "there are none", va="center", fontsize=7.5, color="#888")
    axes.set_yticks(range(len(classes)), [c["label"] for c in classes], fontsize=8.5)
    axes.set(xlim=(0, 100), ylim=(len(classes) - 0.4, -0.6))  # the first class on top
    axes.set_title(title, fontsize=9, loc="left")
    axes.set_xlabel("%", fontsize=8)
    axes.tick_params(axis="x", labelsize=8)
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.legend(
        loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=len(parts), frameon=False, fontsize=8, handlelength=1
    )


def _counts(axes: Any, entries_per_row: Mapping[str, int]) -> None:
    """Rows by number of entries; the numbers differ by powers of ten, hence the logarithm."""
    numbers = sorted(entries_per_row, key=int)
    colors = [COLORS["empty"] if n == "0" else COLORS["exact"] if n == "1" else COLORS["multi"] for n in numbers]
    heights = [entries_per_row[n] for n in numbers]
    bars = axes.bar(range(len(numbers)), heights, color=colors, width=0.74)
    axes.bar_label(bars, [f"{n:,}" for n in heights], fontsize=7.5, padding=1)
    axes.set_yscale("log")
    axes.set_ylim(0.5, max(heights, default=1) * 4)
    axes.set_xticks(range(len(numbers)), numbers, fontsize=8.5)
    axes.set_xlabel("entries in a row", fontsize=8.5)
    axes.tick_params(axis="y", labelsize=8)
    axes.set_title("rows", fontsize=9.5, loc="left")
    axes.spines[["top", "right"]].set_visible(False)


def _links(axes: Any, rows: Sequence[Mapping[str, Any]]) -> None:
    """Rows as lines from student tokens on the left to teacher tokens on the right, as thick as their weight."""
    axes.axis("off")
    axes.set_title("some rows: where a student token's probability goes", fontsize=9.5, loc="left")
    places: dict[int, list[float]] = {}  # teacher id -> heights of the rows that name it
    names: dict[int, str] = {}
    for y, row in enumerate(rows):
        for entry in row["entries"]:
            places.setdefault(entry["id"], []).append(y)
            names[entry["id"]] = entry["token"]
    # Where the rows are on average, so that few lines cross; of equal ones the first named stays first.
    order = sorted(places, key=lambda t: sum(places[t]) / len(places[t]))
    last = max(len(rows) - 1, 0)
    height = {t: last * i / (len(order) - 1) if len(order) > 1 else last / 2 for i, t in enumerate(order)}
    for y, row in enumerate(rows):
        several = len(row["entries"]) > 1
        color = COLORS["multi" if several else "exact"]
        for entry in sorted(row["entries"], key=lambda e: e["weight"]):
            weight = entry["weight"]
            line = {"color": color, "linewidth": 0.6 + 5 * weight, "alpha": 0.4 + 0.5 * weight}
            axes.plot([0, 1], [y, height[entry["id"]]], solid_capstyle="butt", zorder=1 + weight, **line)
        shares = "  ".join(f"{e['weight']:.3f}".lstrip("0") for e in row["entries"][:4]) if several else "1"
        text = {"va": "center", "family": families(), "parse_math": False}
        axes.text(-0.03, y, label(row["token"], 12), ha="right", fontsize=9.5, **text)
        axes.text(-0.45, y, shares, ha="right", fontsize=7.5, color="#777", **text)
    for t in order:
        axes.text(1.03, height[t], label(names[t], 12), va="center", fontsize=9.5, family=families(), parse_math=False)
    axes.text(-0.03, -0.9, "student", ha="right", va="center", fontsize=8.5, color="#555")
    axes.text(1.03, -0.9, "teacher", ha="left", va="center", fontsize=8.5, color="#555")
    axes.text(-0.45, -0.9, "weights", ha="right", va="center", fontsize=8.5, color="#555")
    axes.set(xlim=(-1.0, 1.35), ylim=(last + 0.5, -1.3))

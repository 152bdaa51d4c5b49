"""The figures of a study: JSON, a Markdown table, a picture; means over seeds with their confidence intervals."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nemo_xtoken.files import atomic_path

from ..bench import machine, machine_line
from .claims import judged
from .statistics import Estimate, difference, estimate
from .study import TEACHER_NAMES, Study, Task

__all__ = ["claims_table", "draw", "report", "summary", "table"]

#: Measure -> (heading, factor, digits).
COLUMNS = {
    "accuracy": ("right answers, %", 100, 1),
    "right_answer": ("p(right answer), %", 100, 1),
    "numerals": ("p(numeral), %", 100, 1),
    "calibration_error": ("calibration error, %", 100, 1),
    "arithmetic_ce": ("arithmetic, nats/byte", 1, 4),
    "text_ce": ("text, nats/byte", 1, 4),
}
REFERENCE = "ce"
#: Measures whose difference from cross-entropy only, seed by seed, has a column of its own.
PAIRED = ("accuracy", "arithmetic_ce", "text_ce")
COLORS = {
    "none": "#999999",
    "ce": "#000000",
    "digits": "#0072b2",
    "matching": "#d55e00",
    "own": "#009e73",
    "two": "#cc79a7",
}
LINES = ("#000000", "#d55e00", "#e69f00", "#56b4e9", "#0072b2", "#009e73", "#cc79a7")
#: Whose course is drawn.
DRAWN = ("ce", "digits/uld", "digits/gold", "digits/h_kl", "digits/p_kl", "digits/prefix_kl")

Results = Mapping[str, Mapping[int, Mapping[str, Any]]]


def report(study: Study, tasks: Iterable[Task]) -> None:
    """Writes ``results.json``, ``table.md`` and ``learning.png``, and prints the table."""
    results: dict[str, dict[int, Any]] = {}
    for task in tasks:
        if (found := study.result(task)) is not None:
            results.setdefault(task.name, {})[task.seed] = found
    teachers = {name: found for name in TEACHER_NAMES if (found := study.result(Task(name))) is not None}
    if not results:
        print("nothing is done yet")
        return
    summarized = summary(results)
    whole = {
        "machine": machine(),
        "length": asdict(study.length),
        "teachers": {name: found["measures"] | found["cost"] for name, found in teachers.items()},
        "arms": summarized,
    }
    with atomic_path(study.base / "results.json") as temporary:
        temporary.write_text(json.dumps(whole, indent=1) + "\n", "utf-8")
    text = "\n".join([table(summarized, teachers), claims_table(summarized)])
    with atomic_path(study.base / "table.md") as temporary:
        temporary.write_text(f"{machine_line()}\n\n{text}", "utf-8")
    draw(summarized, teachers, study.base / "learning.png")
    print(text)
    print(f"saved in {study.base}: table.md, results.json, learning.png")


def summary(results: Results) -> dict[str, dict[str, Any]]:
    """By arm: each measure's mean, half its interval and the values by seed; what it is above cross-entropy only's."""
    found: dict[str, dict[str, Any]] = {}
    for arm, by_seed in results.items():
        row: dict[str, Any] = {"seeds": sorted(by_seed), "measures": {}, "above_ce": {}, "course": []}
        for name in next(iter(by_seed.values()))["measures"]:
            values = {seed: r["measures"][name] for seed, r in by_seed.items()}
            row["measures"][name] = _plain(estimate(list(values.values()))) | {"by_seed": values}
            if arm != REFERENCE and REFERENCE in results:
                reference = {seed: r["measures"][name] for seed, r in results[REFERENCE].items()}
                if (above := difference(values, reference)) is not None:
                    row["above_ce"][name] = _plain(above)
        costs = [r["cost"] for r in by_seed.values() if r["cost"]]
        row["cost"] = {name: sum(c[name] for c in costs) / len(costs) for name in (costs[0] if costs else ())}
        steps = sorted({record["step"] for r in by_seed.values() for record in r["course"]})
        for step in steps:
            here = [record for r in by_seed.values() for record in r["course"] if record["step"] == step]
            names = [name for name in here[0] if name != "step"]
            row["course"].append({"step": step} | {n: _plain(estimate([h[n] for h in here])) for n in names})
        found[arm] = row
    return found


def _plain(value: Estimate) -> dict[str, Any]:
    """For JSON, which has no infinity."""
    return {"mean": value.mean, "half": value.half if math.isfinite(value.half) else None, "count": value.count}


def table(summarized: Mapping[str, Any], teachers: Mapping[str, Any]) -> str:
    """Markdown: a row for each teacher, then for each arm."""
    heads = [word for name in COLUMNS for word in (COLUMNS[name][0], *["above CE only"] * (name in PAIRED))]
    lines = ["| | " + " | ".join(heads) + " | s a step | seeds |", "|---|" + "---:|" * (len(heads) + 2)]
    for name, found in teachers.items():
        cells = []
        for measure, (_, factor, digits) in COLUMNS.items():
            cells += [f"{factor * found['measures'][measure]:.{digits}f}", *[""] * (measure in PAIRED)]
        lines.append(f"| *teacher {name}* | " + " | ".join(cells) + " | | |")
    for arm, row in summarized.items():
        cells = []
        for measure, (_, factor, digits) in COLUMNS.items():
            cells.append(_cell(row["measures"][measure], factor, digits))
            if measure in PAIRED:
                above = row["above_ce"].get(measure)
                cells.append(_cell(above, factor, digits, sign=True) if above else "")
        cost = row["cost"]
        seconds = f"{cost['seconds'] / cost['steps']:.2f}" if cost.get("steps") else ""
        lines.append(f"| {arm} | " + " | ".join(cells) + f" | {seconds} | {len(row['seeds'])} |")
    lines += ["", "Mean ± half a 95% confidence interval over the seeds (Student's t). "
              "*above CE only*: paired by seed, **bold** where its interval does not hold 0."]  # fmt: skip
    return "\n".join(lines) + "\n"


def claims_table(summarized: Mapping[str, Any]) -> str:
    """Markdown: every comparison of every claim, and what it says."""
    lines = ["| claim | | less | | is above it by | p, Holm | |", "|---|---|---|---|---:|---:|---|"]
    for claim, every in judged(summarized).items():
        for number, one in enumerate(every):
            heading, factor, digits = COLUMNS[one.comparison.measure]
            above = one.estimate.written(factor, digits, sign=True).strip("*") if one.estimate else ""
            p = f"{one.p:.3f}" if one.estimate and one.p >= 0.001 else "< 0.001" if one.estimate else ""
            cells = [claim.text if not number else "", one.comparison.arm, one.comparison.beside, heading, above, p]
            lines.append(f"| {' | '.join([*cells, one.verdict])} |")
    return "\n".join(lines) + "\n"


def _cell(value: Mapping[str, Any], factor: float, digits: int, sign: bool = False) -> str:
    half = math.inf if value["half"] is None else value["half"]
    return Estimate(value["mean"], half, value["count"]).written(factor, digits, sign)


def draw(summarized: Mapping[str, Any], teachers: Mapping[str, Any], path: Path) -> None:
    """Right answers by arm and seed; nats a byte beside cross-entropy only; numerals over training."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    arms = list(summarized)
    figure = Figure(figsize=(15, max(4.2, 0.26 * len(arms) + 1.2)), layout="constrained")
    FigureCanvasAgg(figure)
    answers, nats, course = figure.subplots(1, 3)
    for row, arm in enumerate(arms):
        color, found = COLORS[arm.partition("/")[0]], summarized[arm]
        accuracy = found["measures"]["accuracy"]
        answers.barh(row, 100 * accuracy["mean"], color=color, alpha=0.45)
        for seed, value in accuracy["by_seed"].items():
            answers.plot(100 * value, row, "osD^v<>"[int(seed) % 7], color=color, markersize=4)
        for measure, at, fill in (("arithmetic_ce", row - 0.17, color), ("text_ce", row + 0.17, "white")):
            if above := found["above_ce"].get(measure):
                nats.errorbar(
                    above["mean"],
                    at,
                    xerr=above["half"] or 0,
                    fmt="o",
                    color=color,
                    mfc=fill,
                    capsize=2,
                    markersize=4.5,
                )
    for name in ("digits", "matching"):
        if name in teachers:
            line = {"color": COLORS[name], "linestyle": "--", "linewidth": 1}
            answers.axvline(100 * teachers[name]["measures"]["accuracy"], **line)
            course.axhline(100 * teachers[name]["measures"]["numerals"], **line)
    nats.axvline(0, color=COLORS[REFERENCE], linewidth=1)
    answers.set(xlabel="right answers, % (a mark for each seed; dashed: the teachers)", xlim=(0, 100))
    answers.set_title("Held-out questions")
    nats.set(xlabel="nats/byte above cross-entropy only; less is better")
    nats.set_title("Arithmetic (filled) and text (hollow), paired by seed", fontsize=11)
    for axes in (answers, nats):
        axes.set_yticks(range(len(arms)), arms, fontsize=8.5)
        axes.set_ylim(len(arms) - 0.4, -0.6)
        axes.grid(alpha=0.3, axis="x")
    for arm, color in zip((a for a in DRAWN if a in summarized), LINES, strict=False):
        _draw_course(course, summarized[arm]["course"], "numerals", color, arm)
    course.set(
        title="Probability of a numeral where one is", xlabel="step (dashed: the teachers)", ylabel="%", ylim=(-3, 103)
    )
    course.grid(alpha=0.3)
    course.legend(frameon=False, fontsize=8, loc="center right")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=130)


def _draw_course(axes: Any, course: Sequence[Mapping[str, Any]], measure: str, color: str, label: str) -> None:
    steps = [record["step"] for record in course]
    means = [100 * record[measure]["mean"] for record in course]
    halves = [100 * (record[measure]["half"] or 0) for record in course]
    axes.plot(steps, means, "o-", color=color, label=label, markersize=3)
    low, high = zip(*((max(m - h, 0), min(m + h, 100)) for m, h in zip(means, halves, strict=True)), strict=True)
    axes.fill_between(steps, low, high, color=color, alpha=0.12, linewidth=0)

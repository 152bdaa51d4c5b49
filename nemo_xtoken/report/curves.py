"""The curves of runs as a picture: cross-entropy on held-out and training text, distillation losses, weights,
scores."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nemo_xtoken.files import atomic_path
from nemo_xtoken.report.colors import colors_of
from nemo_xtoken.run.records import EVALUATION, teacher_names

__all__ = ["draw_curves"]

Records = Sequence[Mapping[str, Any]]


def draw_curves(runs: Mapping[str, Records], path: Path) -> None:
    """Writes a PNG.  Panels without data (no teacher, nothing held out) are omitted.

    Where a run has several teachers, each has its line, and its weight where that moves.

    Args:
        runs: name -> records of its history.
        path: the picture.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = [
        (title, label, drawn)
        for title, label, keys in (
            ("Held-out text", "cross-entropy (nats per token)", lambda _: ["held_out_ce"]),
            ("Training", "cross-entropy (nats per token)", lambda _: ["ce"]),
            ("Distance from the teacher", "distillation loss (nats per chunk)", _distances),
            ("Distance on held-out text", "distillation loss (nats per chunk)", _held_out_distances),
            ("Weights of the teachers", "alpha", _moving_weights),
            ("Evaluation", "score (%)", _evaluations),
        )
        if (drawn := [line for name, records in runs.items() for line in _lines(name, records, keys(records))])
    ]
    figure = Figure(figsize=(4.6 * max(len(panels), 1), 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    names = [*runs, *(name for _, _, drawn in panels for name, *_ in drawn)]
    color_of = colors_of(names)
    for number, (title, label, drawn) in enumerate(panels):
        axes = figure.add_subplot(1, len(panels), number + 1)
        for name, key, steps, values in drawn:
            color = color_of[name]
            if key.startswith("held_out") or key.startswith(EVALUATION):
                axes.plot(steps, values, "o-", color=color, label=name, markersize=4)
            else:
                axes.plot(steps, values, color=color, alpha=0.25, linewidth=0.8)
                axes.plot(steps, _smooth(values), color=color, label=name)
        axes.set(title=title, xlabel="step", ylabel=label)
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150)


def _lines(name: str, records: Records, keys: Sequence[str]) -> list[tuple[str, str, list[int], list[float]]]:
    """(label, key, steps, values) of the keys that the records have; a teacher's line has its name beside the run's."""
    lines = []
    for key in keys:
        found = [(r["step"], r[key]) for r in records if key in r]
        if found:
            teacher = key.partition("/")[2]
            steps, values = zip(*found, strict=True)
            lines.append((f"{name}: {teacher}" if teacher else name, key, list(steps), list(values)))
    return lines


def _distances(records: Records) -> list[str]:
    """The distillation loss, or of several teachers each one's."""
    teachers = teacher_names(records)
    return [f"kd/{teacher}" for teacher in teachers] if len(teachers) > 1 else ["kd"]


def _held_out_distances(records: Records) -> list[str]:
    """The same on held-out text."""
    return [f"held_out_{key}" for key in _distances(records)]


def _moving_weights(records: Records) -> list[str]:
    """The weights of several teachers, where they are not fixed."""
    keys = [f"alpha/{teacher}" for teacher in teacher_names(records)]
    return keys if any(len({r[key] for r in records if key in r}) > 1 for key in keys) else []


def _evaluations(records: Records) -> list[str]:
    """The columns of scores of the run's checkpoints."""
    return list(dict.fromkeys(key for record in records for key in record if key.startswith(EVALUATION)))


def _smooth(values: Sequence[float], share: float = 0.05) -> list[float]:
    """A running mean over a share of the curve."""
    width = max(1, int(len(values) * share))
    out: list[float] = []
    total = 0.0
    for i, value in enumerate(values):
        total += value - (values[i - width] if i >= width else 0.0)
        out.append(total / min(i + 1, width))
    return out

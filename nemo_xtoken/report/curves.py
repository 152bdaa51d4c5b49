"""The curves of runs as a picture: held-out cross-entropy, training cross-entropy, distillation loss."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nemo_xtoken.files import atomic_path

__all__ = ["draw_curves"]

Records = Sequence[Mapping[str, Any]]
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")  # distinct to colour-blind readers


def draw_curves(runs: Mapping[str, Records], path: Path) -> None:
    """Writes a PNG.  Panels without data (no teacher, nothing held out) are left out.

    Args:
        runs: name -> records of its history.
        path: the picture.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = [
        (key, title, label)
        for key, title, label in (
            ("held_out_ce", "Held-out text", "cross-entropy (nats per token)"),
            ("ce", "Training", "cross-entropy (nats per token)"),
            ("kd", "Distance from the teacher", "distillation loss (nats per chunk)"),
        )
        if any(key in r for records in runs.values() for r in records)
    ]
    figure = Figure(figsize=(4.6 * max(len(panels), 1), 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    for number, (key, title, label) in enumerate(panels):
        axes = figure.add_subplot(1, len(panels), number + 1)
        for (name, records), color in zip(runs.items(), COLORS * len(runs), strict=False):
            steps = [r["step"] for r in records if key in r]
            values = [r[key] for r in records if key in r]
            if not steps:
                continue
            if key == "held_out_ce":
                axes.plot(steps, values, "o-", color=color, label=name, markersize=4)
            else:
                axes.plot(steps, values, color=color, alpha=0.25, linewidth=0.8)
                axes.plot(steps, _smooth(values), color=color, label=name)
        axes.set(title=title, xlabel="step", ylabel=label)
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150)


def _smooth(values: Sequence[float], share: float = 0.05) -> list[float]:
    """A running mean over a share of the curve."""
    width = max(1, int(len(values) * share))
    out: list[float] = []
    total = 0.0
    for i, value in enumerate(values):
        total += value - (values[i - width] if i >= width else 0.0)
        out.append(total / min(i + 1, width))
    return out

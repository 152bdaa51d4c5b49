"""The coverage audit as a picture: one stacked bar per class of student tokens."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nemo_xtoken.files import atomic_path

__all__ = ["draw_coverage"]

PARTS = (("exact", "#0072b2"), ("multi", "#e69f00"), ("empty", "#d55e00"))  # distinct to colour-blind readers
LABELS = {"exact": "exact: one teacher token", "multi": "several teacher tokens", "empty": "none"}


def draw_coverage(title: str, subtitle: str, classes: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Writes a PNG.

    Args:
        title, subtitle: the pair of tokenizers, and the recommended loss.
        classes: each with ``label``, ``total``, ``exact``, ``multi`` and ``empty``; those without tokens are left out.
        path: the picture.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown = [c for c in classes if c["total"]]
    figure = Figure(figsize=(8.5, 1.6 + 0.36 * max(len(shown), 1)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    left = [0.0] * len(shown)
    for part, color in PARTS:
        widths = [100 * c[part] / c["total"] for c in shown]
        bars = axes.barh(range(len(shown)), widths, left=left, color=color, label=LABELS[part], height=0.72)
        inside = [f"{c[part]:,}" if width >= 8 else "" for c, width in zip(shown, widths, strict=True)]
        axes.bar_label(bars, inside, label_type="center", color="white", fontsize=8)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    axes.set_yticks(range(len(shown)), [f"{c['label']} ({c['total']:,})" for c in shown])
    axes.invert_yaxis()  # the first class on top
    axes.set(xlim=(0, 100), xlabel="student tokens (%)")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    figure.suptitle(title, fontsize=11, parse_math=False)
    axes.set_title(subtitle, fontsize=9, loc="left")
    figure.legend(loc="outside lower center", ncols=len(PARTS), frameon=False, fontsize=9)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150)

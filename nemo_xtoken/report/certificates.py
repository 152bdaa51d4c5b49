"""Certificates as a picture: the probability of the right tokens along the descent, by loss and kind of chunk."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from nemo_xtoken.files import atomic_path

__all__ = ["Curve", "draw_certificates"]

COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000")  # for colour-blind readers too
STYLES = ("-", "--", ":", "-.")

Curve = tuple[str, Sequence[int], Sequence[float]]  # a loss's settings, steps, probability


def draw_certificates(title: str, panels: Mapping[str, Mapping[str, Sequence[Curve]]], path: Path) -> None:
    """Writes a PNG: a row of panels a loss, a column a kind of chunk, a curve for each of the loss's settings.

    Args:
        title: the pair of tokenizers.
        panels: loss -> kind of chunk -> curves; the same kinds and settings throughout a loss.
        path: the picture.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows, columns = len(panels), max((len(kinds) for kinds in panels.values()), default=1)
    figure = Figure(figsize=(3.1 * columns + 2.6, 1.9 * rows + 0.9), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for row, (loss, kinds) in zip(grid, panels.items(), strict=True):
        for axes, (kind, curves) in zip(row, kinds.items(), strict=False):
            for n, (settings, steps, probability) in enumerate(curves):
                # thick below thin: curves that coincide stay visible
                look = {"color": COLORS[n % len(COLORS)], "linestyle": STYLES[n % len(STYLES)]}
                axes.plot(
                    steps, probability, linewidth=1.2 + 0.5 * (len(curves) - n), alpha=0.8, label=settings, **look
                )
            if row is grid[0]:
                axes.set_title(kind, fontsize=9)
            if row is grid[-1]:
                axes.set_xlabel("steps of gradient descent", fontsize=8)
            axes.grid(alpha=0.3)
        row[0].set_ylabel(loss)
        row[-1].legend(loc="center left", bbox_to_anchor=(1.02, 0.5), frameon=False, fontsize=8, handlelength=3)
    grid[0][0].set_xscale("symlog", linthresh=1)
    grid[0][0].set(xlim=(0, None), ylim=(-0.03, 1.03))
    figure.suptitle(f"{title}: probability of the right tokens", fontsize=11, parse_math=False)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)

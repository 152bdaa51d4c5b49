"""Certificates as a picture: the right tokens' probability along the descent, by loss and kind of chunk."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nemo_xtoken.files import atomic_path
from nemo_xtoken.report.colors import COLORS

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.figure import Figure

__all__ = ["Curve", "certificates_figure", "draw_certificates"]

STYLES = ("-", "--", ":", "-.")
#: Inches: of a panel with the space behind it, and around the panels; on the right are the legends.
COLUMN, ROW, LEFT, RIGHT, TOP, BOTTOM = 2.8, 1.5, 0.75, 3.2, 0.8, 0.5
#: Between panels, of their sizes.
GAPS = {"wspace": 0.08, "hspace": 0.12}

Curve = tuple[str, Sequence[int], Sequence[float]]  # a loss's settings, steps, probability


def draw_certificates(title: str, panels: Mapping[str, Mapping[str, Sequence[Curve]]], path: Path) -> None:
    """Writes a PNG: a row of panels a loss, a column a kind of chunk, a curve for each of the loss's settings.

    Args:
        title: the pair of tokenizers.
        panels: loss -> kind of chunk -> curves; every loss has the same kinds, without curves where it compares none.
        path: the picture.
    """
    figure = certificates_figure(title, panels)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)


def certificates_figure(title: str, panels: Mapping[str, Mapping[str, Sequence[Curve]]]) -> "Figure":
    """The figure that `draw_certificates` writes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    kinds = list(next(iter(panels.values())))
    width, height = LEFT + COLUMN * len(kinds) + RIGHT, TOP + ROW * len(panels) + BOTTOM
    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    # in place beforehand: a layout that is found by drawing takes longer than the picture
    places = {"left": LEFT / width, "right": 1 - RIGHT / width, "bottom": BOTTOM / height, "top": 1 - TOP / height}
    grid = figure.subplots(len(panels), len(kinds), sharex=True, sharey=True, squeeze=False, gridspec_kw=places | GAPS)
    for (loss, by_kind), row in zip(panels.items(), grid, strict=True):
        handles: dict[str, Artist] = {}
        for curves, axes in zip(by_kind.values(), row, strict=True):
            for n, (settings, steps, probability) in enumerate(curves):
                (handles[settings],) = axes.plot(
                    steps,
                    probability,
                    color=COLORS[n % len(COLORS)],
                    linestyle=STYLES[n % len(STYLES)],
                    linewidth=1.2 + 0.4 * (len(curves) - n),  # thick below thin: those that coincide stay visible
                    alpha=0.8,
                )
            if not curves:
                axes.text(0.5, 0.5, "not compared", ha="center", va="center", color="gray", transform=axes.transAxes)
            axes.grid(alpha=0.3)
        row[0].set_ylabel(loss)
        look = {"bbox_to_anchor": (1.02, 0.5), "frameon": False, "fontsize": 8, "handlelength": 3}
        row[-1].legend(handles.values(), handles.keys(), loc="center left", **look)
    for kind, top, bottom in zip(kinds, grid[0], grid[-1], strict=True):
        top.set_title(kind, fontsize=8, parse_math=False)
        bottom.set_xlabel("steps of gradient descent", fontsize=8)
    grid[0][0].set_xscale("symlog", linthresh=1)
    grid[0][0].set(xlim=(0, None), ylim=(-0.03, 1.03))
    figure.suptitle(
        f"{title}: probability of the right tokens, of the chunk of each kind that falls most",
        fontsize=11,
        parse_math=False,
        y=1 - 0.25 / height,
    )
    return figure

"""Colours of lines, distinct to colour-blind readers: one thing has one colour in every figure."""

from collections.abc import Iterable

__all__ = ["COLORS", "CROSS_ENTROPY", "DISTILLED", "colors_of"]

DISTILLED, CROSS_ENTROPY = "#0072b2", "#d55e00"
COLORS = (DISTILLED, CROSS_ENTROPY, "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000")


def colors_of(names: Iterable[str]) -> dict[str, str]:
    """A colour for each name: `CROSS_ENTROPY` for the run without a teacher, the others in order for the rest."""
    names = list(dict.fromkeys(names))
    without = [name for name in names if name.startswith("cross-entropy")]
    others = [color for color in COLORS if color != CROSS_ENTROPY or not without]
    taught = [name for name in names if name not in without]
    chosen = {name: others[number % len(others)] for number, name in enumerate(taught)}
    return chosen | dict.fromkeys(without, CROSS_ENTROPY)

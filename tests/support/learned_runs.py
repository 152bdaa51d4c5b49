"""Runs with a learned W for each teacher, in one layout and another: their gradients, and what they have learned."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nemo_xtoken.projection.matrix import ProjectionMatrix

__all__ = ["assert_same_learned", "without_padding"]


def without_padding(rank: dict[str, Any], one: dict[str, Any], steps: Iterable[int]) -> dict[str, Any]:
    """A W's gradient is padded to what tensor-parallel ranks divide.

    Args:
        rank: whose ``gradients`` of these steps are cut to the size that ``one`` has; in place.
    """
    for step in steps:
        for name, value in rank["gradients"][step].items():
            size = len(one["gradients"][step][name])
            assert not value[size:].any()
            rank["gradients"][step][name] = value[:size]
    return rank


def assert_same_learned(runs: Sequence[Path], teachers: Iterable[str], tolerance: float) -> None:
    """Both runs have learned the same W of each teacher, and of each another one.

    Args:
        runs: two folders.
    """
    moved, names = set(), list(teachers)
    for teacher in names:
        files = [run / f"learned_projection_{teacher}.safetensors" for run in runs]
        learned = [ProjectionMatrix.load(file).weights for file in files]
        np.testing.assert_allclose(*learned, rtol=0, atol=tolerance)
        moved.add(learned[0].tobytes())
    assert len(moved) == len(names)  # each has its own

"""The precision of a run that leaves it open: bfloat16 where the machine multiplies in it, float32 where it does not.

bfloat16 is for weights and activations alone: the optimizer's copy of the weights and its states, gradients as they are
added up, softmaxes and the loss are in float32 then too.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from nemo_xtoken.run.records import PRECISION, TRAINED_WITH
from nemo_xtoken.weights.checkpoint_names import finished_checkpoints

__all__ = ["FULL", "HALF", "ChosenPrecision", "begun_in", "bf16_unit", "choose_precision", "processor_flags"]

HALF, FULL = "bf16-mixed", "32"
#: What multiplies bfloat16, by the flag that Linux has for it, the fastest first.
UNITS = {"amx_bf16": "AMX", "avx512_bf16": "AVX-512 BF16"}


@dataclass(frozen=True)
class ChosenPrecision:
    """
    Attributes:
        value: `HALF` or `FULL`, for ``trainer.plugins.precision``.
        why: in words.
    """

    value: str
    why: str


def processor_flags(path: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """What this machine's processor can do, by Linux's names; nothing where Linux does not say it so."""
    try:
        lines = path.read_text("utf-8", "replace").splitlines()
    except OSError:
        return frozenset()
    return next((frozenset(line.partition(":")[2].split()) for line in lines if line.startswith("flags")), frozenset())


def bf16_unit(flags: Iterable[str]) -> str | None:
    """What of a processor with these flags multiplies bfloat16 faster than float32; None: nothing."""
    there = set(flags)
    return next((name for flag, name in UNITS.items() if flag in there), None)


def choose_precision(gpu: bool, flags: Iterable[str], nodes: int = 1, begun: str | None = None) -> ChosenPrecision:
    """
    Args:
        gpu: whether the run has GPUs.
        flags: of this machine's processor.
        nodes: machines of the run; without GPUs the processors of several may differ, and their ranks would.
        begun: what a run that goes on was begun in.
    """
    if begun is not None:
        return ChosenPrecision(begun, "as the run was begun")
    if gpu:
        return ChosenPrecision(HALF, "on a GPU")
    unit = bf16_unit(flags)
    if unit is None:
        return ChosenPrecision(FULL, f"as the processor has neither {' nor '.join(UNITS.values())}")
    if nodes > 1:
        return ChosenPrecision(FULL, "on the processors of several machines, which may differ")
    return ChosenPrecision(HALF, f"as the processor has {unit}")


def begun_in(folder: Path | None, gpu: bool) -> str | None:
    """What the run in a folder was begun in; None: there is none.

    A run of two arms has the first in a folder of its own, within.  Earlier versions did not write it down: of a run of
    theirs it is what they chose, float32 without a GPU.

    Args:
        gpu: whether this machine has one.
    """
    if folder is None or not folder.is_dir():
        return None
    places = [folder, *sorted(path for path in folder.iterdir() if path.is_dir())]
    for place in places:
        if (found := _written(place / TRAINED_WITH)) is not None:
            return found
    if any(finished_checkpoints(place) for place in places):
        return HALF if gpu else FULL
    return None


def _written(path: Path) -> str | None:
    """Of the last entry; None where there is no such file, or it does not say."""
    try:
        found = json.loads(path.read_text("utf-8"))[-1]["settings"][PRECISION]
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return found if found in (HALF, FULL) else None

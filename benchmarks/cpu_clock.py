"""What a process has used at the end of each training step, from within the recipe's own trainer."""

import resource
import statistics
from typing import Any

import lightning.pytorch as pl

__all__ = ["METERS", "Clock", "Measured", "Meter"]


class Measured(Exception):
    """The steps to be measured have been made."""


class Meter:
    """Steps by what the process has used at the end of each; the first mark is their begin."""

    def __init__(self) -> None:
        self.marks: list[resource.struct_rusage] = []

    def mark(self) -> None:
        """A step has ended, or the first begins."""
        self.marks.append(resource.getrusage(resource.RUSAGE_SELF))

    def figures(self, tokens: int) -> dict[str, float]:
        """Medians over the steps but the first, which makes what later ones use again.

        Args:
            tokens: of a step.
        """
        steps = list(zip(self.marks[1:], self.marks[2:], strict=False))
        user = statistics.median(b.ru_utime - a.ru_utime for a, b in steps)
        kernel = statistics.median(b.ru_stime - a.ru_stime for a, b in steps)
        return {
            "tokens/s": tokens / statistics.median(_seconds(b) - _seconds(a) for a, b in steps),
            "user s/step": user,
            "kernel s/step": kernel,
            "faults/step": statistics.median(b.ru_minflt - a.ru_minflt for a, b in steps),
            "GiB": self.marks[-1].ru_maxrss / 2**20,
        }


#: Of the runs in this process, in order.
METERS: list[Meter] = []


class Clock(pl.Callback):
    """Measures the steps of a run, and ends it.

    Args:
        steps: to measure.
    """

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Begins."""
        METERS.append(Meter())
        METERS[-1].mark()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        """A step has ended: after it the processor is the trainer's own again, so that all between two belongs to one.

        Raises:
            Measured: it was the last.
        """
        METERS[-1].mark()
        if len(METERS[-1].marks) > self.steps:
            raise Measured


def _seconds(used: resource.struct_rusage) -> float:
    return used.ru_utime + used.ru_stime

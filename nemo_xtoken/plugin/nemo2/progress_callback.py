"""How far a training under NeMo 2 is, told while it runs."""

from typing import Any

import lightning.pytorch as pl

from nemo_xtoken.plugin.nemo2.history import History
from nemo_xtoken.plugin.nemo2.steps import DistillationSteps
from nemo_xtoken.training.step import step_record
from nemo_xtoken.training.training_progress import TrainingProgress

__all__ = ["ProgressCallback"]


class ProgressCallback(pl.Callback):
    """Tells a `TrainingProgress` what Lightning tells callbacks.  No collectives.

    It stands before the history in the trainer's list: the phase begins before the first evaluation.

    Args:
        told: the phases.
        steps, history: the callbacks that have a step's sums, and an evaluation's.
    """

    def __init__(self, told: TrainingProgress, steps: DistillationSteps, history: History) -> None:
        self.told, self.steps, self.history = told, steps, history

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Models are loaded, training begins."""
        self.told.begin(trainer.global_step)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        """A step has ended."""
        steps = self.steps
        record = step_record(trainer.global_step, steps.totals, steps.seconds, steps.used)
        groups = trainer.optimizers[0].param_groups if trainer.optimizers else []
        self.told.step(record, groups[0]["lr"] if groups else None)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """An evaluation begins."""
        self.told.evaluate()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """It has ended."""
        self.told.evaluated(self.history.held_out_means)

"""How far a training under NeMo 2 is, told while it runs."""

from collections.abc import Mapping
from typing import Any

import lightning.pytorch as pl
from torch import Tensor

from nemo_xtoken.data.batch import Inputs
from nemo_xtoken.objective.shares import Held
from nemo_xtoken.plugin.nemo2.history import History
from nemo_xtoken.plugin.nemo2.steps import DistillationSteps
from nemo_xtoken.run.records import SAMPLES
from nemo_xtoken.training.step import step_record
from nemo_xtoken.training.trained_with import go_on_with
from nemo_xtoken.training.training_progress import TrainingProgress
from nemo_xtoken.training.watching.continuations import spoken
from nemo_xtoken.training.watching.sample_settings import SampleConfig
from nemo_xtoken.training.watching.samples import Prompt, SampleBook, find_prompts

__all__ = ["ProgressCallback"]


class ProgressCallback(pl.Callback):
    """Tells a `TrainingProgress` what Lightning tells callbacks; lets the student continue texts beside evaluations.

    It stands before the history in the trainer's list: the phase begins before the first evaluation.

    Args:
        told: the phases.
        steps, history: the callbacks that have a step's sums, and an evaluation's.
        samples: which texts the student continues; None: none.
        settings: what the run trains with, on the first rank: see ``training.trained_with``.
    """

    def __init__(
        self,
        told: TrainingProgress,
        steps: DistillationSteps,
        history: History,
        samples: SampleConfig | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self.told, self.steps, self.history, self._settings = told, steps, history, settings or {}
        self._samples = samples or SampleConfig(count=0)
        self._prompts: list[Prompt] | None = None
        self._book = SampleBook(history.folder / SAMPLES)

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Models are loaded, training begins."""
        self.told.begin(trainer.global_step)
        if trainer.is_global_zero:
            self._book.begin(trainer.global_step)
            go_on_with(self.history.folder, trainer.global_step, self._settings)

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
        """It has ended.  Collectives: those of ``watching.continuations.continued``."""
        means = self.history.held_out_means
        self.told.evaluated(means)
        if not means:
            return
        if self._prompts is None:
            self._prompts = find_prompts(trainer.datamodule.held_out_set, self._samples)

        def forward(inputs: Inputs) -> tuple[Tensor, Held | None]:
            output = pl_module.output_of(inputs)
            return (output.output.hidden, output) if isinstance(output, Held) else (output, None)

        vocabulary = pl_module.tokenizer.vocabulary
        said = spoken(pl_module.module, forward, self._prompts, self._samples, vocabulary)
        if trainer.is_global_zero:
            self._book.add(trainer.global_step, said)
        self.told.said(said)

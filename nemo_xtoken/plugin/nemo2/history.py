"""The course of a run, a line of JSON a step, beside the checkpoints; and the held-out evaluation before and after."""

import json
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import lightning.pytorch as pl

from nemo_xtoken.files import atomic_path
from nemo_xtoken.plugin.nemo2.checkpoint_folders import count_steps
from nemo_xtoken.plugin.nemo2.steps import DistillationSteps
from nemo_xtoken.run.records import HISTORY, STOPPED, append_record, read_history
from nemo_xtoken.training.loss_terms import held_out_means
from nemo_xtoken.training.step import add_evaluated, step_record
from nemo_xtoken.training.watching.early_stopping import StopConfig, reason_to_stop

__all__ = ["History"]

#: What NeMo writes into a run's folder itself, and moves aside when the run goes on.  Other files are not its own.
LOGS = ("nemo_*log*.txt", "lightning_logs.txt", "cmd-args.log", "git-info.log")


class History(pl.Callback):
    """Writes ``history.jsonl`` on global rank 0; evaluates on held-out text before the first step and after the last.

    Records of a step: see ``training.step.step_record``; of an evaluation: ``step`` and
    ``training.loss_terms.held_out_means``.  Records after the step from which a run resumes are dropped.  It stands
    before the callbacks that save, so that what a checkpoint covers is written when it is saved.

    After an evaluation it stops the run where that is due.

    Args:
        folder: the run's folder.
        steps: the callback that has the sums.
        stop: when the run ends by itself.
    """

    def __init__(self, folder: Path, steps: DistillationSteps, stop: StopConfig | None = None) -> None:
        self.folder, self.steps, self.stop = folder, steps, stop or StopConfig()
        self.stopped: str | None = None  # why the run has ended by itself
        self._sums: dict[str, float] = {}
        self._evaluations: list[dict[str, float]] = []  # on the first rank
        self._evaluated = -1

    def setup(self, trainer: pl.Trainer, pl_module: Any, stage: str) -> None:
        """Keeps files where they are: NeMo moves all that lie in a run's folder into a folder ``run_<n>``."""
        from nemo.utils.app_state import AppState

        state = AppState()
        found = state.files_to_move or ()
        state.files_to_move = [path for path in found if any(fnmatch(path.name, pattern) for pattern in LOGS)]

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Drops records after the checkpoint, then evaluates the start, or what the interruption left out."""
        count_steps(trainer)
        now, interval = trainer.global_step, trainer.val_check_interval
        kept = [r for r in read_history(self.folder) if r["step"] <= now and now]
        due = now == 0 or (isinstance(interval, int) and interval > 0 and now % interval == 0)
        self._evaluations = [r for r in kept if "held_out_ce" in r]
        # The first rank decides: the others may read the file when it is already the new one.
        due = trainer.strategy.broadcast(due and not any(r["step"] == now and "held_out_ce" in r for r in kept))
        if trainer.is_global_zero:
            with atomic_path(self.folder / HISTORY) as temporary:
                temporary.write_text("".join(json.dumps(r) + "\n" for r in kept))
        if due:
            self._evaluate(trainer)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        """Writes the step that has just ended."""
        steps = self.steps
        self._write(trainer, step_record(trainer.global_step, steps.totals, steps.seconds, steps.used))

    def on_validation_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Starts the sums."""
        self._sums = {}

    def on_validation_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        """Adds a global batch."""
        add_evaluated(self._sums, self.steps.totals)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Writes the means; stops where they are no better any more.  Collective then: a broadcast over all ranks."""
        step = trainer.global_step
        if means := self.held_out_means:
            self._evaluations.append({"step": step, **means})
            self._write(trainer, self._evaluations[-1])
        self._evaluated = step
        if means and self.stop.patience and step < trainer.max_steps:
            why = trainer.strategy.broadcast(reason_to_stop(self.stop, self._evaluations))
            if why is not None:
                self.stopped, trainer.should_stop = why, True
                self._write(trainer, {"step": step, STOPPED: why})

    @property
    def held_out_means(self) -> dict[str, float]:
        """Of the evaluation that has just ended: see ``training.loss_terms.held_out_means``."""
        return held_out_means(self._sums, self.steps.objective)

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Evaluates the end, unless the last step did."""
        if self._evaluated != trainer.global_step and trainer.global_step >= trainer.max_steps:
            self._evaluate(trainer)

    def _evaluate(self, trainer: pl.Trainer) -> None:
        if not trainer.limit_val_batches or trainer.datamodule.held_out_set is None:
            return
        trainer.validating = True
        trainer.fit_loop.epoch_loop.val_loop.run()
        trainer.training = True

    def _write(self, trainer: pl.Trainer, record: dict[str, Any]) -> None:
        if trainer.is_global_zero:
            append_record(self.folder, record)

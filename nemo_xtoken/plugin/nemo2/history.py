"""The course of a run, a line of JSON a step, beside the checkpoints; and the held-out evaluation before and after."""

import json
from pathlib import Path
from typing import Any

import lightning.pytorch as pl

from nemo_xtoken.files import atomic_path
from nemo_xtoken.plugin.nemo2.checkpoint_folders import count_steps
from nemo_xtoken.plugin.nemo2.steps import DistillationSteps
from nemo_xtoken.run.records import EVALUATIONS, HISTORY, RUN_LOG, append_record, read_history
from nemo_xtoken.training.step import step_record

__all__ = ["History"]

KEPT = (HISTORY, EVALUATIONS, RUN_LOG)


class History(pl.Callback):
    """Writes ``history.jsonl`` on global rank 0; evaluates on held-out text before the first step and after the last.

    Records of a step: see ``training.step.step_record``; of an evaluation: ``step, held_out_ce, held_out_accuracy``.
    Records after the step from which a run resumes are dropped.

    Args:
        folder: the run's folder.
        steps: the callback that has the sums.
    """

    def __init__(self, folder: Path, steps: DistillationSteps) -> None:
        self.folder, self.steps = folder, steps
        self._held_out = dict.fromkeys(("ce", "correct", "tokens"), 0.0)
        self._evaluated = -1

    def setup(self, trainer: pl.Trainer, pl_module: Any, stage: str) -> None:
        """Keeps the files where they are: NeMo moves a resumed run's files into a folder ``run_<n>``."""
        from nemo.utils.app_state import AppState

        state = AppState()
        state.files_to_move = [path for path in state.files_to_move or () if path.name not in KEPT]

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Drops records after the checkpoint, then evaluates the start, or what the interruption left out."""
        count_steps(trainer)
        now, interval = trainer.global_step, trainer.val_check_interval
        kept = [r for r in read_history(self.folder) if r["step"] <= now and now]
        due = now == 0 or (isinstance(interval, int) and interval > 0 and now % interval == 0)
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
        self._held_out = dict.fromkeys(self._held_out, 0.0)

    def on_validation_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        """Adds a global batch."""
        for name in self._held_out:
            self._held_out[name] += self.steps.totals[name]

    def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Writes the means."""
        if means := self.held_out_means:
            self._write(trainer, {"step": trainer.global_step, **means})
        self._evaluated = trainer.global_step

    @property
    def held_out_means(self) -> dict[str, float]:
        """Of the evaluation that has just ended; nothing where it had no text."""
        tokens = self._held_out["tokens"]
        if not tokens:
            return {}
        return {"held_out_ce": self._held_out["ce"] / tokens, "held_out_accuracy": self._held_out["correct"] / tokens}

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

    def _write(self, trainer: pl.Trainer, record: dict[str, float]) -> None:
        if trainer.is_global_zero:
            append_record(self.folder, record)

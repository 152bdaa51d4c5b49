"""A training step from outside: fetch its micro-batches, run the teachers, count, and take the sums in at the end."""

import dataclasses
import logging
import time
from collections.abc import Iterator
from typing import Any, NoReturn

import lightning.pytorch as pl
from nemo.utils.callbacks.dist_ckpt_io import AsyncFinalizableCheckpointIO

from nemo_xtoken.data.batch import Batch
from nemo_xtoken.errors import InputError
from nemo_xtoken.objective.objective_state import ObjectiveState
from nemo_xtoken.plugin.nemo2.stopping import kept
from nemo_xtoken.teachers.contract import TeacherLost
from nemo_xtoken.training.inputs import schedule_shape
from nemo_xtoken.training.lookahead import Lookahead
from nemo_xtoken.training.micro_batch import on_device
from nemo_xtoken.training.step import begin_evaluation, begin_step, from_last_stage, take_in
from nemo_xtoken.training.stopped import StoppedRun

__all__ = ["DistillationSteps"]

logger = logging.getLogger(__name__)


class DistillationSteps(pl.Callback):
    """Surrounds every Megatron step, and keeps the objective's state in the checkpoint.

    See ``training.step`` for what it does.

    Args:
        objective: the model's.
    """

    def __init__(self, objective: ObjectiveState) -> None:
        self.objective = objective
        self.totals: dict[str, float] = {}
        self.seconds = 0.0
        self.used: dict[str, float] = {}  # by the names of the history's records
        self._started = 0.0
        self._lookahead = Lookahead()
        self._steps = 0  # begun in this process

    # NeMo hands every step through this hook and takes the step it returns.
    def on_megatron_step_start(self, step: Any) -> Any:
        """The same step over fetched micro-batches, in training with the teachers' states."""
        from megatron.core.num_microbatches_calculator import get_num_microbatches

        self._started = time.perf_counter()

        def fetch() -> list[Batch]:
            return [_fetch(step.data) for _ in range(get_num_microbatches())]

        teaching, number = step.pl_module.teaching, step.step_i + 1
        if step.forward_only:
            return dataclasses.replace(step, data=begin_evaluation(fetch(), teaching, step.trainer.global_step))
        batches = self._lookahead.take(fetch, teaching, step.trainer.max_steps - number)
        try:
            ready = begin_step(batches, teaching, self.objective, number)
        except TeacherLost as lost:
            if not self._steps:  # a job that starts again and again would help nobody
                raise InputError(
                    f"{lost}, since the run started",
                    "a service that answers",
                    "see the log of the teacher's service, and that both name the same folder",
                ) from None
            end_for_now(step.trainer, str(lost))
        self._steps += 1
        return dataclasses.replace(step, data=ready)

    def on_megatron_microbatches_start(self, step: Any) -> None:
        """Tells the schedule the shape it will see."""
        step.micro_batch_size, step.seq_length = schedule_shape(step.micro_batch_size, step.seq_length)

    def on_megatron_step_end(self, step: Any) -> None:
        """Shares the sums, updates the scale, logs, and stops the run if the loss is not a number."""
        model = step.pl_module
        loss = model.validation_loss_reduction if step.forward_only else model.training_loss_reduction
        self.totals = from_last_stage(loss.sums)
        self.seconds = time.perf_counter() - self._started
        if step.forward_only:
            return
        model.teaching.check_given(step.step_i + 1)
        outcome = take_in(self.objective, self.totals, self.seconds, step.step_i + 1)
        self.used = outcome.used
        for name, value in outcome.values.items():
            model.log(name, value, prog_bar=name.endswith("loss"), batch_size=1, rank_zero_only=True)

    def state_dict(self) -> dict[str, Any]:
        """The objective's."""
        return self.objective.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Puts it back."""
        self.objective.load_state_dict(state_dict)


def end_for_now(trainer: Any, why: str) -> NoReturn:
    """Ends the process as after a preemption: with a checkpoint of the steps that are done, to be started again.

    Called on all processes between two steps.
    """
    logger.warning(
        "%s: the run ends after %d steps with a checkpoint, and the same command goes on there",
        why,
        trainer.global_step,
    )
    checkpoint = trainer.checkpoint_callback
    if checkpoint is not None and trainer.global_step and checkpoint._last_global_step_saved != trainer.global_step:
        checkpoint._save_last_checkpoint(trainer, checkpoint._monitor_candidates(trainer))
        if isinstance(trainer.strategy.checkpoint_io, AsyncFinalizableCheckpointIO):
            trainer.strategy.checkpoint_io.maybe_finalize_save_checkpoint(blocking=True)
    raise StoppedRun(0, trainer.global_step, trainer.max_steps, kept(trainer))


def _fetch(data: Iterator[Any]) -> Batch:
    """The next micro-batch on this rank's device; Lightning wraps it in a tuple with its number."""
    batch = next(data)
    return on_device(batch[0] if isinstance(batch, tuple) else batch)

"""Learned W under NeMo 2: its learning rate, its state in checkpoints, and the W file at the end of a run."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import nemo.lightning as nl
from nemo.lightning import OptimizerModule

from nemo_xtoken.errors import InputError
from nemo_xtoken.training.learned_parameters import (
    check_learned_again,
    check_rates,
    check_same_learning,
    is_logits,
    learned_teachers,
    learning_state,
    write_learned,
)
from nemo_xtoken.training.teacher_settings import NamedTeacher
from nemo_xtoken.vocab.vocabulary import Vocabulary

__all__ = ["ProjectionLearning", "check_checkpoint", "learn_projections", "set_rate"]


def check_checkpoint(path: str | Path, teachers: Sequence[NamedTeacher]) -> None:
    """Whether a run can go on from this checkpoint of its own.  Reads its header.

    Raises:
        InputError: it has not learned the same teachers' W as this run does.
    """
    from megatron.core import dist_checkpointing

    check_learned_again(dist_checkpointing.load_tensors_metadata(str(path)), path, teachers)


def learn_projections(
    teachers: Sequence[NamedTeacher],
    student: Vocabulary,
    trainer: nl.Trainer,
    optim: OptimizerModule,
    resume: nl.AutoResume | None,
    folder: Path,
) -> list[pl.Callback]:
    """Checks the settings of learned W, sets its rate in ``optim``, and gives the callback that it needs.

    Args:
        optim: what the run uses; changed.

    Returns:
        an empty list without learned W.

    Raises:
        InputError: a loss without learned W, rates that cannot be, or an optimizer that cannot take or keep them.
    """
    learned, rate = learned_teachers(teachers)
    if not learned:
        return []
    if getattr(getattr(resume, "restore_config", None), "load_optim_state", False):
        raise InputError(
            "resume.restore_config.load_optim_state with learned W",
            "an optimizer that starts with the run: another run's does not know these parameters",
            "leave load_optim_state out",
        )
    multiple = set_rate(optim, rate)
    precision = getattr(trainer.precision_plugin, "dtype_config", None)
    half = precision is not None and (precision.bf16 or precision.fp16)
    if half and not optim.config.use_distributed_optimizer:
        raise InputError(
            "learned W in bf16 or fp16 without Megatron's distributed optimizer",
            "the distributed optimizer: the other one cannot save parameters in float32, as W's are, beside these",
            "set optim.config.use_distributed_optimizer=True",
        )
    return [ProjectionLearning(folder, multiple, learned, student)]


def set_rate(optim: OptimizerModule, rate: float) -> float:
    """Gives the logits of W a rate of their own, without weight decay, in an optimizer that is not set up yet.

    Returns:
        the multiple of the student's rate; :class:`ProjectionLearning` keeps to it through the schedule.

    Raises:
        InputError: no Megatron optimizer, one whose multiple is in use, or rates that give no multiple.
    """
    if not isinstance(optim, nl.MegatronOptimizerModule):
        raise InputError(
            f"an optimizer of type {type(optim).__name__} with learned W",
            "a MegatronOptimizerModule",
            "set optim to nemo.lightning.MegatronOptimizerModule",
        )
    if optim.scale_lr_cond not in (None, is_logits) or (optim.scale_lr_cond is None and optim.lr_mult != 1.0):
        raise InputError(
            "optim.scale_lr_cond and optim.lr_mult beside learned W",
            "one of them: learned W has its rate by Megatron's only multiple",
            "leave them out of optim, or set learned=False",
        )
    base, lowest = optim.config.lr or 0.0, getattr(optim.lr_scheduler, "min_lr", 0.0) or 0.0
    check_rates(rate, base, lowest)
    # With a multiple of exactly 1 the logits, float32, would be in one group with the student's norms, bfloat16, and
    # Megatron's distributed optimizer cannot save a group of two types.
    optim.scale_lr_cond, optim.lr_mult = is_logits, math.nextafter(1.0, 2.0) if rate == base else rate / base
    if (given := optim.no_weight_decay_cond) is not None:  # Megatron's own leaves out one-dimensional parameters
        optim.no_weight_decay_cond = lambda name, parameter: is_logits(name, parameter) or given(name, parameter)
    return float(optim.lr_mult)


class ProjectionLearning(pl.Callback):
    """Keeps the rate of W in proportion to the student's through any schedule, and writes the learned W at the end.

    Its state in the checkpoint says which W the logits are of, and their rate.

    Args:
        folder: the run's, where the files go; see :meth:`on_train_end`.
        multiple: W's rate over the student's.
        teachers: those whose W is learned.
        student: the student's vocabulary.
    """

    def __init__(self, folder: Path, multiple: float, teachers: Sequence[NamedTeacher], student: Vocabulary) -> None:
        self.folder, self.multiple, self.teachers, self.student = folder, multiple, teachers, student
        self._state = learning_state(teachers, student, multiple)

    def state_dict(self) -> dict[str, Any]:
        """Which W, and their rate."""
        return self._state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """
        Raises:
            InputError: this run's are others.
        """
        check_same_learning(state_dict, self._state)

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """From here on the logits are in the checkpoints."""
        if pl_module.learned is not None:
            pl_module.learned.in_checkpoints = True

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        """Sets the rate: some of NeMo's schedules give all parameters that of the first group."""
        for optimizer in trainer.optimizers:
            groups = optimizer.param_groups  # NeMo has moved Megatron's multiple to another name
            rate = next(group["lr"] for group in groups if group["pre_lr_mult"] == 1)
            for group in groups:
                group["lr"] = rate * group["pre_lr_mult"]

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Writes W, see ``write_learned``.  Collectives: its, then a barrier."""
        write_learned(self.folder, pl_module.learned, self.teachers, self.student, trainer.global_step)
        trainer.strategy.barrier()

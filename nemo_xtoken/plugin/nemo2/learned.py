"""Learned W in a run: its logits among the student's parameters, their learning rate, and the W file at the end."""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import nemo.lightning as nl
import torch
from nemo.lightning import OptimizerModule

from nemo_xtoken.errors import InputError
from nemo_xtoken.files import atomic_path, digest_of
from nemo_xtoken.losses.registry import LOSSES, loss_named
from nemo_xtoken.parallel.learned_entries import LearnedProjection
from nemo_xtoken.projection.compare import compare, describe_difference
from nemo_xtoken.projection.matrix import ProjectionMatrix
from nemo_xtoken.projection.rows import readable
from nemo_xtoken.report.learned_projection import LEARNED
from nemo_xtoken.training.teacher_settings import ALONE, NamedTeacher
from nemo_xtoken.vocab.vocabulary import Vocabulary

__all__ = ["ATTRIBUTE", "LearnedProjections", "ProjectionLearning", "check_checkpoint", "learn_projections", "set_rate"]

#: The attribute of the student's module that has them; in the names of the parameters, also in checkpoints.
ATTRIBUTE = "learned_projections"
#: Most rows in the file that says which moved.
MOST = 100


class LearnedProjections(torch.nn.ModuleDict):
    """The learned W of a run's teachers, on the last pipeline stage a submodule of the student's Megatron module.

    That is what puts the logits into Megatron's gradient buffers, optimizers and checkpoints.  They are no part of the
    student: a checkpoint with them loads into a plain model, one without them into a student that has them, whose rows
    then start at W.

    Gradient clipping: W's gradient is left out of the global norm (Megatron counts no gradient of a parameter that is
    marked as shared), so that it does not shorten the student's steps.  Megatron multiplies all gradients by one
    coefficient, and so W's as well when the student's norm is above ``clip_grad``, of which Adam's steps notice little.

    Args:
        by_teacher: of the teachers that have one, by name.
        resumed: the checkpoint that is to be loaded holds them.
    """

    def __init__(self, by_teacher: Mapping[str, LearnedProjection], resumed: bool) -> None:
        from megatron.core.tensor_parallel.layers import set_tensor_model_parallel_attributes

        super().__init__({f"of_{name}": projection for name, projection in by_teacher.items()})
        self.in_checkpoints = resumed
        for logits in self.parameters():
            set_tensor_model_parallel_attributes(logits, is_parallel=True, dim=0, stride=1)
            logits.shared = True

    def of(self, teacher: str) -> LearnedProjection:
        """A teacher's."""
        found: Any = self[f"of_{teacher}"]
        return found

    def sharded_state_dict(
        self, prefix: str = "", sharded_offsets: tuple[tuple[int, int, int], ...] = (), metadata: Any = None
    ) -> dict[str, Any]:
        """The logits for Megatron's checkpoints, sharded as an output layer is: another number of ranks can load them.

        Empty as long as a student starts from another run's checkpoint, which may have none.
        """
        from megatron.core.utils import make_tp_sharded_tensor_for_checkpoint

        return {
            f"{prefix}{name}": make_tp_sharded_tensor_for_checkpoint(
                logits, f"{prefix}{name}", prepend_offsets=sharded_offsets, allow_shape_mismatch=True
            )
            for name, logits in self.named_parameters()
            if self.in_checkpoints
        }

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *rest: Any) -> None:
        """What is not in ``state_dict`` stays as it is."""
        for name, value in self.state_dict().items():
            state_dict.setdefault(prefix + name, value)
        super()._load_from_state_dict(state_dict, prefix, *rest)


def check_checkpoint(path: str | Path, teachers: Sequence[NamedTeacher]) -> None:
    """Whether a run can go on from this checkpoint of its own.  Reads its header.

    Raises:
        InputError: it has not learned the same teachers' W as this run does.
    """
    from megatron.core import dist_checkpointing

    names = dist_checkpointing.load_tensors_metadata(str(path))
    found = {n.split(f"{ATTRIBUTE}.of_")[1].split(".")[0] for n in names if f"{ATTRIBUTE}.of_" in n}
    wanted = {teacher.name for teacher in teachers if teacher.config.learned}
    if found != wanted:
        say = lambda kinds: f"learned W for {', '.join(sorted(kinds))}" if kinds else "no learned W"  # noqa: E731
        raise InputError(
            f"this run with {say(wanted)}, its checkpoint {path} with {say(found)}",
            "a run that goes on as it began",
            "set log.name=NAME for a run of its own; resume.restore_config.path=PATH starts it from that student",
        )


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
    learned = [teacher for teacher in teachers if teacher.config.learned]
    for teacher in learned:
        if not loss_named(teacher.loss).learns_matrix:
            able = " or ".join(name for name, kind in LOSSES.items() if kind.learns_matrix)
            raise InputError(
                f"{teacher.where}.learned with loss={teacher.loss}",
                f"loss={able}",
                f"set one of them: {teacher.where}.loss={able}",
            )
    if not learned:
        return []
    rates = sorted({teacher.config.learned_lr for teacher in learned})
    if len(rates) > 1 or not rates[0] > 0:
        raise InputError(
            f"learned_lr={', '.join(map(str, rates))}",
            "one number above 0 for all teachers: Megatron has one multiple of the learning rate",
            "set the same learned_lr for each teacher whose W is learned; 0.01 is the default",
        )
    if getattr(getattr(resume, "restore_config", None), "load_optim_state", False):
        raise InputError(
            "resume.restore_config.load_optim_state with learned W",
            "an optimizer that starts with the run: another run's does not know these parameters",
            "leave load_optim_state out",
        )
    multiple = set_rate(optim, rates[0])
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
    if optim.scale_lr_cond not in (None, _is_logits) or (optim.scale_lr_cond is None and optim.lr_mult != 1.0):
        raise InputError(
            "optim.scale_lr_cond and optim.lr_mult beside learned W",
            "one of them: learned W has its rate by Megatron's only multiple",
            "leave them out of optim, or set learned=False",
        )
    base, lowest = optim.config.lr or 0.0, getattr(optim.lr_scheduler, "min_lr", 0.0) or 0.0
    if not base > 0 or rate < lowest:
        raise InputError(
            f"learned_lr={rate} with optim.config.lr={base} and a schedule down to {lowest}",
            "a rate above 0 for the student, and one for W that is not below where the schedule ends",
            "change optim.config.lr, optim.lr_scheduler.min_lr or learned_lr",
        )
    # With a multiple of exactly 1 the logits, float32, would be in one group with the student's norms, bfloat16, and
    # Megatron's distributed optimizer cannot save a group of two types.
    optim.scale_lr_cond, optim.lr_mult = _is_logits, math.nextafter(1.0, 2.0) if rate == base else rate / base
    if (given := optim.no_weight_decay_cond) is not None:  # Megatron's own leaves out one-dimensional parameters
        optim.no_weight_decay_cond = lambda name, parameter: _is_logits(name, parameter) or given(name, parameter)
    return float(optim.lr_mult)


def _is_logits(name: str, _: Any) -> bool:
    return f"{ATTRIBUTE}." in name


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
        self._state = {"multiple": multiple, "projections": {t.name: _identity(t, student) for t in teachers}}

    def state_dict(self) -> dict[str, Any]:
        """Which W, and their rate."""
        return self._state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """
        Raises:
            InputError: this run's are others.
        """
        for key, what in (("projections", "another W"), ("multiple", "another learned_lr / optim.config.lr")):
            if state_dict[key] != self._state[key]:
                raise InputError(
                    f"{what} than the checkpoint that the run is to go on from",
                    "the tokenizers, the rule or file of W, and the rates that the run began with",
                    "set them back, or set log.name=NAME for a run of its own",
                )

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
        """Writes ``learned_projection.safetensors``, a W file for ``teacher.projection=FILE`` of another run, and a
        ``.json`` with the rows that moved most.  Of a named teacher the files are called ``learned_projection_NAME``.

        Collectives: those of ``LearnedProjection.whole`` on the last pipeline stage, then a barrier.
        """
        from megatron.core import parallel_state

        first = parallel_state.get_tensor_model_parallel_rank() == 0
        first = first and parallel_state.get_data_parallel_rank(with_context_parallel=True) == 0
        for teacher in self.teachers if pl_module.learned is not None else ():
            projection = pl_module.learned.of(teacher.name)
            learned = projection.whole()
            if first:
                rule = learned.rule | {"learned_steps": trainer.global_step}
                self._write(teacher, projection.matrix, dataclasses.replace(learned, rule=rule))
        trainer.strategy.barrier()

    def _write(self, teacher: NamedTeacher, before: ProjectionMatrix, learned: ProjectionMatrix) -> None:
        name = LEARNED if teacher.name == ALONE else f"{LEARNED}_{teacher.name}"
        path, other = self.folder / f"{name}.safetensors", teacher.tokenizer.vocabulary
        learned.save(path)
        moved = describe_difference(compare(before, learned), before, learned, self.student, other, MOST)["changed"]
        for row in moved["rows"]:
            row |= {"text": readable(row), "text_after": readable({"entries": row["after"]})}
        record = {"teacher": teacher.label, "projection": str(path), "rule": learned.rule, **moved}
        with atomic_path(self.folder / f"{name}.json") as temporary:
            temporary.write_text(json.dumps(record, ensure_ascii=False, indent=1) + "\n")


def _identity(teacher: NamedTeacher, student: Vocabulary) -> str:
    """Of the W that a teacher starts from: the places of its logits mean nothing in another."""
    config = teacher.config
    source = repr(config.rule) if config.projection is None else Path(config.projection).read_bytes()
    return digest_of(student.digest, teacher.tokenizer.vocabulary.digest, source)

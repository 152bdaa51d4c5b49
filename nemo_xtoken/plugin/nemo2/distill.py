"""``nemo llm distill``: one student, teachers with their own tokenizers, from text to a checkpoint and a report."""

import copy
import dataclasses
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Optional

import fiddle as fdl
import nemo.lightning as nl
import torch
import torch.distributed as dist
from nemo.collections import llm
from nemo.lightning import OptimizerModule
from nemo.lightning.pytorch.callbacks import PreemptionCallback

from nemo_xtoken.data.config import Tokenization
from nemo_xtoken.errors import InputError
from nemo_xtoken.evaluate.evaluation_config import EvaluationConfig
from nemo_xtoken.kernels.choice import kernels_for
from nemo_xtoken.objective.scale import ObjectiveConfig
from nemo_xtoken.plugin.nemo2.checkpoint_folders import remove_unfinished
from nemo_xtoken.plugin.nemo2.checks import check_run
from nemo_xtoken.plugin.nemo2.data import DistillationData
from nemo_xtoken.plugin.nemo2.evaluation import evaluations
from nemo_xtoken.plugin.nemo2.history import History
from nemo_xtoken.plugin.nemo2.learned import learn_projections
from nemo_xtoken.plugin.nemo2.model import DistillationModel
from nemo_xtoken.plugin.nemo2.progress_callback import ProgressCallback
from nemo_xtoken.plugin.nemo2.random_state import RandomState
from nemo_xtoken.plugin.nemo2.steps import DistillationSteps
from nemo_xtoken.plugin.nemo2.student import check_architecture, check_given, starting_tokenizer
from nemo_xtoken.plugin.nemo2.teacher import TeacherConfig
from nemo_xtoken.report.summary import report_runs
from nemo_xtoken.training.cpu import runtime as cpu_runtime
from nemo_xtoken.training.teacher_settings import teachers_of_run
from nemo_xtoken.training.training_progress import TrainingProgress

__all__ = ["distill", "rebuilt", "run_folder", "train_one"]

logger = logging.getLogger(__name__)


def distill(
    model: DistillationModel,
    data: DistillationData,
    trainer: nl.Trainer,
    teacher: Optional[TeacherConfig] = None,
    objective: Optional[ObjectiveConfig] = None,
    optim: Optional[OptimizerModule] = None,
    log: Optional[nl.NeMoLogger] = None,
    resume: Optional[nl.AutoResume] = None,
    teachers: Optional[dict[str, TeacherConfig]] = None,
    evaluate: Optional[EvaluationConfig] = None,
) -> Path:
    """Trains ``model`` on text and on what its teachers say about it.

    Everything that can be checked is checked before training.  The same command goes on where an interrupted run
    stopped; a finished run is reported again.

    Args:
        model: the student.
        data: text, lengths and batch sizes.
        trainer: NeMo's trainer with a MegatronStrategy.
        teacher: the teacher; none is needed with ``objective.scale=0``, which trains on cross-entropy alone.
        objective: how cross-entropy and distillation add up.
        optim: optimizer; the model's own by default.
        log: where checkpoints and the report go.
        resume: from where to resume, and which checkpoint the student starts from (``restore_config``).
        teachers: more of them, by name: ``teachers.NAME.path=PATH``.
        evaluate: benchmarks every N steps, beside training: ``evaluate.every=1000 evaluate.tasks=mmlu``.

    Returns:
        the run's folder, with checkpoints, ``history.jsonl`` and the report.

    Raises:
        InputError: anything wrong with paths, tokenizers, W, layout or data.
    """
    folder = train_one(model, data, trainer, teacher, objective, optim, log, resume, teachers, evaluate=evaluate)
    if trainer.is_global_zero:
        report_runs({folder.name: folder}, folder)
    return folder


def train_one(
    model: DistillationModel,
    data: DistillationData,
    trainer: nl.Trainer,
    teacher: TeacherConfig | None,
    objective: ObjectiveConfig | None,
    optim: OptimizerModule | None,
    log: nl.NeMoLogger | None,
    resume: nl.AutoResume | None,
    teachers: Mapping[str, TeacherConfig] | None = None,
    aligned_with: Sequence[Tokenization] = (),
    evaluate: Optional[EvaluationConfig] = None,
    title: str = "training",
) -> Path:
    """One training run without its report; several may follow each other in one process.

    Args:
        aligned_with: the teachers that the data is aligned with, for a run without any that is to see the same batches
            as one with them.
        title: what is trained, for the person who watches.
    """
    objective = objective or ObjectiveConfig()
    kernels_for(objective.kernels, torch.cuda.is_available())
    if not torch.cuda.is_available():
        cpu_runtime.enable()
    log = log or nl.NeMoLogger(log_dir="runs", use_datetime_version=False)
    check_given(resume, data.text, *((teacher, teachers) if objective.needs_teacher else (None, None)))
    if resume is not None and resume.restore_config is not None:
        # NeMo would put the tokenizer of the checkpoint in place of the run's; of one that it is about to remove, too.
        resume.restore_config.load_artifacts = False
    if model.tokenizer is None:
        model = rebuilt(model, tokenizer=starting_tokenizer(resume))
    named = teachers_of_run(objective, teacher, teachers, model.tokenizer.vocabulary)
    model.learn_from(named, objective)
    folder = run_folder(log)
    check_run(model, data, trainer, named, resume)
    evaluation = evaluations(evaluate, folder, log)
    check_architecture(model.config, resume)
    learning = learn_projections(named, model.tokenizer.vocabulary, trainer, optim or model.optim, resume, folder)
    sides = [t.side for t in named] or aligned_with or [Tokenization(model.tokenizer.vocabulary)]
    data.read(model.tokenizer.vocabulary, sides, trainer.max_steps, trainer.is_global_zero)
    folder.mkdir(parents=True, exist_ok=True)
    if log.ckpt is not None:  # NeMo drops the optimizer from the last checkpoint, and then cannot load it
        log.ckpt.save_optim_on_train_end = True
    remove_unfinished(folder / "checkpoints", trainer.is_global_zero)
    if isinstance(trainer.val_check_interval, int):  # Lightning refuses one that is longer than the run
        trainer.val_check_interval = min(trainer.val_check_interval, trainer.max_steps + 1)
    steps = DistillationSteps(model.objective)
    history = History(folder, steps)
    told = TrainingProgress(title, trainer.max_steps, trainer.log_every_n_steps, trainer.is_global_zero)
    shown = ProgressCallback(told, steps, history)
    trainer.callbacks += [steps, shown, history, RandomState(), PreemptionCallback(), *learning, *evaluation]
    _reset_batches(data, trainer)
    try:
        with told:
            llm.train(model, data, trainer, optim=optim, log=log, resume=resume)
    finally:
        model.teaching.close()
    for callback in evaluation:
        callback.finish(wait=trainer.global_step >= trainer.max_steps)  # when preempted there is no time
    return folder


def run_folder(log: nl.NeMoLogger) -> Path:
    """Where a run with this logger keeps its files."""
    if log.explicit_log_dir:
        return Path(log.explicit_log_dir)
    if "/" in log.name:
        raise InputError(
            f"a run named {log.name!r}",
            "a name without slashes: NeMo puts it into the names of checkpoints and would not find them again",
            "put the folder into log.log_dir and the rest into log.name",
        )
    if log.use_datetime_version or log.version:
        raise InputError(
            "a run folder that changes with every start (log.use_datetime_version or log.version)",
            "one folder per run, so that the same command resumes it",
            "set log.use_datetime_version=False",
        )
    return Path(log.log_dir or "nemo_experiments") / log.name


def rebuilt(thing: Any, **changes: Any) -> Any:
    """A fresh copy of a NeMo object, made from the arguments that it was made from, some of them changed."""
    if not hasattr(thing, "__io__"):
        return dataclasses.replace(thing, **changes)
    config = copy.deepcopy(thing.__io__)
    for name, value in changes.items():
        setattr(config, name, value)
    return fdl.build(config)


def _reset_batches(data: DistillationData, trainer: nl.Trainer) -> None:
    """Lets a second run in one process have other batch sizes; process groups stay, its layout is the same."""
    from megatron.core.num_microbatches_calculator import unset_num_microbatches_calculator

    unset_num_microbatches_calculator()
    if dist.is_initialized():  # then NeMo's strategy takes the set-up for done
        data.data_sampler.setup(trainer.global_rank)

"""``nemo llm distill``: one student, teachers with their own tokenizers, from text to a checkpoint and a report."""

import copy
import dataclasses
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Optional

import fiddle as fdl
import nemo.lightning as nl
import rich
import torch
import torch.distributed as dist
from nemo.collections import llm
from nemo.lightning import OptimizerModule

from nemo_xtoken.data.config import Tokenization
from nemo_xtoken.errors import InputError
from nemo_xtoken.evaluate.evaluation_config import EvaluationConfig
from nemo_xtoken.kernels.choice import kernels_for
from nemo_xtoken.objective.scale import ObjectiveConfig
from nemo_xtoken.occupied import Occupied
from nemo_xtoken.plugin.nemo2.checkpoint_folders import (
    check_folder,
    go_on_from_newest,
    remove_unfinished,
    resumed_checkpoint,
)
from nemo_xtoken.plugin.nemo2.checkpoints.intact import with_checksums
from nemo_xtoken.plugin.nemo2.checks import check_run
from nemo_xtoken.plugin.nemo2.data import DistillationData
from nemo_xtoken.plugin.nemo2.evaluation import evaluations
from nemo_xtoken.plugin.nemo2.hf import in_processes
from nemo_xtoken.plugin.nemo2.hf.exporting import load_config
from nemo_xtoken.plugin.nemo2.history import History
from nemo_xtoken.plugin.nemo2.learned import learn_projections
from nemo_xtoken.plugin.nemo2.lora.student_adapters import check_resumed_lora
from nemo_xtoken.plugin.nemo2.model import DistillationModel, with_lora
from nemo_xtoken.plugin.nemo2.progress_callback import ProgressCallback
from nemo_xtoken.plugin.nemo2.random_state import RandomState
from nemo_xtoken.plugin.nemo2.steps import DistillationSteps
from nemo_xtoken.plugin.nemo2.stopping import Stopping, kept
from nemo_xtoken.plugin.nemo2.student import (
    check_architecture,
    check_given,
    check_resumed_tokenizer,
    starting_tokenizer,
)
from nemo_xtoken.plugin.nemo2.teacher import TeacherConfig
from nemo_xtoken.plugin.swapping import export_student
from nemo_xtoken.plugin.trackers import check_tracker, tracker
from nemo_xtoken.progress import Parts
from nemo_xtoken.report.summary import report_runs
from nemo_xtoken.run.arguments.short_names import short
from nemo_xtoken.run.lora.lora_settings import LoraConfig
from nemo_xtoken.run.records import check_run_name, read_history
from nemo_xtoken.run.run_checks import left_to_the_user, not_set
from nemo_xtoken.sharing.first_process import Launch
from nemo_xtoken.sharing.forked_children import end_with_this_process
from nemo_xtoken.training.attention import settle_attention
from nemo_xtoken.training.cpu import runtime as cpu_runtime
from nemo_xtoken.training.step import explained
from nemo_xtoken.training.stopped import StoppedRun
from nemo_xtoken.training.teacher_checks import check_pieces
from nemo_xtoken.training.teacher_settings import teachers_by_argument, teachers_of_run
from nemo_xtoken.training.trained_with import Origin, check_origin, trained_with
from nemo_xtoken.training.training_progress import TrainingProgress
from nemo_xtoken.training.watching.early_stopping import StopConfig, check_stop, stopped_at
from nemo_xtoken.training.watching.sample_settings import SampleConfig
from nemo_xtoken.weights.checkpoint_names import steps_of

__all__ = ["default_log", "distill", "rebuilt", "run_folder", "student_of", "train_one"]

logger = logging.getLogger(__name__)


def distill(
    model: Optional[DistillationModel],
    data: DistillationData,
    trainer: nl.Trainer,
    teacher: Optional[TeacherConfig] = None,
    objective: Optional[ObjectiveConfig] = None,
    optim: Optional[OptimizerModule] = None,
    log: Optional[nl.NeMoLogger] = None,
    resume: Optional[nl.AutoResume] = None,
    teachers: Optional[dict[str, TeacherConfig]] = None,
    evaluate: Optional[EvaluationConfig] = None,
    trust: bool = False,
    student: Optional[str] = None,
    export: bool = False,
    track: str = "none",
    stop: Optional[StopConfig] = None,
    samples: Optional[SampleConfig] = None,
    lora: Optional[LoraConfig] = None,
) -> Path:
    """Trains ``model`` on text and on what its teachers say about it.

    Everything that can be checked is checked before training.  The same command goes on where an interrupted run
    stopped; a finished run is reported again.

    Args:
        model: the student; None: that of ``student``.
        data: text, lengths and batch sizes.
        trainer: NeMo's trainer with a MegatronStrategy.
        teacher: the teacher; none is needed with ``objective.scale=0``, which trains on cross-entropy alone.
        objective: how cross-entropy and distillation add up.
        optim: optimizer; the model's own by default.
        log: where checkpoints and the report go.
        resume: from where to resume, and which checkpoint the student starts from (``restore_config``).
        teachers: more of them, by name: ``teachers.NAME.path=PATH``.
        evaluate: benchmarks every N steps, beside training: ``evaluate.every=1000 evaluate.tasks=mmlu``.
        trust: run code that the student's starting checkpoint brings (``teacher.trust``: a teacher's), and, on the
            command line, code that the file of ``--yaml`` names.
        student: what the student starts from, with its architecture and tokenizer: a folder in Hugging Face's format, a
            hub name, or the folder of a NeMo 2 checkpoint; teachers may be given so as well then.  What is no
            checkpoint yet is imported once, into the cache.
        export: write the student in Hugging Face's format at the end, in the run's folder.
        track: ``tensorboard`` or ``wandb``: curves of the run in its folder, as well; ``log=tensorboard`` is the same.
        stop: when to stop before the last step: ``stop.patience=3``.
        samples: beginnings of held-out texts that the student continues beside every evaluation: ``samples.count=5``.
        lora: low-rank adapters, which are trained instead of the student: ``lora.rank=16``.

    Returns:
        the run's folder, with checkpoints, ``history.jsonl`` and the report.

    Raises:
        InputError: anything wrong with paths, tokenizers, W, layout or data; a loss or a gradient that is no number.
        StoppedRun: it was asked to stop, or the trainer stopped by itself, before the last step.
    """
    check_tracker(track)
    if student is not None or model is None:
        student, teacher, teachers, start = _imported(student, data, objective, teacher, teachers)
        resume = rebuilt(resume or nl.AutoResume(resume_if_exists=True, resume_ignore_no_checkpoint=True))
        resume.restore_config = nl.RestoreConfig(path=str(start))
        model = student_of(resume, data.text.student_length, trust)
    folder = train_one(
        model, data, trainer, teacher, objective, optim, log, resume, teachers, evaluate=evaluate, trust=trust,
        track=track, stop=stop, samples=samples or SampleConfig(), lora=lora,
        origin=_origin(student) if student is not None else None,
    )  # fmt: skip
    if trainer.is_global_zero:
        report_runs({folder.name: folder}, folder)
        if export:
            belongs_to = None if lora is None else lora.written_for(student or resume.restore_config.path)
            out = export_student(folder, in_processes.stored_dtype(student) if student else None, belongs_to)
            rich.get_console().print(f"student     {out}", soft_wrap=True)
    return folder


def student_of(resume: nl.AutoResume, length: int, trust: bool) -> DistillationModel:
    """The architecture and the tokenizer of the checkpoint that a run starts from.

    Args:
        length: of its sequences.
    """
    config = load_config(resume.restore_config.path, trust)
    config.seq_length = length
    return DistillationModel(config, starting_tokenizer(resume, trust))


def _imported(
    student: Optional[str],
    data: DistillationData,
    objective: Optional[ObjectiveConfig],
    teacher: Optional[TeacherConfig],
    teachers: Optional[dict[str, TeacherConfig]],
) -> tuple[str, Optional[TeacherConfig], Optional[dict[str, TeacherConfig]], Path]:
    """The student, the teachers with checkpoints for paths, and the student's checkpoint.

    Imports what is not in the cache, after a look at whether the user has left anything out.
    """
    needed = (objective or ObjectiveConfig()).needs_teacher
    found = teachers_by_argument(teacher, teachers) if needed else {}
    given = {short(f"{where}.path"): ("a teacher", config.path) for where, config in found.items()}
    missing = left_to_the_user({"student": ("the student", student), **given}, data.text)
    if missing:
        raise not_set(missing, "models (folders in Hugging Face's format, hub names or checkpoints), and files of text")
    assert student is not None
    models = dict.fromkeys([*(str(one.path) for one in found.values() if one.path is not None), student])
    parts = Parts(1 + sum(map(in_processes.is_to_be_imported, models)), Launch.of(os.environ).first)

    def checkpoint(config: Optional[TeacherConfig]) -> Optional[TeacherConfig]:
        if not needed or config is None or config.path is None:
            return config
        return dataclasses.replace(config, path=str(in_processes.imported(config.path, parts)))

    of_one, of_several = checkpoint(teacher), {name: checkpoint(one) for name, one in (teachers or {}).items()} or None
    start = in_processes.imported(student, parts)
    parts.begin("training")
    return student, of_one, of_several, start


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
    track: str = "none",
    trust: bool = False,
    shared: bool = False,
    stop: Optional[StopConfig] = None,
    samples: Optional[SampleConfig] = None,
    lora: Optional[LoraConfig] = None,
    origin: Optional[Origin] = None,
) -> Path:
    """One training run without its report; several may follow each other in one process.

    Args:
        aligned_with: the teachers that the data is aligned with, for a run without any that is to see the same batches
            as one with them.
        title: what is trained, for the person who watches.
        track, stop, samples, lora: see `distill`; without the last no text is continued.
        shared: other runs may want the same result, in the cache: they wait for each other.
        origin: what the checkpoint that the student starts from was made of; None: of nothing else.
    """
    objective, stop = objective or ObjectiveConfig(), stop or StopConfig()
    kernels_for(objective.kernels, torch.cuda.is_available())
    if not torch.cuda.is_available():
        cpu_runtime.enable()
    log = log or default_log()
    check_given(resume, data.text, *((teacher, teachers) if objective.needs_teacher else (None, None)))
    if resume is not None and resume.restore_config is not None:
        # NeMo would put the tokenizer of the checkpoint in place of the run's; of one that it is about to remove, too.
        resume.restore_config.load_artifacts = False
    if model.tokenizer is None:
        model = rebuilt(model, tokenizer=starting_tokenizer(resume, trust))
    model = with_lora(model, lora)
    named = teachers_of_run(objective, teacher, teachers, model.tokenizer.vocabulary)
    check_stop(stop.patience, stop.on, [t.name for t in named])
    model.learn_from(named, objective)
    folder = run_folder(log)
    check_folder(resume, folder)
    check_resumed_tokenizer(model.tokenizer, resumed_checkpoint(resume, folder), trust)
    check_run(model, data, trainer, named, resume, trust)
    settle_attention(model.config, [t.config.load_config(t.where) for t in named])
    evaluation = evaluations(evaluate, folder, log, trust)
    check_architecture(model.config, resume, trust)
    learning = learn_projections(named, model.tokenizer.vocabulary, trainer, optim or model.optim, resume, folder)
    sides = [t.side for t in named] or aligned_with or [Tokenization(model.tokenizer.vocabulary)]
    data.read(model.tokenizer.vocabulary, sides, trainer.max_steps, trainer.is_global_zero)
    check_pieces(named, data.train_set, data.held_out_set)
    if log.ckpt is not None:  # NeMo drops the optimizer from the last checkpoint, and then cannot load it
        log.ckpt.save_optim_on_train_end = True
    with_checksums([log.ckpt, *trainer.callbacks])
    if data.held_out_set is None:
        trainer.limit_val_batches = 0
    if isinstance(trainer.val_check_interval, int):  # Lightning refuses one that is longer than the run
        trainer.val_check_interval = min(trainer.val_check_interval, trainer.max_steps + 1)
    steps = DistillationSteps(model.objective)
    history = History(folder, steps, stop)
    first = trainer.is_global_zero
    curves = tracker(track, folder) if first else None
    told = TrainingProgress(title, trainer.max_steps, trainer.log_every_n_steps, first, curves)
    if origin is None and resume is not None and resume.restore_config is not None:
        origin = _origin(str(resume.restore_config.path))
    settings = trained_with(objective, named, origin, trainer.precision_plugin.precision) if first else None
    shown, stopping = ProgressCallback(told, steps, history, samples, settings), Stopping()
    # What a checkpoint covers is in the history before it is saved.
    trainer.callbacks[:0] = [steps, shown, history]
    trainer.callbacks += [RandomState(), stopping, *learning, *evaluation]
    _reset_batches(data, trainer)
    try:
        with Occupied(folder, trainer.is_global_zero, wait=shared), told, end_with_this_process():
            remove_unfinished(folder / "checkpoints", trainer.is_global_zero)
            go_on_from_newest(resume, folder, trainer.is_global_zero, trust)
            checkpoint = resumed_checkpoint(resume, folder)
            check_resumed_lora(model.lora, checkpoint, trust)
            if first and checkpoint is not None:
                check_origin(folder, origin)
            behind = steps_of(checkpoint) if checkpoint is not None else 0
            if behind and (why := stopped_at(history.stop, read_history(folder), behind)) is not None:
                told.was_stopped_early(behind, why)
                return folder
            try:
                llm.train(model, data, trainer, optim=optim, log=log, resume=resume)
            except Exception as error:
                raise explained(error, trainer.global_step + 1, model.teaching) from error
            except SystemExit as error:
                if isinstance(error.__context__, KeyboardInterrupt):  # Lightning ends with status 1 there
                    raise error.__context__ from None
                raise
            if history.stopped is not None:
                told.stopped_early(trainer.global_step, history.stopped)
            elif trainer.global_step < trainer.max_steps:
                raise StoppedRun(0, trainer.global_step, trainer.max_steps, kept(trainer))
    finally:
        stopping.requests.leave()
        model.teaching.close()
    for callback in evaluation:
        callback.beside.finish(
            wait=history.stopped is not None or trainer.global_step >= trainer.max_steps
        )  # when preempted there is no time
    return folder


def _origin(model: str) -> Origin:
    """Of a student: the folder of a NeMo 2 checkpoint, a folder in Hugging Face's format, or a hub name."""
    if not in_processes.is_checkpoint(model):
        return Origin.of_folder(model)
    weights = Path(model).expanduser() / "weights"
    return Origin(model, lambda: [path for path in weights.rglob("*") if path.is_file()])


def run_folder(log: nl.NeMoLogger) -> Path:
    """Where a run with this logger keeps its files."""
    if log.explicit_log_dir:
        return Path(log.explicit_log_dir)
    check_run_name(log.name)
    if log.use_datetime_version or log.version:
        raise InputError(
            "a run folder that changes with every start (log.use_datetime_version or log.version)",
            "one folder per run, so that the same command resumes it",
            "set log.use_datetime_version=False",
        )
    return Path(log.log_dir or "nemo_experiments") / log.name


def default_log() -> nl.NeMoLogger:
    """The folder ``runs/default``, with a checkpoint at the end."""
    ckpt = nl.ModelCheckpoint(save_last=True, save_top_k=1, monitor="step", mode="max")
    return nl.NeMoLogger(log_dir="runs", use_datetime_version=False, ckpt=ckpt)


def rebuilt(thing: Any, **changes: Any) -> Any:
    """A fresh copy of a NeMo object, made from the arguments that it was made from, some changed; None of None."""
    if thing is None:
        return None
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

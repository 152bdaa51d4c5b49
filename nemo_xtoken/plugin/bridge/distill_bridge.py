"""``nemo llm distill`` under Megatron-Bridge: one student, its teachers, from text to a checkpoint and a report."""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Optional

import torch

from nemo_xtoken.data.config import Tokenization
from nemo_xtoken.data.mixture import WholeBatches
from nemo_xtoken.errors import InputError
from nemo_xtoken.kernels.choice import kernels_for
from nemo_xtoken.objective.scale import ObjectiveConfig
from nemo_xtoken.plugin.bridge.batches import HeldOutBatches, StepBatches
from nemo_xtoken.plugin.bridge.bridge_config import Data, Log, Optimizer, Resume, Student, TeacherConfig, Trainer
from nemo_xtoken.plugin.bridge.checkpoints import Checkpoint
from nemo_xtoken.plugin.bridge.forward_step import Distillation
from nemo_xtoken.plugin.bridge.models import host_teacher, prepare_student
from nemo_xtoken.report.summary import report_runs
from nemo_xtoken.run.layout import ParallelSizes
from nemo_xtoken.run.run_checks import check_run, left_to_the_user
from nemo_xtoken.run.spec import START, ModelSpec, RunSpec, plain_config
from nemo_xtoken.run.values import RANGES, check_range
from nemo_xtoken.training.teacher_checks import check_losses, teacher_spec
from nemo_xtoken.training.teacher_settings import NamedTeacher, teachers_by_argument, teachers_of_run
from nemo_xtoken.training.training_progress import TrainingProgress
from nemo_xtoken.training.vocabulary_tokenizer import VocabularyTokenizer

__all__ = ["configure", "distill", "is_first", "train_one"]

ROWS_FIX = (
    "change tensor_model_parallel_size of trainer.strategy or of the teacher: Megatron-Bridge loads a model's rows as "
    "they are"
)


def distill(
    model: Student,
    data: Data,
    trainer: Trainer,
    teacher: Optional[TeacherConfig] = None,
    objective: Optional[ObjectiveConfig] = None,
    optim: Optional[Optimizer] = None,
    log: Optional[Log] = None,
    resume: Optional[Resume] = None,
    teachers: Optional[dict[str, TeacherConfig]] = None,
) -> Path:
    """Trains a student on text and on what its teachers say about it, in Megatron-Bridge's loop.

    Everything that can be checked is checked before training.  The same command goes on where an interrupted run
    stopped; a finished run is reported again.

    Args:
        model: the student.
        data: text, lengths and batch sizes.
        trainer: steps, layout and precision.
        teacher: the teacher; none is needed with ``objective.scale=0``, which trains on cross-entropy alone.
        objective: how cross-entropy and distillation add up.
        optim: optimizer and learning rate.
        log: where checkpoints and the report go.
        resume: from where to resume, and what the student starts from (``restore_config``).
        teachers: more of them, by name: ``teachers.NAME.path=PATH``.

    Returns:
        the run's folder, with checkpoints, ``history.jsonl`` and the report.

    Raises:
        InputError: anything wrong with paths, tokenizers, W, layout or data.
    """
    folder = train_one(model, data, trainer, teacher, objective, optim, log, resume, teachers)
    if is_first():
        report_runs({folder.name: folder}, folder)
    return folder


def train_one(
    model: Student,
    data: Data,
    trainer: Trainer,
    teacher: TeacherConfig | None,
    objective: ObjectiveConfig | None,
    optim: Optimizer | None,
    log: Log | None,
    resume: Resume | None,
    teachers: dict[str, TeacherConfig] | None = None,
    aligned_with: Sequence[Tokenization] = (),
    title: str = "training",
) -> Path:
    """One training run without its report; several may follow each other in one process.

    Args:
        aligned_with, title: see `configure`.
    """
    if not torch.cuda.is_available():
        raise InputError(
            "no CUDA device that PyTorch can use",
            "a GPU: Megatron-Bridge trains on nothing else",
            "run it in one of NVIDIA's containers on a GPU; where NeMo 2 is installed a CPU will do",
        )
    from megatron.bridge.training.pretrain import pretrain

    container, run = configure(
        model, data, trainer, teacher, objective, optim, log, resume, teachers, aligned_with, title
    )
    try:
        with run.told:
            pretrain(container, run, callbacks=[run])
    finally:
        run.teaching.close()
    return run.records.folder


def configure(
    model: Student,
    data: Data,
    trainer: Trainer,
    teacher: Optional[TeacherConfig] = None,
    objective: Optional[ObjectiveConfig] = None,
    optim: Optional[Optimizer] = None,
    log: Optional[Log] = None,
    resume: Optional[Resume] = None,
    teachers: Optional[dict[str, TeacherConfig]] = None,
    aligned_with: Sequence[Tokenization] = (),
    title: str = "training",
) -> tuple[Any, Distillation]:
    """Checks a run, reads its data, and configures it; for ``pretrain(container, run, callbacks=[run])``.

    Bridge's own settings can still be changed in the container.

    Args:
        aligned_with: the teachers that the data is aligned with, for a run without any that is to see the same batches
            as one with them.
        title: what is trained, for the person who watches.  The other arguments are those of `distill`.

    Returns:
        Bridge's ``ConfigContainer``, and the forward step.

    Raises:
        InputError: as `distill`.
    """
    objective, resume = objective or ObjectiveConfig(), resume or Resume()
    optim, log = optim or Optimizer(), log or Log()
    kernels_for(objective.kernels, torch.cuda.is_available())
    _check_given(model, data, resume, *((teacher, teachers) if objective.needs_teacher else (None, None)))
    start = Checkpoint.at(model.architecture, "model.architecture") if model.architecture else None
    start = start or Checkpoint.at(resume.restore_config.path, START)
    tokenizer = VocabularyTokenizer(model.tokenizer.source or start.tokenizer("model.tokenizer.source"))
    named = teachers_of_run(objective, teacher, teachers, tokenizer.vocabulary)
    folder = Path(log.log_dir) / log.name
    resumed = resume.resume_if_exists and any((folder / "checkpoints").glob("latest*"))
    provider = start.provider(random_weights=model.architecture is not None or resumed)
    length = data.text.student_length
    prepare_student(provider, trainer.strategy, trainer.plugins.precision, length, data.micro_batch_size)
    _check_run(provider, tokenizer, data, trainer, named)
    sides = [t.side for t in named] or aligned_with or [Tokenization(tokenizer.vocabulary)]
    train, held_out = _batches(data, tokenizer, sides, trainer.max_steps)
    told = TrainingProgress(title, trainer.max_steps, trainer.log_every_n_steps, is_first())
    run = Distillation(tokenizer.vocabulary, named, objective, train, held_out, folder, host_teacher, told)
    provider.register_pre_wrap_hook(run.tap)
    from nemo_xtoken.plugin.bridge.container import AlignedText, make_container

    dataset = AlignedText(dataloader_type="external", num_workers=0).with_batches(train, held_out)
    steps = 0 if held_out is None else len(held_out.samples) // data.global_batch_size  # type: ignore[arg-type]
    root = start.root(START) if start.bridge else None
    go_on, ids = resume.resume_if_exists, tokenizer.vocab_size
    return make_container(provider, data, dataset, steps, trainer, optim, log, folder, root, go_on, ids), run


def _batches(
    data: Data, tokenizer: VocabularyTokenizer, sides: Sequence[Tokenization], steps: int
) -> tuple[StepBatches, HeldOutBatches | None]:
    """Tokenises and aligns what is not in the cache yet.  Every rank calls it; one does the work."""
    text = dataclasses.replace(data.text, progress=data.text.progress and is_first())
    samples, held_out = text.build(tokenizer.vocabulary, sides, steps * data.global_batch_size)
    train = StepBatches(samples, data.micro_batch_size, data.loader_workers)
    if held_out is None:
        return train, None
    return train, HeldOutBatches(WholeBatches(held_out, data.global_batch_size), data.micro_batch_size)


def _check_given(
    model: Student,
    data: Data,
    resume: Resume,
    teacher: Optional[TeacherConfig],
    teachers: Optional[dict[str, TeacherConfig]],
) -> None:
    """Names all that a recipe leaves to the user and the user has left out, at once."""
    taught_by = teachers_by_argument(teacher, teachers)
    for where, config in taught_by.items():
        if config.learned:
            raise InputError(
                f"{where}.learned under Megatron-Bridge",
                "a fixed W: a learned one needs NeMo 2, so far",
                f"set {where}.learned=false",
            )
    missing = left_to_the_user(not (resume.restore_config.path or model.architecture), taught_by, data.text)
    if missing:
        raise InputError(
            f"not set: {', '.join(f'{name} ({what})' for name, what in missing.items())}",
            "Hugging Face models (folders or hub names) or checkpoints of Megatron-Bridge, and files of text",
            f"add {' '.join(f'{name}=PATH' for name in missing)}",
        )


def _check_run(
    provider: Any, tokenizer: VocabularyTokenizer, data: Data, trainer: Trainer, teachers: Sequence[NamedTeacher]
) -> None:
    """Checks layout, models and W against each other; reads configurations, and W where the user names a file."""
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if processes != trainer.devices * trainer.num_nodes:
        raise InputError(
            f"{processes} processes, trainer.num_nodes={trainer.num_nodes} and trainer.devices={trainer.devices}",
            "a process for each device",
            f"start it by `torchrun --nproc-per-node={trainer.devices} --no-python nemo llm distill ..` or by srun, or "
            "set trainer.devices and trainer.num_nodes",
        )
    for name in ("max_steps", "val_check_interval", "log_every_n_steps"):
        check_range(f"trainer.{name}", getattr(trainer, name), RANGES[f"trainer.{name}"])
    check_run(run_spec(provider, tokenizer, data, trainer, teachers, processes))
    check_losses(teachers, tokenizer.vocabulary, trainer.strategy.context_parallel_size)


def run_spec(
    provider: Any,
    tokenizer: VocabularyTokenizer,
    data: Data,
    trainer: Trainer,
    teachers: Sequence[NamedTeacher],
    processes: int,
) -> RunSpec:
    """The run that Bridge's provider and our arguments describe.

    Raises:
        InputError: a teacher's checkpoint that cannot be read.
    """
    strategy = trainer.strategy
    own, default = data.text.lengths
    student = ModelSpec(
        "student",
        "trainer.strategy",
        ParallelSizes.of(strategy, experts=bool(provider.num_moe_experts)),
        own,
        "data.text.student_length",
        plain_config(provider),
        ids=tokenizer.vocab_size,
        rows_name="model.tokenizer",
    )
    theirs = [Checkpoint.at(t.config.path, f"{t.where}.path").provider(random_weights=True) for t in teachers]
    taught_by = [teacher_spec(t, plain_config(c), strategy, default) for t, c in zip(teachers, theirs, strict=True)]
    return RunSpec(
        student,
        tuple(taught_by),
        processes,
        data.micro_batch_size,
        data.global_batch_size,
        trainer.max_steps,
        strategy.sequence_parallel,
        rows_fix=ROWS_FIX,
    )


def is_first() -> bool:
    """Whether this is the first process of the run."""
    return int(os.environ.get("RANK", "0")) == 0

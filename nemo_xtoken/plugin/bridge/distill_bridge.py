"""``nemo llm distill`` under Megatron-Bridge: one student, its teachers, from text to a checkpoint and a report."""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Optional

import torch

from nemo_xtoken.data.config import Tokenization
from nemo_xtoken.data.whole import WholeBatches
from nemo_xtoken.errors import InputError
from nemo_xtoken.kernels.choice import kernels_for
from nemo_xtoken.losses.registry import check_loss, loss_named
from nemo_xtoken.objective.scale import ObjectiveConfig
from nemo_xtoken.plugin.bridge.batches import HeldOutBatches, StepBatches
from nemo_xtoken.plugin.bridge.bridge_config import Data, Log, Optimizer, Resume, Student, TeacherConfig, Trainer
from nemo_xtoken.plugin.bridge.checkpoints import Checkpoint
from nemo_xtoken.plugin.bridge.forward_step import Distillation
from nemo_xtoken.plugin.bridge.models import load_teacher, prepare_student
from nemo_xtoken.projection.matrix import ProjectionMatrix
from nemo_xtoken.report.summary import report_runs
from nemo_xtoken.run.layout import (
    ParallelSizes,
    check_batches,
    check_divisible,
    check_length,
    check_processes,
    check_rows,
)
from nemo_xtoken.training.teacher_settings import NamedTeacher, teachers_by_argument, teachers_of_run
from nemo_xtoken.training.vocabulary_tokenizer import VocabularyTokenizer

__all__ = ["configure", "distill", "is_first", "train_one"]

START = "resume.restore_config.path"


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
) -> Path:
    """One training run without its report; several may follow each other in one process.

    Args:
        aligned_with: see `configure`.
    """
    if not torch.cuda.is_available():
        raise InputError(
            "no CUDA device that PyTorch can use",
            "a GPU: Megatron-Bridge trains on nothing else",
            "run it in one of NVIDIA's containers on a GPU; where NeMo 2 is installed a CPU will do",
        )
    from megatron.bridge.training.pretrain import pretrain

    container, run = configure(model, data, trainer, teacher, objective, optim, log, resume, teachers, aligned_with)
    pretrain(container, run, callbacks=[run])
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
) -> tuple[Any, Distillation]:
    """Checks a run, reads its data, and configures it; for ``pretrain(container, run, callbacks=[run])``.

    Bridge's own settings can still be changed in the container.

    Args:
        aligned_with: the teachers that the data is aligned with, for a run without any that is to see the same batches
            as one with them.  The other arguments are those of `distill`.

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
    named = teachers_of_run(objective, teacher, teachers)
    folder = Path(log.log_dir) / log.name
    resumed = resume.resume_if_exists and any((folder / "checkpoints").glob("latest*"))
    provider = start.provider(random_weights=model.architecture is not None or resumed)
    length = data.text.student_length
    prepare_student(provider, trainer.strategy, trainer.plugins.precision, length, data.micro_batch_size)
    _check_run(provider, tokenizer, data, trainer, named)
    sides = [t.side for t in named] or aligned_with or [Tokenization(tokenizer.vocabulary)]
    train, held_out = _batches(data, tokenizer, sides, trainer.max_steps)
    run = Distillation(
        tokenizer.vocabulary, named, objective, train, held_out, folder, load_teacher, trainer.log_every_n_steps
    )
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
    missing = {}
    if not (resume.restore_config.path or model.architecture):
        missing[START] = "the student"
    for where, config in teachers_by_argument(teacher, teachers).items():
        if config.path is None:
            missing[f"{where}.path"] = "a teacher"
        if config.learned:
            raise InputError(
                f"{where}.learned under Megatron-Bridge",
                "a fixed W: a learned one needs NeMo 2, so far",
                f"set {where}.learned=false",
            )
    if not (data.text.paths or data.text.sources):
        missing["data.text.paths"] = "the text"
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
    if trainer.max_steps < 1:
        raise InputError(f"trainer.max_steps={trainer.max_steps}", "at least one step", "set trainer.max_steps=N")
    if trainer.val_check_interval < 1:
        raise InputError(
            f"trainer.val_check_interval={trainer.val_check_interval}",
            "a number of steps",
            "correct it; without held-out text nothing is evaluated",
        )
    layout = ParallelSizes.of(trainer.strategy, experts=bool(provider.num_moe_experts))
    check_processes("student", layout, processes, "trainer.strategy")
    check_batches(data.global_batch_size, data.micro_batch_size, processes // layout.ranks)
    own, default = data.text.lengths
    sides = [("student", provider, tokenizer.vocab_size, own, "data.text.student_length", "model.tokenizer", layout)]
    for teacher in teachers:
        config = Checkpoint.at(teacher.config.path, f"{teacher.where}.path").provider(random_weights=True)
        sizes = teacher.config.sizes(ParallelSizes.of(trainer.strategy, experts=bool(config.num_moe_experts)))
        check_processes(teacher.label, sizes, processes, teacher.where)
        length, where = teacher.config.length, f"{teacher.where}.length"
        if length is None:
            length, where = default, "data.text.teacher_length"
        sides.append((teacher.label, config, teacher.tokenizer.vocab_size, length, where, teacher.where, sizes))
    for side, config, ids, length, where, rows, sizes in sides:
        check_divisible(
            side, config.num_attention_heads, config.num_query_groups, config.num_layers, config.num_moe_experts, sizes
        )
        check_length(side, length, where, sizes.context, sizes.tensor if trainer.strategy.sequence_parallel else 1)
        check_rows(side, config.vocab_size, ids, rows)
        if (config.vocab_size or 0) % sizes.tensor:
            raise InputError(
                f"the {side}'s output layer has {config.vocab_size} rows, tensor_model_parallel_size is {sizes.tensor}",
                f"a divisor of {config.vocab_size}: Megatron-Bridge loads a model's rows as they are",
                "change tensor_model_parallel_size of trainer.strategy or of the teacher",
            )
    for teacher in teachers:
        config, other = teacher.config, teacher.tokenizer.vocabulary
        loss = check_loss(config.loss, tokenizer.vocabulary, other, config.options, merge=config.chunks.merge)
        if not loss_named(loss).context_parallel and layout.context > 1:
            raise InputError(
                f"{teacher.where}.loss={loss} with trainer.strategy.context_parallel_size={layout.context}",
                "1: this loss looks at all positions of a micro-batch, which no rank has",
                "choose another loss: the others are the same in every layout",
            )
        if config.projection is not None:
            ProjectionMatrix.load(config.projection, tokenizer.vocabulary, other)


def is_first() -> bool:
    """Whether this is the first process of the run."""
    return int(os.environ.get("RANK", "0")) == 0

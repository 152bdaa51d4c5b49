"""One training of the study on the real stack: NeMo's trainer, Megatron's schedule and optimizer, our losses.

Imports NeMo: ten seconds, once; each training runs in a fork of the process that did.
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import nemo.lightning as nl
import torch
from megatron.core.optimizer import OptimizerConfig
from nemo.collections import llm
from nemo.lightning.pytorch.optim import CosineAnnealingScheduler

from nemo_xtoken.data.config import Tokenization
from nemo_xtoken.files import atomic_path
from nemo_xtoken.losses.base import ChunkLossConfig
from nemo_xtoken.losses.registry import DivergenceOptions
from nemo_xtoken.objective.scale import ObjectiveConfig
from nemo_xtoken.plugin.nemo2.checkpoint_folders import finished_checkpoint
from nemo_xtoken.plugin.nemo2.data import DistillationData
from nemo_xtoken.plugin.nemo2.distill import train_one
from nemo_xtoken.plugin.nemo2.model import DistillationModel
from nemo_xtoken.plugin.nemo2.teacher import TeacherConfig
from nemo_xtoken.plugin.nemo2.tokenizer import XTokenTokenizer
from nemo_xtoken.projection.build import ProjectionRule
from nemo_xtoken.run.records import read_history

from . import arithmetic, texts
from .arms import START, UNTAUGHT, Arm, Lesson
from .lengths import Length, Shape
from .measures import measure

__all__ = ["run_arm", "train_untaught"]

COURSE = "course.jsonl"
CHECKPOINT_EVERY = 250  # steps


class _Seed(pl.Callback):
    """Seeds the first weights: NeMo's own seed is always the same."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def setup(self, trainer: pl.Trainer, pl_module: Any, stage: str) -> None:
        """Before the model is built."""
        from megatron.core import tensor_parallel

        torch.manual_seed(self.seed)
        tensor_parallel.model_parallel_cuda_manual_seed(self.seed)


class _Course(pl.Callback):
    """Measures a few questions while a student trains."""

    def __init__(self, length: Length, file: Path) -> None:
        self.file, self.questions = file, arithmetic.questions(length, length.watched)
        self.every = max(1, length.steps // length.looks)

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Drops what is ahead of the checkpoint that a run goes on from; measures the start."""
        now = trainer.global_step
        kept = [r for r in read_course(self.file) if r["step"] <= now]
        with atomic_path(self.file) as temporary:
            temporary.write_text("".join(json.dumps(r) + "\n" for r in kept))
        if now == 0 and not kept:
            self._look(now, pl_module)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        """Measures when it is time."""
        if trainer.global_step % self.every == 0:
            self._look(trainer.global_step, pl_module)

    def _look(self, step: int, model: Any) -> None:
        found = measure(model, self.questions, ())
        with open(self.file, "a") as file:
            file.write(json.dumps({"step": step} | found) + "\n")


class _Untrained(pl.Callback):
    """Measures the start."""

    def __init__(self, length: Length) -> None:
        self.length = length
        self.measures: dict[str, float] = {}

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Before the first step."""
        self.measures = _measures(pl_module, self.length)


def read_course(file: Path) -> list[dict[str, Any]]:
    """Records of a student's course, in order."""
    return [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []


def train_untaught(name: str, length: Length, folder: Path, run: Path) -> dict[str, Any]:
    """Trains a teacher, or what all students start from, on text alone, and measures it.

    Args:
        name: one of `arms.UNTAUGHT`.
        folder: of texts and tokenizers.
        run: its own.
    """
    untaught = UNTAUGHT[name]
    positions = length.teacher_length if untaught.large else length.student_length
    model = _model(folder, untaught.tokenizer, length.teacher if untaught.large else length.student, positions)
    data = _data(length, folder, untaught.seed, student_length=positions, pack=True)
    trainer = _trainer(getattr(length, untaught.steps))
    trainer.callbacks.append(_Seed(untaught.seed))
    _train(model, data, trainer, {}, ObjectiveConfig(scale=0.0), length.teacher_lr, length.warmup, run)
    return _result(model, length, run)


def _finished(name: str, length: Length, runs: Mapping[str, Path]) -> str:
    """The checkpoint that one of `arms.UNTAUGHT` ended with."""
    steps = getattr(length, UNTAUGHT[name].steps)
    found = finished_checkpoint(runs[name] / "checkpoints", steps)
    if found is None:
        raise FileNotFoundError(f"{runs[name]} is not trained for {steps} steps")
    return str(found)


def run_arm(
    arm: Arm, seed: int, length: Length, folder: Path, run: Path, untaught: Mapping[str, Path]
) -> dict[str, Any]:
    """Trains a student, or goes on with it, and measures it.

    Args:
        folder: of texts and tokenizers.
        run: its own folder.
        untaught: those of the models of `arms.UNTAUGHT`, by name.

    Returns:
        ``measures``, ``course`` (the measures of a few questions by step), ``cost``.
    """
    steps = length.steps if arm.trained else 0
    if not arm.trained:  # measured before its only step, which a cut off run may have made
        shutil.rmtree(run, ignore_errors=True)
    model = _model(folder, "student", length.student, length.student_length)
    trainer = _trainer(max(steps, 1))
    untrained = _Untrained(length)
    trainer.callbacks.append(_Course(length, run / COURSE) if arm.trained else untrained)
    data = _data(length, folder, seed, length.student_length)
    lessons = {f"{x.teacher}_{n}": _teacher(x, length, folder, untaught) for n, x in enumerate(arm.lessons)}
    objective = ObjectiveConfig(scale=arm.scale, teacher_weights=arm.teacher_weights)
    side, begin = _side(folder, length), _finished(START, length, untaught)
    _train(model, data, trainer, lessons, objective, length.lr, length.warmup // 4, run, [side], begin)
    result = _result(model, length, run) if arm.trained else {"measures": untrained.measures, "cost": {}, "curve": {}}
    return result | {"course": read_course(run / COURSE)}


def _measures(model: Any, length: Length) -> dict[str, float]:
    return measure(model, arithmetic.questions(length, length.questions), texts.held_out(length.texts))


def _result(model: Any, length: Length, run: Path) -> dict[str, Any]:
    """Measures of a model that has just been trained or loaded, what its steps cost, and the sums of each step."""
    steps = [r for r in read_history(run) if "ce" in r]
    curve = {name: [_short(r.get(name)) for r in steps] for name in ("ce", "kd")}
    cost = {
        "steps": len(steps),
        "seconds": sum(r["seconds"] for r in steps),
        "tokens": sum(r["tokens"] for r in steps),
        "chunks": sum(r.get("chunks", 0) for r in steps),
        "parameters": sum(p.numel() for p in model.module.parameters()),
    }
    return {"measures": _measures(model, length), "cost": cost, "curve": curve}


def _short(value: float | None) -> float | None:
    """To four digits; None: a step without a chunk, or without teachers."""
    return None if value is None else float(f"{value:.4g}")


def _side(folder: Path, length: Length) -> Tokenization:
    """What the samples of a student without teachers are cut by: as every other student's."""
    vocabulary = XTokenTokenizer(texts.tokenizer(folder, "digits")).vocabulary
    return Tokenization(vocabulary, texts.positions("digits", length))


def _teacher(lesson: Lesson, length: Length, folder: Path, untaught: Mapping[str, Path]) -> TeacherConfig:
    return TeacherConfig(
        path=_finished(lesson.teacher, length, untaught),
        tokenizer=texts.tokenizer(folder, UNTAUGHT[lesson.teacher].tokenizer),
        loss=lesson.loss,
        options=DivergenceOptions(**lesson.options),
        chunks=ChunkLossConfig(**lesson.chunks),
        rule=ProjectionRule(**lesson.rule),
        weight=lesson.weight,
        learned=lesson.learned,
        length=texts.positions(lesson.teacher, length),
    )


def _model(folder: Path, tokenizer: str, shape: Shape, positions: int) -> DistillationModel:
    config = llm.LlamaConfig(
        **asdict(shape), seq_length=positions, apply_rope_fusion=False, gradient_accumulation_fusion=False
    )
    return DistillationModel(config, XTokenTokenizer(texts.tokenizer(folder, tokenizer)))


def _data(length: Length, folder: Path, seed: int, student_length: int, pack: bool = False) -> DistillationData:
    text = texts.samples(folder, length, seed, student_length, pack)
    batch = length.batch if pack else length.student_batch
    return DistillationData(text, micro_batch_size=batch, global_batch_size=batch)


def _trainer(steps: int) -> nl.Trainer:
    return nl.Trainer(
        accelerator="auto",
        devices=1,
        max_steps=steps,
        limit_val_batches=0,
        num_sanity_val_steps=0,
        log_every_n_steps=50,
        logger=False,
        use_distributed_sampler=False,
        enable_progress_bar=False,
        strategy=nl.MegatronStrategy(ckpt_async_save=False),
        plugins=nl.MegatronMixedPrecision(precision="32"),
    )


def _train(
    model: DistillationModel,
    data: DistillationData,
    trainer: nl.Trainer,
    teachers: Mapping[str, TeacherConfig],
    objective: ObjectiveConfig,
    lr: float,
    warmup: int,
    run: Path,
    aligned_with: list[Tokenization] | tuple[()] = (),
    start: str | None = None,
) -> None:
    """Trains to the end, from the newest checkpoint in ``run`` or else from ``start``; the model has its weights."""
    config = OptimizerConfig(
        optimizer="adam", lr=lr, weight_decay=0.1, adam_beta2=0.98, clip_grad=1.0, use_distributed_optimizer=True,
        params_dtype=torch.float32,
    )  # fmt: skip
    schedule = CosineAnnealingScheduler(
        max_steps=trainer.max_steps, warmup_steps=min(warmup, trainer.max_steps // 2), constant_steps=0,
        min_lr=lr / 20,
    )  # fmt: skip
    every = min(trainer.max_steps, CHECKPOINT_EVERY)
    ckpt = nl.ModelCheckpoint(every_n_train_steps=every, save_last=True, save_top_k=1, monitor="step", mode="max")
    train_one(
        model,
        data,
        trainer,
        None,
        objective,
        nl.MegatronOptimizerModule(config=config, lr_scheduler=schedule),
        nl.NeMoLogger(log_dir=str(run.parent), name=run.name, use_datetime_version=False, ckpt=ckpt),
        nl.AutoResume(
            resume_if_exists=True,
            resume_ignore_no_checkpoint=True,
            restore_config=None if start is None else nl.RestoreConfig(path=start),
        ),
        teachers,
        aligned_with,
    )

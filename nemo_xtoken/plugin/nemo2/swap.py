"""A model with another tokenizer, distilled from itself: transplant, import, distil, export, measure.

The student is the model itself with the new tokenizer, the teacher the model as it is.  See ``plugin.swapping`` for
what surrounds the training.
"""

import dataclasses
from pathlib import Path
from typing import Optional

import nemo.lightning as nl
from nemo.lightning import OptimizerModule

from nemo_xtoken.objective.scale import ObjectiveConfig
from nemo_xtoken.plugin import swapping
from nemo_xtoken.plugin.nemo2.data import DistillationData
from nemo_xtoken.plugin.nemo2.distill import rebuilt, run_folder, train_one
from nemo_xtoken.plugin.nemo2.hf.exporting import load_config
from nemo_xtoken.plugin.nemo2.model import DistillationModel
from nemo_xtoken.plugin.nemo2.student import starting_tokenizer
from nemo_xtoken.plugin.nemo2.teacher import TeacherConfig
from nemo_xtoken.plugin.swapping import (
    CE_ONLY,
    DISTILLED,
    Transplanted,
    check_given,
    finish,
    transplanted,
)
from nemo_xtoken.progress import Parts, Phase
from nemo_xtoken.run.lora.lora_settings import LoraConfig
from nemo_xtoken.training.teacher_settings import named_teachers
from nemo_xtoken.training.watching.early_stopping import StopConfig
from nemo_xtoken.training.watching.sample_settings import SampleConfig

__all__ = ["swap_tokenizer"]

#: In the cache folder: the two as NeMo 2 checkpoints.
STUDENT, TAUGHT_BY = "student", "teacher"


def swap_tokenizer(
    data: DistillationData,
    trainer: nl.Trainer,
    log: nl.NeMoLogger,
    model: Optional[str] = None,
    tokenizer: Optional[str] = None,
    teacher: Optional[TeacherConfig] = None,
    objective: Optional[ObjectiveConfig] = None,
    optim: Optional[OptimizerModule] = None,
    resume: Optional[nl.AutoResume] = None,
    teachers: Optional[dict[str, TeacherConfig]] = None,
    layers: Optional[str] = None,
    ce_only: bool = False,
    measure_bytes: int = 200_000,
    measure_on: Optional[str] = None,
    trust: bool = False,
    stop: Optional[StopConfig] = None,
    samples: Optional[SampleConfig] = None,
    lora: Optional[LoraConfig] = None,
) -> Path:
    """Gives ``model`` the tokenizer of another and distils it from the original; the same command resumes it.

    Args:
        model: the original: a folder in Hugging Face's format, or a hub name.
        tokenizer: the new tokenizer: a folder, a tokenizer.json or a hub name.
        layers: the student has these of the original's alone: so many, evenly spread (``12``), these (``0,1,5-9``) or
            every n-th (``::2``); None: all.
        teacher: how the student learns; its ``path`` is the original unless one is given.
        ce_only: also train the transplanted model without a teacher, through the same batches, to compare.
        measure_bytes: bits per byte are measured on so much of the held-out text; 0: not at all.
        measure_on: the device for that, as torch names it; by default a GPU where there is one.
        data, trainer, log, objective, optim, resume, teachers, trust, stop, samples, lora: as for ``distill``.

    Returns:
        the run's folder: ``student`` in it is the result in Hugging Face's format, ``bits.json`` the measure before and
        after.

    Raises:
        InputError: model, tokenizer, text, layout or settings are wrong.
    """
    lora = None if lora is None else lora.of_swap()
    made = transplanted(*check_given(model, tokenizer, data.text), layers, _import)
    teacher = dataclasses.replace(teacher or TeacherConfig())
    teacher.path = teacher.path or str(made.folder / TAUGHT_BY)
    resume = resume or nl.AutoResume(resume_if_exists=True, resume_ignore_no_checkpoint=True)
    origin = made.origin if resume.restore_config is None else None
    if resume.restore_config is None:
        resume = rebuilt(resume, restore_config=nl.RestoreConfig(path=str(made.folder / STUDENT)))
    folder = run_folder(log)
    runs, parts = {}, Parts(1 + ce_only, trainer.is_global_zero)
    if ce_only:
        parts.begin(f"training the student, {CE_ONLY}")
        sides = [t.side for t in named_teachers(teacher, teachers)]
        runs[CE_ONLY] = train_one(
            _student(resume, data, trust), rebuilt(data), rebuilt(trainer), None, ObjectiveConfig(scale=0.0),
            rebuilt(optim), rebuilt(log, name="ce_only", log_dir=str(folder)), rebuilt(resume), aligned_with=sides,
            title=CE_ONLY, trust=trust, lora=lora, origin=origin,
        )  # fmt: skip
    parts.begin(f"training the student, {DISTILLED}")
    student = _student(resume, data, trust)
    runs[DISTILLED] = train_one(
        student, data, trainer, teacher, objective, optim, log, resume, teachers, title=DISTILLED, trust=trust,
        stop=stop, samples=samples or SampleConfig(), lora=lora, origin=origin,
    )  # fmt: skip
    if trainer.is_global_zero:
        finish(made, runs, folder, data.text, student.tokenizer.vocabulary, measure_bytes, measure_on)
    return folder


def _import(made: Transplanted) -> None:
    """Makes NeMo 2 checkpoints of the two."""
    for path, name in ((made.model, STUDENT), (made.original, TAUGHT_BY)):
        if not (made.folder / name).exists():
            with Phase(f"importing {path}"):
                swapping.run_command("import", f"model={path}", f"out={made.folder / name}")


def _student(resume: nl.AutoResume, data: DistillationData, trust: bool) -> DistillationModel:
    """The architecture and the tokenizer of the checkpoint that it starts from."""
    config = load_config(resume.restore_config.path, trust)
    config.seq_length = data.text.student_length
    return DistillationModel(config, starting_tokenizer(resume, trust))

"""A model with another tokenizer, distilled from itself, under Megatron-Bridge, which loads both as they are.

See ``plugin.swapping`` for what surrounds the training.
"""

import dataclasses
from pathlib import Path
from typing import Optional

from nemo_xtoken.objective.scale import ObjectiveConfig
from nemo_xtoken.plugin.bridge.bridge_config import Data, Log, Optimizer, Resume, Student, TeacherConfig, Trainer
from nemo_xtoken.plugin.bridge.distill_bridge import is_first, train_one
from nemo_xtoken.plugin.swapping import CE_ONLY, DISTILLED, check_given, finish, transplanted
from nemo_xtoken.progress import Parts
from nemo_xtoken.run.lora.lora_settings import LoraConfig
from nemo_xtoken.training.teacher_settings import named_teachers
from nemo_xtoken.training.vocabulary_tokenizer import VocabularyTokenizer
from nemo_xtoken.training.watching.early_stopping import StopConfig
from nemo_xtoken.training.watching.sample_settings import SampleConfig

__all__ = ["swap_tokenizer"]


def swap_tokenizer(
    data: Data,
    trainer: Trainer,
    log: Log,
    model: Optional[str] = None,
    tokenizer: Optional[str] = None,
    teacher: Optional[TeacherConfig] = None,
    objective: Optional[ObjectiveConfig] = None,
    optim: Optional[Optimizer] = None,
    resume: Optional[Resume] = None,
    teachers: Optional[dict[str, TeacherConfig]] = None,
    layers: Optional[str] = None,
    ce_only: bool = False,
    measure_bytes: int = 200_000,
    measure_on: Optional[str] = None,
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
        data, trainer, log, objective, optim, resume, teachers, stop, samples, lora: as for ``distill``.

    Returns:
        the run's folder: ``student`` in it is the result in Hugging Face's format, ``bits.json`` the measure before and
        after.

    Raises:
        InputError: model, tokenizer, text, layout or settings are wrong.
    """
    lora = None if lora is None else lora.of_swap()
    made = transplanted(*check_given(model, tokenizer, data.text), layers)
    teacher = dataclasses.replace(teacher or TeacherConfig())
    teacher.path = teacher.path or str(made.original)
    resume = resume or Resume()
    origin = made.origin if resume.restore_config.path is None else None
    start = dataclasses.replace(resume.restore_config, path=resume.restore_config.path or str(made.model))
    resume = dataclasses.replace(resume, restore_config=start)
    folder = Path(log.log_dir) / log.name
    runs, parts = {}, Parts(1 + ce_only, is_first())
    if ce_only:
        parts.begin(f"training the student, {CE_ONLY}")
        sides = [t.side for t in named_teachers(teacher, teachers)]
        beside = dataclasses.replace(log, log_dir=str(folder), name="ce_only")
        alone = ObjectiveConfig(scale=0.0)
        runs[CE_ONLY] = train_one(
            Student(), data, trainer, None, alone, optim, beside, resume, aligned_with=sides, title=CE_ONLY, lora=lora,
            origin=origin,
        )  # fmt: skip
    parts.begin(f"training the student, {DISTILLED}")
    runs[DISTILLED] = train_one(
        Student(), data, trainer, teacher, objective, optim, log, resume, teachers, title=DISTILLED, stop=stop,
        samples=samples or SampleConfig(), lora=lora, origin=origin,
    )  # fmt: skip
    if is_first():
        student = VocabularyTokenizer(str(made.model)).vocabulary
        finish(made, runs, folder, data.text, student, measure_bytes, measure_on)
    return folder

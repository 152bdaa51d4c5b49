"""A recipe that trains nothing."""

from dataclasses import dataclass, field
from typing import Any, Optional

import nemo_run as run

from nemo_xtoken.errors import InputError


@dataclass
class Trainer:
    max_steps: int = 1000
    devices: int = 1
    accelerator: str = field(default="auto", repr=False)
    callbacks: Optional[list[Any]] = None


@dataclass
class Student:
    layers: int = 2


@dataclass
class Teacher:
    layers: int = 4
    like: Optional[Student] = None


@dataclass
class Callback:
    every: int = 1


def distill(
    model: Student,
    teacher: Teacher,
    trainer: Trainer,
    log: str = "",
    scale: float = 1.0,
    teachers: Optional[dict[str, Teacher]] = None,
) -> None:
    """Says what it got, or fails as a run can fail."""
    if scale < 0:
        raise InputError(f"scale={scale}", "0 or more", "change it")
    if scale == 0:
        raise RuntimeError("broken on purpose")
    if teachers:
        print("TEACHERS", teachers)
    print("RAN", model, teacher, trainer, repr(log), scale)


def fake_recipe(layers: int = 2) -> run.Partial:
    if layers < 1:
        raise InputError(f"layers={layers}", "1 or more", "change it")
    return run.Partial(
        distill,
        model=run.Config(Student, layers=layers),
        teacher=run.Config(Teacher, like=run.Config(Student, layers=layers)),
        trainer=run.Config(Trainer, max_steps=500, callbacks=[run.Config(Callback, every=3)]),
    )

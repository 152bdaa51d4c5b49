"""Which of a run's teachers teach, and what each is called: one rule for objects and for plain settings."""

import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from nemo_xtoken.errors import InputError

__all__ = ["CACHED", "ELSEWHERE", "THE_TEACHER", "label_of", "name_of", "teaching", "where_of"]

#: The name of the teacher that the argument ``teacher`` configures.
THE_TEACHER = "teacher"
#: Sources of a teacher whose model lies in no process of the run; the first of those that read a disk.
CACHED = ("cached", "remote+cached")
ELSEWHERE = (*CACHED, "remote")
Teacher = TypeVar("Teacher")


def teaching(
    teacher: Teacher | None, several: Mapping[str, Teacher | None] | None, path: Callable[[Teacher], Any]
) -> dict[str, Teacher]:
    """Those that are to teach, in order, by what each is called on the command line.

    Args:
        teacher: of the argument ``teacher``; left out when it names no checkpoint and there are others.
        several: of the argument ``teachers``, by name; one that is None is left out.
        path: the checkpoint of one; None where it names none.
    """
    found = {where_of(name): config for name, config in (several or {}).items() if config is not None}
    if teacher is not None and (path(teacher) is not None or not found):
        found = {THE_TEACHER: teacher, **found}
    return found


def where_of(name: str) -> str:
    """What a teacher's settings are called on the command line.

    Raises:
        InputError: a name that no teacher of ``teachers`` can have.
    """
    if not re.fullmatch(r"[A-Za-z]\w*", name) or name == THE_TEACHER:
        raise InputError(
            f"a teacher named {name!r}",
            f"a name of letters, digits and _ that begins with a letter, and not {THE_TEACHER!r}",
            "rename it: teachers.NAME.path=..",
        )
    return f"teachers.{name}"


def name_of(where: str) -> str:
    """A teacher's name, from what its settings are called."""
    return where.partition(".")[2] or THE_TEACHER


def label_of(where: str) -> str:
    """What messages call it."""
    return f"teacher {name_of(where)}" if "." in where else "teacher"

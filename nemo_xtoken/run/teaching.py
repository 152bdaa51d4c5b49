"""Which of a run's teachers teach, and what each is called: one rule for objects and for plain settings."""

import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from nemo_xtoken.errors import InputError

__all__ = ["ALONE", "label_of", "name_of", "teaching", "where_of"]

#: The name of the teacher that the argument ``teacher`` configures.
ALONE = "teacher"
Teacher = TypeVar("Teacher")


def teaching(
    alone: Teacher | None, several: Mapping[str, Teacher | None] | None, path: Callable[[Teacher], Any]
) -> dict[str, Teacher]:
    """Those that are to teach, in order, by what each is called on the command line.

    Args:
        alone: of the argument ``teacher``; left out when it names no checkpoint and there are others.
        several: of the argument ``teachers``, by name; one that is None is left out.
        path: the checkpoint of one; None where it names none.
    """
    found = {where_of(name): config for name, config in (several or {}).items() if config is not None}
    if alone is not None and (path(alone) is not None or not found):
        found = {ALONE: alone, **found}
    return found


def where_of(name: str) -> str:
    """What a teacher's settings are called on the command line.

    Raises:
        InputError: a name that no teacher of ``teachers`` can have.
    """
    if not re.fullmatch(r"[A-Za-z]\w*", name) or name == ALONE:
        raise InputError(
            f"a teacher named {name!r}",
            f"a name of letters, digits and _ that begins with a letter, and not {ALONE!r}",
            "rename it: teachers.NAME.path=..",
        )
    return f"teachers.{name}"


def name_of(where: str) -> str:
    """A teacher's name, from what its settings are called."""
    return where.partition(".")[2] or ALONE


def label_of(where: str) -> str:
    """What messages call it."""
    return f"teacher {name_of(where)}" if "." in where else "teacher"

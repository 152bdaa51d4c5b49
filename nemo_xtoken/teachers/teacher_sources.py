"""Where a teacher's hidden states can come from, by name."""

from nemo_xtoken.errors import InputError
from nemo_xtoken.imported import import_class
from nemo_xtoken.teachers.ahead.ahead_teacher import AheadTeacher
from nemo_xtoken.teachers.cached import CachedTeacher
from nemo_xtoken.teachers.colocated import ColocatedTeacher
from nemo_xtoken.teachers.contract import Teacher, TeacherHost
from nemo_xtoken.teachers.own_layout import OwnLayoutTeacher
from nemo_xtoken.teachers.service.keeping import KeepingTeacher
from nemo_xtoken.teachers.service.remote import RemoteTeacher

__all__ = ["SOURCES", "check_source", "has_model", "open_teacher", "source_named"]

SOURCES: dict[str, type[Teacher]] = {
    "colocated": ColocatedTeacher,
    "own_layout": OwnLayoutTeacher,
    "cached": CachedTeacher,
    "remote": RemoteTeacher,
    "remote+cached": KeepingTeacher,
}


def source_named(name: str, where: str = "teacher.source") -> type[Teacher]:
    """The class of a source: a row of `SOURCES`, or ``package.module:Class``, which is imported.

    Args:
        where: what names it, for error messages.

    Raises:
        InputError: the name is unknown, the module cannot be imported, or the class is no teacher.
    """
    if name in SOURCES:
        return SOURCES[name]
    if ":" not in name:
        raise InputError(
            f"{where}={name!r}",
            f"one of {', '.join(SOURCES)}; or package.module:Class for a source of your own",
            "choose one, or leave it out: the teacher is in the student's processes then",
        )
    found: type[Teacher] = import_class(name, Teacher, where)
    return found


def has_model(name: str | None) -> bool:
    """Whether a source has the teacher's model in the run's processes; None, the default, has."""
    return name is None or source_named(name).colocated


def check_source(settings: object, name: str | None, where: str) -> None:
    """Whether a teacher's source is there and can do with its settings.

    Args:
        settings: its ``TeacherConfig``.
        name: of the source; None: in the student's processes.
        where: what the settings are called on the command line.

    Raises:
        InputError: it is not, or cannot.
    """
    if name is not None:
        source_named(name, f"{where}.source").check(settings, where)


def open_teacher(host: TeacherHost, name: str | None) -> Teacher:
    """A teacher on this rank.

    Args:
        name: of its source; None: in the student's processes, with a layout of its own where its sizes differ.

    Raises:
        InputError: it is not to be had.
    """
    if host.settings.ahead:  # in the student's processes: ``run.values`` refuses other sources
        return AheadTeacher.open(host)
    default = "colocated" if host.sizes == host.student_sizes else "own_layout"
    return source_named(name or default).open(host)

"""What a file system refuses, as one message: full, read-only, a folder where a file is to be, no permission."""

import errno
import os
import re
import stat
from pathlib import Path

from nemo_xtoken.errors import InputError

__all__ = ["check_target", "file_problem"]

#: By number: what is expected, and what to do.
_REFUSALS = {
    errno.ENOSPC: ("free space there", "make room, or name another place"),
    errno.EDQUOT: ("free space within your quota", "make room, or name another place"),
    errno.EFBIG: ("a file of a size that is allowed there", "name another place"),
    errno.EROFS: ("a file system that can be written", "name another place"),
    errno.EACCES: ("permission to read and write it", "change its permissions, or name another place"),
    errno.EPERM: ("permission to read and write it", "change its permissions, or name another place"),
    errno.EISDIR: ("a file", "name a file in that folder"),
    errno.ENOTDIR: ("a folder", "correct the path"),
    errno.ELOOP: ("a path that leads somewhere", "correct the symbolic link"),
    errno.ENAMETOOLONG: ("a shorter name", "shorten it"),
}
_TEMPORARY = re.compile(r"^\.(.+)\.[^.]+\.tmp$")  # files.atomic_path


def file_problem(error: BaseException) -> InputError | None:
    """What the user can do about an error of the file system; None for errors of other kinds.

    Libraries in Rust, such as safetensors, give the system's number in their text alone.
    """
    number, names = None, []
    if isinstance(error, OSError):
        number, names = error.errno, [error.filename2, error.filename]
    elif found := re.search(r"\(os error (\d+)\)", str(error)):
        number = int(found[1])
    if number not in _REFUSALS:
        return None
    expected, fix = _REFUSALS[number]
    name = next((Path(os.fsdecode(n)) for n in names if isinstance(n, str | bytes)), None)
    if name is not None and (hidden := _TEMPORARY.match(name.name)):
        name = name.with_name(hidden[1])
    what = f"{name} cannot be written or read" if name is not None else "a file cannot be written"
    return InputError(f"{what}: {os.strerror(number)}", expected, fix)


def check_target(name: str, value: str, folder: bool = False) -> None:
    """Whether a file, or a folder, can be made at a path, before the work that is to go there is done.

    Args:
        name: of the argument, for the message.
        folder: whether a folder is to be made.

    Raises:
        InputError: something else is there already, or nothing can be written there.
    """
    path = Path(value).expanduser()
    try:
        mode = path.stat().st_mode
    except OSError as error:
        if (problem := file_problem(error)) is not None:
            raise problem from error
        mode = None  # nothing is there
    if mode is not None and not (stat.S_ISDIR(mode) if folder else stat.S_ISREG(mode)):
        found = "a folder" if stat.S_ISDIR(mode) else "a file" if stat.S_ISREG(mode) else "neither a file nor a folder"
        raise InputError(
            f"{name}={value} is {found}", "a folder" if folder else "a file, which is made", "name another"
        )
    place = path.absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    if not os.access(place if place.is_dir() else place.parent, os.W_OK):
        raise InputError(f"{name}={value}: {place} cannot be written", "a place that can be written", "name another")

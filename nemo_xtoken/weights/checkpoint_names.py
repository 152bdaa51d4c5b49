"""The checkpoints in a run's folder, by what their names say: which is newest, and which are whole."""

import contextlib
import re
from pathlib import Path

from nemo_xtoken.errors import InputError

__all__ = [
    "NAME",
    "RUN_CONFIG",
    "UNFINISHED",
    "bridge_checkpoints",
    "check_without_checkpoints",
    "finished_checkpoints",
    "is_bridge_checkpoint",
    "steps_of",
]

#: Beside a checkpoint whose save, or removal, did not end.
UNFINISHED = "-unfinished"
#: In each of Megatron-Bridge's, and written last.
RUN_CONFIG = "run_config.yaml"
#: Of one that NeMo 2 writes, for its formatting: ``step_500`` after 500 steps; then what it is the best by, and ``-v1``
#: where there is one of that name.
NAME = "step_{step}"
_NAMED = re.compile(r"step_(\d+)(?:-.*)?")
_ITERATION = re.compile(r"iter_(\d+)")
#: In the names of NeMo itself, and of earlier versions; it calls the first step 0.
_STEP = re.compile(r"(?:^|[^a-z])step=(\d+)")


def steps_of(checkpoint: Path) -> int:
    """The steps that a checkpoint has behind it, as its name says; 0 where that says nothing."""
    if (named := _NAMED.fullmatch(checkpoint.name)) is not None:
        return int(named[1])
    found = _STEP.findall(checkpoint.name)
    return int(found[-1]) + 1 if found else 0


def finished_checkpoints(folder: Path) -> list[Path]:
    """The whole ones in a run's folder, or in its folder ``checkpoints``, the newest first.

    The step decides, which a copy keeps; of one step the one that ended a save or a run; times only where names say
    nothing.
    """
    found = []
    for place in (folder / "checkpoints", folder):
        for weights in place.glob("*/weights"):
            path = weights.parent
            if weights.is_dir() and not Path(f"{path}{UNFINISHED}").exists():
                with contextlib.suppress(FileNotFoundError):  # the run that writes them removes old ones
                    last, written = path.name.endswith("-last"), weights.stat().st_mtime
                    found.append((steps_of(path), last, written, path.name, path))
    return [path for *_, path in sorted(found, reverse=True)]


def bridge_checkpoints(folder: Path) -> dict[int, Path]:
    """The whole ones of Megatron-Bridge in a run's folder, or in its folder ``checkpoints``, by step, newest first."""
    found = {
        int(match[1]): path
        for place in (folder / "checkpoints", folder)
        for path in place.glob("iter_*")
        if (match := _ITERATION.fullmatch(path.name)) and (path / RUN_CONFIG).is_file()
    }
    return dict(sorted(found.items(), reverse=True))


def is_bridge_checkpoint(folder: Path) -> bool:
    """Whether a folder is a whole checkpoint of Megatron-Bridge."""
    return (folder / RUN_CONFIG).is_file()


def check_without_checkpoints(folder: Path) -> None:
    """The folder of a run that is not to continue has no checkpoints of another one.

    Their steps may be higher than those of the new run: the newest by its step, which is kept, exported and evaluated,
    would be a checkpoint of the old run.

    Raises:
        InputError: it has some.
    """
    if finished_checkpoints(folder) or bridge_checkpoints(folder):
        raise InputError(
            f"checkpoints in {folder} and resume.resume_if_exists=false",
            "a folder of its own for a run that does not continue from them",
            "set log.name=NAME, or remove them; resume.resume_if_exists=true continues from the newest",
        )

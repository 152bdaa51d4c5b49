"""What a job's container sees of this machine: its paths are the container's, and the checks look at the machine's."""

import copy
import os
from collections.abc import Iterator
from typing import Any

from nemo_xtoken.errors import InputError
from nemo_xtoken.launch.slurm_config import SlurmConfig
from nemo_xtoken.preflight.findings import Finding, green, red
from nemo_xtoken.run.settings import Settings

__all__ = ["on_this_machine", "visible"]

#: Where a run writes.
WRITTEN = ("log.log_dir",)


def on_this_machine(settings: Settings, slurm: SlurmConfig | InputError | None) -> Settings:
    """The settings with every path as the machine has it; a copy.

    Below the home folder that is its full name, as the run takes it; below a mount's target the place of the mount.
    """
    found = Settings(copy.deepcopy(settings.content), settings.source)
    inside = slurm if isinstance(slurm, SlurmConfig) and slurm.container_image is not None else None
    for name, path in _paths(settings.content):
        place = os.path.expanduser(path)
        outside = inside.outside(place) if inside is not None and os.path.isabs(place) else None
        if path != (place := outside or place):
            _put(found.content, name, place)
    return found


def visible(settings: Settings, slurm: SlurmConfig | InputError | None) -> Iterator[Finding]:
    """Every path of the run that exists here has to be below a mount.

    What exists on neither side is another check's to report; what an image holds itself cannot be seen from here.

    Args:
        settings: with the container's paths.
        slurm: of the job.
    """
    if not isinstance(slurm, SlurmConfig) or slurm.container_image is None:
        return
    seen = 0
    for name, path in _paths(settings.content):
        place = os.path.normpath(os.path.join(slurm.folder, os.path.expanduser(path)))
        if "*" in place:
            place = os.path.dirname(place.split("*")[0].rstrip("/") + "/") or "/"
        if slurm.sees(place):
            seen += 1
            continue
        key = ".".join(map(str, name))
        if key in WRITTEN:
            problem = f"{key}={path} lies inside the job's container, and is gone with the job"
        elif os.path.exists(place):
            problem = f"{key}={path}: there on this machine, but not in the job's container"
        else:
            continue
        folder = place if os.path.isdir(place) or key in WRITTEN else os.path.dirname(place)
        targets = " or ".join(mount.split(":")[1] for mount in slurm.mounts)
        fix = f"add {folder}:{folder} to executor.container_mounts"
        yield red("mounts", InputError(problem, f"a path below {targets}", fix))
    if seen:
        yield green("mounts", f"{seen} path{'s' * (seen > 1)} of the run, seen in the container")


def _paths(content: Any, name: tuple[str | int, ...] = ()) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """Names and values of paths that may leave the job's folder: absolute, below the home folder, upwards."""
    if isinstance(content, dict):
        for key, value in content.items():
            if key != "_target_":
                yield from _paths(value, (*name, key))
    elif isinstance(content, list | tuple):
        for number, value in enumerate(content):
            yield from _paths(value, (*name, number))
    elif isinstance(content, str) and (content == "~" or content.startswith(("/", "~/", "../"))):
        yield name, content


def _put(content: Any, name: tuple[str | int, ...], value: str) -> None:
    *path, last = name
    for part in path:
        content = content[part]
    content[last] = value

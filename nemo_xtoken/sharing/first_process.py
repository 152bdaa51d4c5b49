"""What one process of a job makes for all of them: the first does the work, the others wait for its result.

The processes need not have met: this is used before ``torch.distributed`` starts, whose time-outs are shorter than the
work may take.  They need a folder that all of them see.
"""

import contextlib
import os
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemo_xtoken.errors import InputError
from nemo_xtoken.files import digest_of
from nemo_xtoken.leftovers import OLD, system_name
from nemo_xtoken.progress import say
from nemo_xtoken.sharing.heartbeat import Heartbeat, Watcher

__all__ = ["ALONE", "Launch", "made_by_first"]

SILENT = 600.0  # seconds
LATECOMERS = 1800.0
_LOOK = 0.5, 5.0  # seconds between looks, at first and later
_OF_A_LAUNCH = ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT")
_MEETING = ("TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT", "MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE")


@dataclass(frozen=True)
class Launch:
    """The processes that were started together.

    Attributes:
        rank: of this one, over all nodes.
        processes: all of them.
        name: the same for all, and another for other launches.
        certain: no later launch can have that name.
    """

    rank: int = 0
    processes: int = 1
    name: str = ""
    certain: bool = True

    @property
    def first(self) -> bool:
        """Whether this process does the work."""
        return self.rank == 0

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> "Launch":
        """By torchrun's and Slurm's variables.

        Args:
            environment: of the process.
        """
        processes = int(environment.get("WORLD_SIZE", "1"))
        if processes == 1 or "RANK" not in environment:
            return ALONE
        words = [f"{name}={environment.get(name, '')}" for name in (*_OF_A_LAUNCH, *_MEETING)]
        local = environment.get("LOCAL_WORLD_SIZE") == str(processes)
        if local:  # one process has started all of them
            words.append(f"{system_name()} {os.getppid()} {_begun(os.getppid())}")
        certain = local or re.match(r"slurm-", environment.get("TORCHELASTIC_RUN_ID", "")) is not None
        return cls(int(environment["RANK"]), processes, digest_of(*words), certain)


ALONE = Launch()


def _begun(pid: int) -> str:
    """When a process began, in the kernel's ticks; "" where that cannot be told."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


def made_by_first(
    launch: Launch,
    folder: Path,
    key: str,
    doing: str,
    make: Callable[[], dict[str, Any]],
    clock: Callable[[], float] = time.monotonic,
    pause: Callable[[float], None] = time.sleep,
    begun: float | None = None,
) -> dict[str, Any]:
    """What ``make`` gives in the first process of the launch; no other calls it.

    Args:
        folder: one that all processes see.
        key: tells it from what else the same processes make.
        doing: "preparing text", for those who wait.
        make: gives plain data, for JSON.
        begun: when this process began, as the file system's clock says; default now.

    Raises:
        InputError: the first process failed (with its message), or has given no sign of life for ten minutes.
    """
    if launch.processes == 1:
        return make()
    path = folder / f"{digest_of('made by first', launch.name, key)[:32]}.json"
    if launch.first:
        return _make(path, doing, make, launch)
    watcher, wait = Watcher(path, clock), _LOOK[0]
    said, begun = False, time.time() if begun is None else begun
    while True:
        beat = watcher.look()
        # A launch of the same name may have left it: then nobody lets it beat.
        if beat is not None and beat.state == "done" and (launch.certain or watcher.alive):
            return beat.result
        if beat is not None and beat.state == "failed" and (watcher.alive or _written_since(path, begun)):
            raise InputError(
                f"the first process of the job ({beat.who}) stopped while {beat.doing}: {beat.said}",
                "its result",
                "see its message; this process only waited for it",
            )
        if not said:
            say(f"waiting for the first process of the job ({'rank 0' if beat is None else beat.who}): {doing}")
            said = True
        if watcher.silent > SILENT:
            raise _silent(folder, doing, watcher)
        pause(wait)
        wait = min(_LOOK[1], wait * 1.5)


def _make(path: Path, doing: str, make: Callable[[], dict[str, Any]], launch: Launch) -> dict[str, Any]:
    path.parent.mkdir(parents=True, exist_ok=True)
    for old in path.parent.glob("*.json"):
        with contextlib.suppress(OSError):  # removed by another just now, or another user's
            if time.time() - old.stat().st_mtime > OLD:
                old.unlink()
    heart = Heartbeat(path, doing, kept=True).start()
    try:
        result = make()
    except BaseException as error:
        heart.tell(state="failed", said=str(error) or type(error).__name__)
        heart.stop()
        raise
    heart.tell(state="done", result=result)
    if launch.certain:
        heart.stop()
    else:
        heart.fade(LATECOMERS)  # who comes later has to see it beat
    return result


def _written_since(path: Path, begun: float) -> bool:
    try:
        return path.stat().st_mtime > begun
    except OSError:
        return False


def _silent(folder: Path, doing: str, watcher: Watcher) -> InputError:
    minutes = f"{SILENT / 60:.0f} minutes"
    if watcher.beat is None or not watcher.alive:
        return InputError(
            f"nobody has begun {doing} in {folder} for {minutes}",
            "the first process of the job (rank 0), at work in a folder that all nodes see",
            "put the cache on the shared file system (NEMO_XTOKEN_CACHE, mounted in a container), and see what rank 0 "
            "says",
        )
    return InputError(
        f"the first process of the job ({watcher.beat.who}) has given no sign of life for {minutes} while "
        f"{watcher.beat.doing}",
        "its result, or a sign that it works",
        "see its log and its node; what it has finished is kept, so start the job again",
    )

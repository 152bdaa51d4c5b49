"""One process at a time works in a folder, also where the file system's locks hold within one node alone.

``flock`` keeps the processes of a node apart.  On Lustre mounted with ``localflock``, NFS with ``local_lock`` and their
like it keeps nobody else apart; so its holder also makes a file that only one process can make (``O_EXCL``, which those
file systems do hold), and lets it beat.  One that beats no more is of a process that was killed.
"""

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from filelock import Timeout

from nemo_xtoken.errors import InputError
from nemo_xtoken.leftovers import system_name, temporary_name
from nemo_xtoken.sharing.file_lock import file_lock
from nemo_xtoken.sharing.heartbeat import SECONDS, Heartbeat, Watcher

__all__ = ["Busy", "exclusive"]

DEAD = 6 * SECONDS  # without a beat from another node
SILENT = 600.0  # with a lock and without a beat: stopped, or its node hangs
OWNER, LOCK = ".owner.json", ".lock"


class Busy(Exception):
    """Another process is at work there; the text says which."""


@contextlib.contextmanager
def exclusive(
    folder: Path,
    doing: str,
    waiting: Callable[[str], None] | None = None,
    clock: Callable[[], float] = time.monotonic,
    pause: Callable[[float], None] = time.sleep,
    patient: bool = True,
) -> Iterator[None]:
    """The one process that works in a folder; it is given up when the process ends, however it ends.

    Args:
        doing: what is done there, for those who wait: "preparing text".
        waiting: told once for whom, when another process is at work.
        patient: wait for its end.

    Raises:
        Busy: another process is at work, and this one is not patient.
        InputError: whoever works there has given no sign of life for ten minutes.
        OSError: nothing can be written to the folder, or its lock is a link to something else.
    """
    folder.mkdir(parents=True, exist_ok=True)
    watcher, told = Watcher(folder / OWNER, clock), False

    def wait(other: str, least: float) -> None:
        nonlocal told
        beat = watcher.look()
        who = other if beat is None else f"{beat.who} ({beat.doing})"
        if not patient and (not least or watcher.alive):
            raise Busy(who)
        if waiting is not None and not told:
            waiting(who)
        told = True
        if watcher.silent > SILENT:
            raise InputError(
                f"{folder} is held by {who}, which has given no sign of life for {SILENT / 60:.0f} minutes",
                "a process that works there, or has ended",
                "end that process, then start again; what is done already is kept",
            )
        if least:
            pause(least)

    lock = file_lock(folder / LOCK)
    while True:
        try:
            lock.acquire(timeout=0 if not told else 2)
            break
        except Timeout:
            wait("another process", 0)
    try:
        while not _taken(folder / OWNER, watcher):
            wait("a process on another node", 1)
        with Heartbeat(folder / OWNER, doing):
            yield
    finally:
        lock.release()


def _taken(owner: Path, watcher: Watcher) -> bool:
    """Makes the file; one of a process that has ended is put away first."""
    try:
        os.close(os.open(owner, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))
        return True
    except FileExistsError:
        beat = watcher.look()
    # Of this node only the holder of the lock gets here.  A host name may be that of many.
    if (beat is not None and beat.system == system_name()) or watcher.silent > DEAD:
        aside = owner.parent / temporary_name(owner.name)
        with contextlib.suppress(FileNotFoundError):
            os.rename(owner, aside)  # of several only one succeeds
            aside.unlink()
    return False

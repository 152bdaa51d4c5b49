"""One process at a time in a run's folder: a file that says who is there, and since when.

The file (``.occupied``) names host, process, its start and a job, and has a number that its owner raises every few
seconds.  It is there before anything is written, and is removed at the end.  After a kill it stays.  Whether its owner
lives is asked of the system where that is the same one, and of the same container; else the number is watched: an owner
that does not raise it for `SILENCE` seconds is dead.  Clocks of hosts are not compared, and no lock of a file system is
needed, which network file systems keep in ways of their own.
"""

import contextlib
import json
import logging
import os
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nemo_xtoken.errors import InputError
from nemo_xtoken.files import digest_of
from nemo_xtoken.leftovers import is_running, system_name, temporary_name
from nemo_xtoken.progress import say

__all__ = ["FILE", "Occupied"]

logger = logging.getLogger(__name__)

FILE = ".occupied"
BEAT = 5.0  # seconds between two signs of life
SILENCE = 60.0  # seconds without one, after which an owner on another machine counts as dead
WAIT = 0.5  # seconds between two looks
OLD = 600.0  # seconds after which a right to remove a dead owner's file is no longer used


class Occupied:
    """Holds a run's folder from ``__enter__`` to ``__exit__``.

    Args:
        folder: the run's; made if it is not there.
        first: only the first rank of a run holds it; the others do nothing.
        wait: wait for another process to end, as where two runs make one cached teacher, and do not refuse.

    Raises:
        InputError: in ``__enter__``, where another process is in the folder.
    """

    def __init__(self, folder: Path, first: bool = True, wait: bool = False) -> None:
        self.file, self.first, self.wait = folder / FILE, first, wait
        self._beats, self._said = 0, False
        self._watched: list[Any] | None = None  # who was last said to be watched
        self._end = threading.Event()
        self._thread: threading.Thread | None = None
        self._me: dict[str, Any] = {}

    def __enter__(self) -> "Occupied":
        if not self.first:
            return self
        self.file.parent.mkdir(parents=True, exist_ok=True)
        self._me = {**_identity(), "since": time.strftime("%Y-%m-%d %H:%M:%S %z")}
        while not self._take():
            self._look(time.sleep)
        self._thread = threading.Thread(target=self._live, name="occupied", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._thread is not None:
            self._end.set()
            self._thread.join()
            self._thread = None
            if _owner(_read(self.file)) == _owner(self._me):
                self.file.unlink(missing_ok=True)

    def _take(self) -> bool:
        """Makes the file, unless there is one; whole at once where the file system has links."""
        own = self.file.with_name(temporary_name(self.file.name))
        try:
            own.write_text(self._text(), "utf-8")
            os.link(own, self.file)
        except FileExistsError:
            return False
        except OSError:
            try:
                with open(self.file, "x", encoding="utf-8") as file:
                    file.write(self._text())
            except FileExistsError:
                return False
        finally:
            own.unlink(missing_ok=True)
        return True

    def _text(self) -> str:
        return json.dumps({**self._me, "beats": self._beats}) + "\n"

    def _live(self) -> None:
        while not self._end.wait(BEAT):
            self._beats += 1
            try:
                if _owner(_read(self.file)) == _owner(self._me):
                    with open(self.file, "r+", encoding="utf-8") as file:  # never empty in between, nor on a full disk
                        file.write(self._text())
                else:
                    logger.error("another process has taken %s away from this one: both write there", self.file.parent)
                    return
            except OSError as error:  # a full or absent file system: the run itself will say so
                logger.debug("no sign of life in %s: %s", self.file, error)

    def _look(self, sleep: Callable[[float], None]) -> None:
        """Removes the file of an owner that is dead; returns too where it may have ended.

        Raises:
            InputError: the owner lives, and is not waited for.
        """
        owner = _read(self.file)
        here = _is_here(owner)
        if here is False:
            self._remove(owner, "its process has ended")
        elif here:
            self._refuse(owner, "it runs on this machine")
            sleep(WAIT)
        else:
            self._watch(owner, sleep)

    def _watch(self, owner: dict[str, Any], sleep: Callable[[float], None]) -> None:
        """Of an owner on another machine."""
        if self._watched != _owner(owner):  # who waits for its end looks again and again
            self._watched = _owner(owner)
            logger.warning("%s: waiting up to %.0f s for a sign of life", _who(self.file.parent, owner), SILENCE)
        looks = int(SILENCE / WAIT)
        for _ in range(looks):
            sleep(WAIT)
            now = _read(self.file)
            if _owner(now) != _owner(owner) or not self.file.exists():
                return
            if now.get("beats") != owner.get("beats"):
                self._refuse(owner, "it has just given a sign of life")
                return
        self._remove(owner, f"no sign of life for {SILENCE:.0f} s")

    def _refuse(self, owner: dict[str, Any], reason: str) -> None:
        if self.wait and not self._said:
            self._said = True
            say(f"{_who(self.file.parent, owner)}: waiting for its end")
        if not self.wait:
            raise InputError(
                f"{_who(self.file.parent, owner)}: {reason}",
                "one process, or one job, at a time in a run's folder",
                f"wait for its end, stop it, or set log.name=NAME for another run; only if it is gone for good, remove "
                f"{self.file}",
            )

    def _remove(self, owner: dict[str, Any], reason: str) -> None:
        """Of several that find the owner dead, the one that makes a file of its name may remove what it left."""
        right = self.file.with_name(f"{FILE}.after-{digest_of(json.dumps(_owner(owner)))[:16]}")
        try:
            os.close(os.open(right, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        except FileExistsError:
            time.sleep(WAIT)
            with contextlib.suppress(OSError):  # left by a process that was killed just there
                if time.time() - right.stat().st_mtime > OLD:
                    right.unlink()
            return
        try:
            if self.file.is_file() and _owner(_read(self.file)) == _owner(owner):  # still: nobody else may remove it
                logger.warning("%s, and %s: this run goes on there", _who(self.file.parent, owner), reason)
                self.file.unlink(missing_ok=True)
        finally:
            right.unlink(missing_ok=True)


def _identity() -> dict[str, Any]:
    job = os.environ.get("SLURM_JOB_ID")
    return {
        "host": socket.gethostname(),
        "system": system_name(),
        "pid": os.getpid(),
        "start": _start(os.getpid()),
        **({"job": job} if job else {}),
    }


def _start(pid: int) -> str:
    """When a process began, in the system's own count; empty where it is not known.  Numbers are used again."""
    try:
        return Path(f"/proc/{pid}/stat").read_text("utf-8", "replace").rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


def _read(file: Path) -> dict[str, Any]:
    """What the file says; nothing where it is gone or half written."""
    try:
        content = json.loads(file.read_text("utf-8", "replace"))
        return content if isinstance(content, dict) else {}
    except (OSError, ValueError, RecursionError):
        return {}


def _owner(content: dict[str, Any]) -> list[Any]:
    """What tells an owner from others."""
    return [content.get(name) for name in ("system", "pid", "start", "since")]


def _is_here(owner: dict[str, Any]) -> bool | None:
    """Whether the owner runs; None where this process cannot know."""
    if owner.get("system") != system_name():
        return None
    pid = owner.get("pid")
    if not isinstance(pid, int) or pid <= 0:
        return None
    return is_running(pid) and owner.get("start") in ("", _start(pid))


def _who(folder: Path, owner: dict[str, Any]) -> str:
    if not owner:
        return f"{folder} is held by a process that does not say which"
    job = f" (job {owner['job']})" if owner.get("job") else ""
    return f"{folder} is held by process {owner.get('pid')} on {owner.get('host')}{job} since {owner.get('since')}"

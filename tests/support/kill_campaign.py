"""Kills a piece of work at random moments, starts it again with the same words, and looks at what it leaves.

`Work` says what is done and what its result is; `campaign` kills it so many times and compares every result with that
of a run that nothing disturbed.
"""

import contextlib
import json
import os
import random
import re
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench import machine, write_json
from launcher import fork_ranks

__all__ = ["FAULTS", "Counts", "Work", "campaign", "written"]

#: What must not be.
FAULTS = ("different", "failed", "orphans", "stray")
#: Seconds in which what a killed process had started must end, and in which a run must.
GRACE, LIMIT = 10.0, 300.0
#: Seconds that the other ranks have after one was killed.
FIRST = 2.0
_STRAY = re.compile(r"\.(tmp|old)$|-unfinished$")
_ENOUGH = 4  # kills of one run before it is left alone


@dataclass(frozen=True)
class Work:
    """What is done in a folder.

    Attributes:
        name: of the work.
        do: ``do(folder)`` on each rank; the same call goes on where a killed one stopped.
        result: ``result(folder)``: what must be equal, bit for bit.
        ranks: processes.
    """

    name: str
    do: Callable[[Path], Any]
    result: Callable[[Path], Any]
    ranks: int = 1


@dataclass
class Counts:
    """What a campaign saw."""

    runs: int = 0
    kills: int = 0
    compared: int = 0
    different: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    orphans: list[str] = field(default_factory=list)
    stray: list[str] = field(default_factory=list)

    @property
    def faults(self) -> list[str]:
        """All that must not be."""
        return [fault for name in FAULTS for fault in getattr(self, name)]

    def numbers(self) -> dict[str, int]:
        """How many there were of each."""
        seen = {name: getattr(self, name) for name in ("runs", "kills", "compared")}
        return seen | {name: len(getattr(self, name)) for name in FAULTS}

    def __str__(self) -> str:
        return f"{self.runs} runs, {self.kills} kills, {self.compared} results compared; " + ", ".join(
            f"{name}: {len(getattr(self, name))}" for name in FAULTS
        )


def written(path: str | Path, kind: str, counts: Counts, seed: int) -> None:
    """Puts the counts of one kind of work into a file of results, beside those of others."""
    file = Path(path)
    kinds = json.loads(file.read_text("utf-8"))["kinds"] if file.is_file() else {}
    about = {"machine": machine(), "seed": seed}
    write_json(file, {"kinds": kinds | {kind: counts.numbers() | about}}, say=False)


def campaign(work: Work, kills: int, root: Path, seed: int) -> Counts:
    """Kills ``work`` so many times.

    Moments are uniform over the time of an undisturbed run; with even chances the first rank's process
    alone and all processes with what they have started are killed.

    Args:
        root: a new folder.
        seed: of the moments.
    """
    counts, numbers = Counts(), random.Random(f"{seed} {work.name}")
    began = time.monotonic()
    _run(work, root / "undisturbed", None, False, counts)
    seconds = time.monotonic() - began
    if counts.failed:
        return counts
    wanted = work.result(root / "undisturbed")
    series = 0
    while counts.kills < kills and not counts.failed:
        series += 1
        folder = root / f"killed{series}"
        ended, done = False, 0
        while not ended:
            again = done < _ENOUGH and counts.kills < kills
            moment = numbers.uniform(0, seconds) if again else None
            before = counts.kills
            ended = _run(work, folder, moment, numbers.random() < 0.5, counts)
            done += counts.kills - before
        counts.stray += [f"{work.name}: {path}" for path in folder.rglob("*") if _STRAY.search(path.name)]
        counts.compared += 1
        if not counts.failed and (found := work.result(folder)) != wanted:
            counts.different.append(f"{work.name}: {folder}: {_difference(found, wanted)}")
    return counts


def _difference(found: Any, wanted: Any, place: str = "") -> str:
    """Where two results differ first, and what stands there."""
    if type(found) is type(wanted) and isinstance(found, dict) and found.keys() == wanted.keys():
        pairs = [(key, found[key], wanted[key]) for key in found]
    elif type(found) is type(wanted) and isinstance(found, list | tuple) and len(found) == len(wanted):
        pairs = [(index, *pair) for index, pair in enumerate(zip(found, wanted, strict=True))]
    else:
        return f"{place}: found {found!r}, expected {wanted!r}"
    return next(_difference(a, b, f"{place}[{key!r}]") for key, a, b in pairs if a != b)


def _run(work: Work, folder: Path, moment: float | None, group: bool, counts: Counts) -> bool:
    """One start, killed after ``moment`` seconds; whether it ended by itself."""
    folder.mkdir(parents=True, exist_ok=True)
    logs = folder.with_name(f"{folder.name}.logs")
    pids = fork_ranks(work.do, folder, ranks=work.ranks, folder=logs)
    counts.runs += 1
    began, killed, status = time.monotonic(), False, dict[int, int]()
    while len(status) < len(pids):
        now = time.monotonic() - began
        if (moment is not None and now > moment and not killed and not status) or now > LIMIT:
            for pid in set(pids if group or now > LIMIT else pids[:1]) - set(status):
                if group:
                    with contextlib.suppress(ProcessLookupError):  # it has no group of its own yet
                        os.killpg(pid, signal.SIGKILL)
                os.kill(pid, signal.SIGKILL)
            if now > LIMIT:
                counts.failed.append(f"{work.name}: still running after {LIMIT:.0f} s")
            killed, began = True, time.monotonic()
        if killed and time.monotonic() - began > FIRST:  # as torchrun does: in its rendezvous a rank waits for minutes
            for pid in pids:
                if pid not in status:
                    os.kill(pid, signal.SIGKILL)
        for pid in pids:
            if pid not in status:
                done, code = os.waitpid(pid, os.WNOHANG)
                if done:
                    status[pid] = os.waitstatus_to_exitcode(code)
        time.sleep(0.01)
    counts.kills += killed
    if not killed and any(status.values()):
        log = (logs / "log.0").read_text(errors="replace")
        counts.failed.append(f"{work.name}: status {sorted(status.values())}: {log[-3000:]}")
    end = time.monotonic() + GRACE
    while (left := _in_sessions(pids)) and time.monotonic() < end:
        time.sleep(0.05)
    counts.orphans += [f"{work.name}: {command}" for command in left.values()]
    for pid in left:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return not killed


def _in_sessions(leaders: list[int]) -> dict[int, str]:
    """The processes of these sessions that run: id -> command."""
    found = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                fields = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()
                if int(fields[3]) in leaders and fields[0] not in "ZX":
                    found[int(entry)] = Path(f"/proc/{entry}/cmdline").read_text().replace("\0", " ")[:200]
    return found

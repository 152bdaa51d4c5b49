"""What is to be done, what is done, and doing it: each training in a process of its own, its result in a file."""

import json
import multiprocessing
import os
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from nemo_xtoken.files import atomic_path, digest_of

from ..bench import machine
from . import texts
from .arms import ARMS, START, UNTAUGHT, Arm
from .lengths import Length

__all__ = ["Study", "Task"]

TEACHER_NAMES = tuple(name for name in UNTAUGHT if name != START)
#: Settings that are nothing to the models that are trained on text alone.
STUDENTS_ONLY = ("steps", "student_batch", "lr", "watched", "looks")


@dataclass(frozen=True)
class Task:
    """A teacher, the start of all students, or a student of one arm and seed.

    Attributes:
        arm: None for a teacher and the start.
    """

    name: str
    arm: Arm | None = None
    seed: int = 0

    @property
    def label(self) -> str:
        """For people."""
        if self.arm is None:
            return f"teacher {self.name}" if self.name in TEACHER_NAMES else self.name
        return f"{self.name}, seed {self.seed}"

    @property
    def needs(self) -> tuple[str, ...]:
        """The models that must be there before it can begin."""
        return () if self.arm is None else (START, *(lesson.teacher for lesson in self.arm.lessons))

    @property
    def stem(self) -> str:
        """Of its files."""
        if self.arm is None:
            return self.label.replace(" ", "-")
        return f"{self.name.replace('/', '-')}-{self.seed}"


class Study:
    """A study in a folder; a second one with other settings has another folder beside it.

    Args:
        root: of all studies.
        length: how large.
        results: of all studies, where results are kept; default: beside what they were trained on.
    """

    def __init__(self, root: Path, length: Length, results: Path | None = None) -> None:
        self.length = length
        self.base = root.resolve() / length.name
        self.results = self.base / "results" if results is None else results.resolve() / length.name
        self.content = texts.prepare(self.base, length)

    def arms(self, names: Sequence[str] = (), every: bool = False) -> list[Arm]:
        """Those named, else those of the length."""
        chosen = names or ([] if every else self.length.core)
        return [arm for arm in ARMS if not chosen or arm.name in chosen]

    def tasks(self, arms: Iterable[Arm], seeds: int) -> list[Task]:
        """Students, seed by seed, so that a study that is cut short has all arms of its first seeds."""
        chosen = list(arms)
        return [Task(arm.name, arm, seed) for seed in range(seeds) for arm in chosen]

    def result(self, task: Task) -> dict[str, Any] | None:
        """What is kept of a task; None: it is not done, or was with other settings."""
        try:
            found = json.loads(self._result_file(task).read_text("utf-8"))
        except (OSError, ValueError):
            return None
        return found if found.get("key") == self._key(task) else None

    def pending(self, tasks: Iterable[Task]) -> list[Task]:
        """Those without a result."""
        return [task for task in tasks if self.result(task) is None]

    def keep(self, task: Task, result: dict[str, Any]) -> None:
        """Writes a result."""
        about = {"key": self._key(task), "name": task.name, "seed": task.seed, "content": self.content}
        about |= {"length": asdict(self.length), "arm": None if task.arm is None else asdict(task.arm)}
        lines = (f"{json.dumps(name)}: {json.dumps(value)}" for name, value in (about | result).items())
        with atomic_path(self._result_file(task)) as temporary:
            temporary.write_text("{" + ",\n ".join(lines) + "}\n", "utf-8")

    def run_folder(self, task: Task) -> Path:
        """Where it trains."""
        if task.arm is None:
            return self.base / "teachers" / task.stem
        return self.base / "runs" / f"{task.stem}-{self._key(task)[:8]}"

    def run(self, tasks: Sequence[Task], jobs: int) -> list[Task]:
        """Does what is not done, so many at a time: a student when its teachers and the start are there.

        Returns:
            those that failed; the end of their logs has been printed.
        """
        pending = self.pending(tasks)
        needed = {name for task in pending for name in task.needs}
        first = self.pending([Task(name) for name in UNTAUGHT if name in needed])
        if pending:
            from . import training  # noqa: F401  (NeMo, before the forks)
        return _each([*first, *pending], self._do, jobs, self.log)

    def log(self, task: Task) -> Path:
        """What it prints."""
        return self.base / "logs" / f"{task.stem}.txt"

    def _do(self, task: Task) -> None:
        """In its own process."""
        from .training import run_arm, train_untaught

        run = self.run_folder(task)
        run.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{run}.lock"):  # another study may be at it
            if self.result(task) is not None:
                return
            began = time.perf_counter()
            if task.arm is None:
                if self._stale(task, run):
                    shutil.rmtree(run, ignore_errors=True)
                result = train_untaught(task.name, self.length, self.base, run)
            else:
                untaught = {name: self.run_folder(Task(name)) for name in UNTAUGHT}
                result = run_arm(task.arm, task.seed, self.length, self.base, run, untaught)
            self.keep(task, result | {"wall_seconds": round(time.perf_counter() - began, 1), "machine": machine()})
        if task.arm is not None:
            shutil.rmtree(run / "checkpoints", ignore_errors=True)

    def _stale(self, task: Task, run: Path) -> bool:
        """Whether the folder of a model that is trained on text alone is of other settings; marks it as of these."""
        mark = run.with_name(f"{run.name}.key")
        stale = not mark.is_file() or mark.read_text() != self._key(task)
        mark.write_text(self._key(task))
        return stale

    def _key(self, task: Task) -> str:
        """Of all settings that its result follows from."""
        settings = {k: v for k, v in asdict(self.length).items() if k not in ("core", "seeds")}
        used = {UNTAUGHT[name].steps for name in (task.needs if task.arm else [task.name])}
        unused = {model.steps for model in UNTAUGHT.values()} - used
        if task.arm is None:
            unused |= set(STUDENTS_ONLY)
        settings = {k: v for k, v in settings.items() if k not in unused}
        what = [task.name, str(task.seed)] + (
            [] if task.arm is None else [json.dumps(asdict(task.arm), sort_keys=True)]
        )
        return digest_of(self.content, json.dumps(settings, sort_keys=True), *what)[:16]

    def _result_file(self, task: Task) -> Path:
        return self.results / f"{task.stem}.json"


def _each(tasks: Sequence[Task], do: Callable[[Task], None], jobs: int, log: Callable[[Task], Path]) -> list[Task]:
    """Forks a process for each task, ``jobs`` at a time, when what it needs is not among those that are still to do.

    Says how it goes.

    Returns:
        those that failed; what needs one of them has not been begun.
    """
    context = multiprocessing.get_context("fork")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # through the end of this function, to the children
    waiting, failed = list(tasks), list[Task]()
    running: list[tuple[Task, Any, float]] = []
    done, taken = 0, list[float]()  # seconds of the students: teachers take much longer
    try:
        while waiting or running:
            missing = {task.name for task in [*waiting, *failed, *(task for task, _, _ in running)]}
            ready = [task for task in waiting if missing.isdisjoint(task.needs)]
            if not ready and not running:
                print(f"not begun: {'; '.join(task.label for task in waiting)}", file=sys.stderr)
                break
            for task in ready[: jobs - len(running)]:
                waiting.remove(task)
                process = context.Process(target=_child, args=(do, task, log(task)))
                sys.stdout.flush()
                process.start()
                running.append((task, process, time.perf_counter()))
            for task, process, began in list(running):
                process.join(0.1)
                if process.is_alive():
                    continue
                running.remove((task, process, began))
                done += 1
                if task.arm is not None:
                    taken.append(time.perf_counter() - began)
                left = sum(taken) / max(len(taken), 1) * (len(tasks) - done) / jobs
                print(f"[{done}/{len(tasks)}] {task.label}" + (f"; about {left / 60:.0f} min left" if left else ""))
                if process.exitcode:
                    failed.append(task)
                    text = log(task).read_text(errors="replace") if log(task).is_file() else ""
                    print(f"failed (status {process.exitcode}):\n{text[-3000:]}", file=sys.stderr)
    finally:
        for _, process, _ in running:  # NeMo's checkpoint writers keep them from being daemons
            process.terminate()
    return failed


def _child(do: Callable[[Task], None], task: Task, log: Path) -> None:
    """What a forked process does: one task, its words into a file."""
    log.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout = sys.stderr = file = open(log, "a")  # noqa: SIM115 (to the end of the process)
    for stream in (1, 2):  # of what does not ask Python
        os.dup2(file.fileno(), stream)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    status = 0
    try:
        do(task)
    except BaseException:
        traceback.print_exc()
        status = 1
    file.flush()
    os._exit(status)  # NeMo's exit handlers are the parent's

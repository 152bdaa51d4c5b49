"""Evaluating the checkpoints of a training run, each once, outside of training: a process of its own, any layout.

A checkpoint is exported to Hugging Face's format by a process of its own, on the CPU, evaluated from there, and the
export is removed.  Below the run's folder:

    evaluations.jsonl                   a line a column and checkpoint, which the report and its curves read
    evaluations/step=1000/scores.json   all that the harness said; columns that are there are not run again
"""

import contextlib
import os
import select
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from nemo_xtoken.environment import without_launcher
from nemo_xtoken.errors import InputError
from nemo_xtoken.evaluate.benchmark_columns import Column
from nemo_xtoken.evaluate.results import Scores, read_scores
from nemo_xtoken.evaluate.scored_model import evaluate_model
from nemo_xtoken.evaluate.task_settings import Settings
from nemo_xtoken.files import atomic_path
from nemo_xtoken.run.records import FOLDER, HISTORY, add_evaluations
from nemo_xtoken.sharing.exclusive import Busy, exclusive
from nemo_xtoken.weights.checkpoint_names import RUN_CONFIG, bridge_checkpoints, finished_checkpoints, steps_of

__all__ = [
    "Checkpoint",
    "chosen",
    "evaluate_checkpoint",
    "export_checkpoint",
    "find_checkpoints",
    "submit",
    "until_ended",
    "watch",
]

POLL_SECONDS = 10.0
SUBMITTING = ".submitting"  # of a checkpoint: where one of several watchers at a time submits it
Say = Callable[[str], None]


@dataclass(frozen=True)
class Checkpoint:
    """A finished checkpoint of a run.

    Attributes:
        steps: training steps that it has behind it.
        identity: tells it from another of the same name.
    """

    path: Path
    steps: int
    identity: str


def find_checkpoints(run: Path) -> list[Checkpoint]:
    """The finished checkpoints of a run by their steps; of two of one step the one that an export takes.

    Raises:
        InputError: no folder of a run.
    """
    if not run.is_dir():
        raise InputError(f"run={run} is not a folder", "the folder of a training run", "fix the path")
    if not (run / "checkpoints").is_dir() and not (run / HISTORY).is_file():
        raise InputError(
            f"run={run} has neither `checkpoints` nor {HISTORY}", "the folder of a training run", "fix the path"
        )
    found: dict[int, Checkpoint] = {}
    for path in finished_checkpoints(run):
        if steps := steps_of(path):
            with contextlib.suppress(FileNotFoundError):  # removed just now
                written = (path / "weights").stat().st_mtime_ns
                found.setdefault(steps, Checkpoint(path, steps, f"{path.name} {written}"))
    for steps, path in bridge_checkpoints(run).items():
        with contextlib.suppress(FileNotFoundError):
            written = (path / RUN_CONFIG).stat().st_mtime_ns
            found.setdefault(steps, Checkpoint(path, steps, f"{path.name} {written}"))
    return [found[steps] for steps in sorted(found)]


def chosen(checkpoints: Sequence[Checkpoint], every: int = 1, step: int | None = None) -> list[Checkpoint]:
    """Those after a multiple of ``every`` steps, newest first: what is old may be removed, what is new is asked for.

    Raises:
        InputError: there is none.
    """
    found = _multiples(checkpoints, every) if step is None else [c for c in checkpoints if c.steps == step]
    if not found:
        raise InputError(
            "no finished checkpoint"
            if every == 1 and step is None
            else f"no finished checkpoint after {f'a multiple of {every}' if step is None else step} steps",
            f"one of those that are there: {', '.join(str(c.steps) for c in checkpoints) or 'none'}",
            "name another step; a run keeps more of them with log.ckpt.save_top_k=-1",
        )
    return found


def _multiples(checkpoints: Sequence[Checkpoint], every: int) -> list[Checkpoint]:
    return [c for c in reversed(checkpoints) if c.steps % every == 0]


def export_checkpoint(checkpoint: Path, out: Path, trust: bool = False) -> None:
    """`xtoken export` in a process of its own: it needs NeMo, which this one need not load.

    Args:
        trust: code that the checkpoint brings may run.

    Raises:
        InputError: it cannot be exported.
    """
    words = [sys.executable, "-m", "nemo_xtoken", "export", f"run={checkpoint}", f"out={out}", "overwrite=true"]
    words += ["trust=true"] * trust
    done = subprocess.run(
        words, env=without_launcher(os.environ), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if done.returncode:
        raise InputError(
            f"{checkpoint} cannot be exported:\n{done.stdout[-2000:].strip()}",
            "a finished checkpoint of a student, and NeMo here",
            f"try it by hand: {shlex.join(words[1:])}"
            if checkpoint.exists()
            else "it was removed meanwhile: log.ckpt.save_top_k=-1 keeps all",
        )


def evaluate_checkpoint(
    run: Path,
    checkpoint: Checkpoint,
    columns: Sequence[Column],
    settings: Settings,
    again: bool = False,
    keep: bool = False,
    export: Callable[[Path, Path], None] = export_checkpoint,
    say: Say = lambda stage: None,
) -> Scores | None:
    """Evaluates the columns that one checkpoint lacks, and adds them to ``evaluations.jsonl``.

    Args:
        keep: leave the exported model in ``evaluations/step=N/model``.
        export: makes a model in Hugging Face's format of a checkpoint.

    Returns:
        its scores; None where another process is at it.

    Raises:
        InputError: see `evaluate_model` and ``export``.
    """
    folder = run / FOLDER / f"step={checkpoint.steps}"
    folder.mkdir(parents=True, exist_ok=True)
    out = folder / ("scores.json" if settings.limit is None else f"scores-limit{settings.limit:g}.json")
    model = folder / "model"

    def prepare() -> Path:
        say(f"exporting {checkpoint.path}")
        export(checkpoint.path, model)
        return model

    try:
        with exclusive(folder, f"evaluating step {checkpoint.steps}", patient=False):
            before = read_scores(out)
            if before is not None and before.identity != checkpoint.identity:  # the run has been started again
                out.unlink()
            try:
                scores = evaluate_model(
                    str(checkpoint.path), columns, settings, out, again, checkpoint.identity, prepare, say
                )
            finally:  # one that failed too: beside a run that goes on each would fill the disk with a model
                if not keep:
                    shutil.rmtree(model, ignore_errors=True)
            asked = {column.key: scores.columns[column.key] for column in columns}
            add_evaluations(run, checkpoint.steps, asked, settings.limit)
            return scores
    except Busy as busy:
        say(f"step {checkpoint.steps} is being evaluated by {busy}")
        return None


def submit(run: Path, checkpoint: Checkpoint, words: Sequence[str], command: str, say: Say) -> None:
    """Hands the evaluation of one checkpoint to a command whose last argument is a command line, such as ``sbatch
    --gpus=1 --wrap``, once, also where several watch.

    What the command says is kept in ``evaluations/step=N/submitted``.

    Args:
        words: of `xtoken evaluate`, beside the run and the step.
        command: is cut into words as a shell does.

    Raises:
        InputError: the command cannot be started, or fails.
    """
    folder = run / FOLDER / f"step={checkpoint.steps}"
    # Not the folder's own lock: the job that the command starts takes that.
    with exclusive(folder / SUBMITTING, f"submitting step {checkpoint.steps}", lambda who: say(f"waiting for {who}")):
        _submit(run, checkpoint, folder / "submitted", words, command, say)


def _submit(run: Path, checkpoint: Checkpoint, marker: Path, words: Sequence[str], command: str, say: Say) -> None:
    if marker.exists() and marker.read_text().splitlines()[:1] == [checkpoint.identity]:
        return
    job = [sys.executable, "-m", "nemo_xtoken", "evaluate", f"run={run.resolve()}", f"step={checkpoint.steps}", *words]
    try:
        done = subprocess.run(
            [*shlex.split(command), shlex.join(job)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        said, failed = done.stdout.strip(), done.returncode != 0
    except (OSError, ValueError) as error:
        said, failed = str(error), True
    if failed:
        raise InputError(
            f"step {checkpoint.steps} was not submitted by {command!r}: {said[-500:]}",
            "a command that takes a command line as its last argument, such as 'sbatch --gpus=1 --wrap'",
            "correct submit=",
        )
    with atomic_path(marker) as temporary:
        temporary.write_text(f"{checkpoint.identity}\n{said}\n")
    say(f"step {checkpoint.steps}: {said or 'submitted'}")


def never_ended(seconds: float) -> bool:
    """For `watch`, where nothing tells whether the run has ended: it continues."""
    time.sleep(seconds)
    return False


def watch(
    run: Path,
    handle: Callable[[Checkpoint], object],
    every: int = 1,
    until: int | None = None,
    ended: Callable[[float], bool] = never_ended,
    poll: float = POLL_SECONDS,
    say: Say = lambda stage: None,
) -> list[int]:
    """Hands each new checkpoint to ``handle``, once, until the run ends.

    A checkpoint that ``handle`` refuses with an `InputError` is left, and the next one tried.

    Args:
        every: only those after a multiple of so many steps; and, when the run has ended, its last one.
        until: return when one of so many steps has been handled.
        ended: waits so many seconds, or less when the run ends meanwhile, and says whether it has.

    Returns:
        the steps of those that were refused.
    """
    seen: set[str] = set()
    refused: list[int] = []
    over = False
    while True:
        there = find_checkpoints(run)
        due = _multiples(there, every)  # at first there is none
        if over and there and there[-1] not in due:
            due.insert(0, there[-1])
        new = [c for c in due if c.identity not in seen][:1]  # look again after each
        for checkpoint in new:
            seen.add(checkpoint.identity)
            try:
                handle(checkpoint)
            except InputError as error:
                say(str(error))
                refused.append(checkpoint.steps)
            if until is not None and checkpoint.steps >= until:
                return refused
        if over and not new:
            return refused
        over = over or ended(0.0 if new else poll)


def until_ended(stream: TextIO) -> Callable[[float], bool]:
    """For `watch`: the run has ended when a line, or the end, comes from ``stream``: a pipe from the training process,
    which tells so by either, also when it is killed."""

    def ended(seconds: float) -> bool:
        return bool(select.select([stream], [], [], seconds)[0])

    return ended

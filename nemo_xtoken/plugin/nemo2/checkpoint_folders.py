"""Continuing from a run's checkpoints: what NeMo and Lightning leave to be done."""

import time
from pathlib import Path

import lightning.pytorch as pl
import nemo.lightning as nl

from nemo_xtoken.errors import InputError
from nemo_xtoken.plugin.nemo2.checkpoints.intact import check_checkpoint
from nemo_xtoken.weights.checkpoint_names import check_without_checkpoints, finished_checkpoints, steps_of

__all__ = [
    "check_folder",
    "count_steps",
    "finished_checkpoint",
    "go_on_from_newest",
    "remove_unfinished",
    "resumed_checkpoint",
]

WAIT_SECONDS = 300.0


def count_steps(trainer: pl.Trainer) -> None:
    """Sets a resumed run's count of batches to its count of steps: one batch a step, in one epoch.

    Lightning saves before it counts the batch as completed, so that a resumed run would be one short and evaluate a
    step late; and it would treat the first evaluation as one that was interrupted.
    """
    loop = trainer.fit_loop.epoch_loop
    current = loop.batch_progress.current
    current.ready = current.started = current.processed = current.completed = trainer.global_step
    loop.val_loop.restarting = False


def finished_checkpoint(folder: Path, steps: int) -> Path | None:
    """The checkpoint in ``folder`` that a run of ``steps`` steps ended with, if it is complete; otherwise None."""
    return next((path for path in finished_checkpoints(folder) if steps_of(path) == steps), None)


def check_folder(resume: nl.AutoResume | None, folder: Path) -> None:
    """A run that continues from nothing has a folder without checkpoints.

    Raises:
        InputError: there are some, see `check_without_checkpoints`.
    """
    if resume is None or not (resume.resume_if_exists or resume.resume_from_path):
        check_without_checkpoints(folder)


def resumed_checkpoint(resume: nl.AutoResume | None, folder: Path) -> Path | None:
    """What a run in ``folder`` goes on from: the checkpoint that is named, or its newest that is whole; None: nothing.

    NeMo takes the one that was changed last of those whose names end in ``-last``, and after a copy any of them.
    """
    if resume is None:
        return None
    given = resume.resume_from_path
    if not given and resume.resume_if_exists and not resume.resume_from_directory:
        given = next(iter(finished_checkpoints(folder)), None)
    return Path(given) if given else None


def go_on_from_newest(resume: nl.AutoResume | None, folder: Path, first_rank: bool, trust: bool) -> None:
    """Lets a run go on from its newest checkpoint, whole and as it was written, by the step that its name says.

    Args:
        resume: of the run; changed.
        first_rank: it looks for damage.
        trust: code in the checkpoint may run.

    Raises:
        InputError: the newest is damaged, or names code.
    """
    if resume is None or (given := resumed_checkpoint(resume, folder)) is None:
        return
    resume.resume_from_path = str(given)
    if (given / "weights").is_dir():
        check_checkpoint(given, trust, first_rank)


def remove_unfinished(folder: Path, first_rank: bool) -> None:
    """Removes the checkpoints in ``folder`` whose save did not end.  Every rank calls it; the first does the work.

    NeMo refuses to start if the only checkpoint is an unfinished one, which a crash in a run's first save leaves.
    There is no process group yet: the other ranks wait for the marker files to disappear.

    Raises:
        InputError: the markers do not disappear, because the ranks do not share the folder.
    """
    marker = nl.ModelCheckpoint.UNFINISHED_CHECKPOINT_SUFFIX
    if first_rank:
        nl.ModelCheckpoint._remove_unfinished_checkpoints(folder)
    end = time.monotonic() + WAIT_SECONDS
    while any(folder.glob(f"*{marker}")):
        if time.monotonic() > end:
            raise InputError(
                f"unfinished checkpoints in {folder} that the first rank does not remove",
                "a run folder that all ranks see",
                f"set log.log_dir=FOLDER to a folder on a shared file system, or remove *{marker} and what they mark",
            )
        time.sleep(0.1)

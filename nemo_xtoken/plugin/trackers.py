"""Curves of a run in TensorBoard or Weights & Biases, in the run's folder: ``log=tensorboard``, ``log=wandb``."""

import html
import os
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from nemo_xtoken.errors import InputError, nearest
from nemo_xtoken.files import atomic_path
from nemo_xtoken.run.arguments.short_names import TRACKERS

__all__ = ["Tracker", "check_tracker", "tracker"]

WANDB_ID = "wandb_id"  # a file in the run's folder


class Tracker(Protocol):
    """What is told the values of steps."""

    def begin(self, step: int) -> None:
        """Training begins, or goes on after a step: what was told of later ones counts no more."""

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Values after a step."""

    def write(self, name: str, text: str, step: int) -> None:
        """A text after a step."""

    def close(self) -> None:
        """No more come."""


def check_tracker(kind: str) -> None:
    """
    Raises:
        InputError: there is none of that name, or its package is missing.
    """
    if kind not in TRACKERS:
        raise InputError(f"track={kind!r}{nearest(kind, TRACKERS)}", f"one of {', '.join(TRACKERS)}", "choose one")
    package = {"tensorboard": "tensorboard", "wandb": "wandb"}.get(kind)
    try:
        if package is not None:
            __import__(package)
    except ImportError as error:
        raise InputError(
            f"track={kind}: {package} cannot be imported ({error})", "the package", f"pip install {package}"
        ) from error


def tracker(kind: str, folder: Path) -> Tracker | None:
    """The tracker of that name, for the first rank; None for ``none``.

    Args:
        folder: of the run; the tracker's files go there.

    Raises:
        InputError: see `check_tracker`.
    """
    check_tracker(kind)
    made: dict[str, Callable[[Path], Tracker]] = {"tensorboard": _TensorBoard, "wandb": _WeightsAndBiases}
    return made[kind](folder) if kind in made else None


class _TensorBoard:
    def __init__(self, folder: Path) -> None:
        self._folder = folder / "tensorboard"
        self._writer: Any = None

    def begin(self, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(self._folder), purge_step=step + 1 if step else None)

    def add(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def write(self, name: str, text: str, step: int) -> None:
        self._writer.add_text(name, f"<pre>{html.escape(text)}</pre>", step)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


class _WeightsAndBiases:
    """Offline unless there is a key: ``wandb sync FOLDER/wandb/offline-run-*`` sends it later."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._run: Any = None

    def begin(self, step: int) -> None:
        import wandb

        self._folder.mkdir(parents=True, exist_ok=True)
        online = bool(os.environ.get("WANDB_API_KEY") or wandb.api.api_key)
        mode: Any = os.environ.get("WANDB_MODE") or ("online" if online else "offline")  # wandb refuses others
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "nemo_xtoken"),
            name=self._folder.name,
            id=self._name(step),
            resume="allow",
            dir=str(self._folder),
            mode=mode,
        )

    def _name(self, step: int) -> str:
        """What Weights & Biases knows the run by: one that goes on is the same, one that begins is a new one, since of
        a known one it drops every step that is not above the last."""
        kept = self._folder / WANDB_ID
        if step and kept.is_file():
            return kept.read_text("ascii").strip()
        made = uuid.uuid4().hex[:16]
        with atomic_path(kept) as temporary:
            temporary.write_text(made, "ascii")
        return made

    def add(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def write(self, name: str, text: str, step: int) -> None:
        import wandb

        self._run.log({name: wandb.Html(f"<pre>{html.escape(text)}</pre>")}, step=step)

    def close(self) -> None:
        if self._run is not None:
            self._run.finish()

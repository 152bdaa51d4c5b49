"""Checkpoints that are as they were written: checksums with every one, compared before one is used."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nemo.lightning as nl
import torch.distributed as dist

from nemo_xtoken.checksums import find_damage, write_checksums
from nemo_xtoken.errors import InputError
from nemo_xtoken.plugin.nemo2.checkpoints.saved_once import SavedOnce
from nemo_xtoken.plugin.safe_weights import check_weights, find_truncated
from nemo_xtoken.weights.checkpoint_names import finished_checkpoints

__all__ = ["check_checkpoint", "with_checksums"]


class _Checksums:
    """What a `ModelCheckpoint` does more: checksums, before it says that a checkpoint is finished."""

    _removing = False

    def _remove_checkpoint(self, *args: Any, **settings: Any) -> None:
        """NeMo marks a checkpoint in the same way while it is removed, and files disappear then."""
        self._removing = True
        try:
            super()._remove_checkpoint(*args, **settings)  # type: ignore[misc]
        finally:
            self._removing = False

    def remove_checkpoint_unfinished_marker(self, checkpoint_path: Path | str, barrier_before: bool = False) -> None:
        """Every rank hashes the files of its own; the first, when all have, the rest.  Collective if asked for."""
        folder = Path(str(checkpoint_path).removesuffix(".ckpt"))
        weights, rank = folder / "weights", dist.get_rank() if dist.is_initialized() else 0
        if not self._removing and weights.is_dir():
            own = sorted(weights.glob(f"__{rank}_*"))
            if own:
                write_checksums(folder, own, f"rank-{rank}")
            if barrier_before and dist.is_initialized():
                dist.barrier()
            if rank == 0:
                _write_rest(folder)
        nl.ModelCheckpoint.remove_checkpoint_unfinished_marker(checkpoint_path, barrier_before)


def _write_rest(folder: Path) -> None:
    others = (path for path in (folder / "weights").iterdir() if not path.name.startswith("__"))
    context = (folder / "context").rglob("*") if (folder / "context").is_dir() else ()
    write_checksums(folder, [path for path in (*sorted(others), *sorted(context)) if path.is_file()], "common")


def with_checksums(callbacks: Sequence[Any]) -> None:
    """Lets these callbacks, those of NeMo's that save checkpoints, write checksums as well, and each checkpoint once,
    named by the steps that are done; the others stay.

    A user may have derived a class from NeMo's.  Under the old name of the class, since Lightning finds a callback's
    state in a checkpoint by it.
    """
    for callback in callbacks:
        kind = type(callback)
        if isinstance(callback, nl.ModelCheckpoint) and not issubclass(kind, _Checksums):
            more = (_Checksums, SavedOnce, kind)
            callback.__class__ = type(kind.__name__, more, {"__qualname__": kind.__qualname__})
            callback.name_by_steps()


def check_checkpoint(checkpoint: Path, trust: bool, compare: bool = True) -> None:
    """Whether a checkpoint can be loaded as it was written, and without running code that it brings.

    Args:
        trust: code in it may run.
        compare: look for damage as well, which reads all of it; one rank of a run does.

    Raises:
        InputError: it cannot; of a damaged one of a run the message names the next older one that is intact.
    """
    if compare and (damage := _damage(checkpoint)) is not None:
        found = finished_checkpoints(checkpoint.parent)
        older = found[found.index(checkpoint) + 1 :] if checkpoint in found else []
        intact = next((path for path in older if _damage(path) is None), None)
        others = f"; the next older one that is intact is {intact}" if intact else ""
        aside = checkpoint.parent.parent / "damaged"
        raise InputError(
            f"{checkpoint} is damaged: {damage}",
            "a checkpoint as it was written",
            f"copy or make it again{others}; a run goes on from that one, or anew, once the damaged one is away: "
            f"mkdir -p {shlex.quote(str(aside))} && mv {shlex.quote(str(checkpoint))} {shlex.quote(str(aside))}",
        )
    if not trust:
        check_weights(checkpoint / "weights")


def _damage(checkpoint: Path) -> str | None:
    return find_damage(checkpoint) or find_truncated(checkpoint / "weights")

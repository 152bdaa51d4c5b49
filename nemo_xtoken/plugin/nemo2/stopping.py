"""A run that is asked to stop saves a checkpoint and ends with a status of its own; one that ends has saved its end."""

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from nemo.utils.callbacks.dist_ckpt_io import AsyncFinalizableCheckpointIO

from nemo_xtoken.training.stopped import StoppedRun, StopRequests

__all__ = ["Stopping", "kept"]


class Stopping(pl.Callback):
    """Stops after the step in which any rank got SIGTERM or SIGINT, with a checkpoint of it.

    It stands where NeMo's PreemptionCallback does, which listens on the first rank, to one signal, ends with status 0,
    and saves nothing where ``log.ckpt.save_last`` is off.
    """

    def __init__(self) -> None:
        self.requests = StopRequests()
        self._began = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Listens."""
        self._began = True
        self.requests.take()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        """Stops, if a rank was asked to.  Collectives: one all-reduce of a number over all ranks.

        Raises:
            StoppedRun: on all ranks.
        """
        device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
        asked = torch.tensor(self.requests.asked, device=device)
        dist.all_reduce(asked, op=dist.ReduceOp.MAX)
        if not asked:
            return
        self.save(trainer)
        if trainer.global_step < trainer.max_steps:  # else it ends by itself
            raise StoppedRun(int(asked), trainer.global_step, trainer.max_steps, kept(trainer))

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Saves the last step where NeMo has not, which relies on an evaluation after it; there may be none."""
        if self._began and getattr(trainer.checkpoint_callback, "save_last", False):
            self.save(trainer)
        self.requests.leave()

    def on_exception(self, trainer: pl.Trainer, pl_module: Any, exception: BaseException) -> None:
        """Listens no more."""
        self.requests.leave()

    def save(self, trainer: pl.Trainer) -> None:
        """Saves this step, unless that has been done; waits until it is on disk.  Collectives: those of a save."""
        callback: Any = trainer.checkpoint_callback
        if callback is None:
            return
        if callback._last_global_step_saved != trainer.global_step:
            candidates = callback._monitor_candidates(trainer)
            if callback.save_last:
                callback._save_last_checkpoint(trainer, candidates)
            else:
                callback._save_checkpoint(trainer, callback.format_checkpoint_name(candidates))
        if isinstance(trainer.strategy.checkpoint_io, AsyncFinalizableCheckpointIO):
            trainer.strategy.checkpoint_io.maybe_finalize_save_checkpoint(blocking=True)


def kept(trainer: pl.Trainer) -> Path | None:
    """The newest checkpoint; None where there is none."""
    path = getattr(trainer.checkpoint_callback, "last_model_path", "")
    return Path(str(path).removesuffix(".ckpt")) if path else None

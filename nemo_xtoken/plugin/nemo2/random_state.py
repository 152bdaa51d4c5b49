"""Random number generators in the checkpoint: without them a resumed run with dropout would differ."""

import random
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
import torch.distributed as dist

__all__ = ["RandomState"]


class RandomState(pl.Callback):
    """Saves every rank's generators (Python, NumPy, torch, CUDA, Megatron's per-region ones) and restores them.

    Collective at a save: one all-gather of some kilobytes a rank over all ranks.  A run resumed on another number of
    ranks keeps its fresh generators.
    """

    def __init__(self) -> None:
        self._loaded: list[dict[str, Any]] = []

    def state_dict(self) -> dict[str, Any]:
        """All ranks' states, by global rank; plain numbers and tensors."""
        if not dist.is_initialized():
            return {"ranks": [_capture()]}
        states: list[dict[str, Any]] = [{}] * dist.get_world_size()
        dist.all_gather_object(states, _capture())
        return {"ranks": states}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keeps the states until training starts, after everything that draws numbers to set itself up."""
        self._loaded = state_dict["ranks"]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Restores this rank's state."""
        if len(self._loaded) == trainer.world_size:
            _restore(self._loaded[trainer.global_rank])
        self._loaded = []


def _capture() -> dict[str, Any]:
    from megatron.core.tensor_parallel.random import get_cuda_rng_tracker

    version, numbers, gauss = random.getstate()
    kind, keys, *rest = np.random.get_state()
    return {
        "python": [version, list(numbers), gauss],
        "numpy": [kind, torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(),
        "megatron": get_cuda_rng_tracker().get_states(),
    }


def _restore(state: dict[str, Any]) -> None:
    from megatron.core.tensor_parallel.random import get_cuda_rng_tracker

    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    torch.cuda.set_rng_state(state["cuda"])
    get_cuda_rng_tracker().set_states(state["megatron"])

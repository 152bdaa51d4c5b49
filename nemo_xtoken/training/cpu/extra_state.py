"""Checkpoints with and without the ``_extra_state`` of Transformer Engine's layers, loaded on a CPU.

Transformer Engine's layers keep FP8 scales there.  Those of this package keep nothing, but write the keys, since a GPU
asks for every one of them; a checkpoint that has fewer, of an older version or of other layers, loads here too.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from megatron.core.dist_checkpointing.dict_utils import extract_matching_values, nested_values
from megatron.core.dist_checkpointing.mapping import ShardedObject

__all__ = ["NoExtraState", "without_missing"]


class NoExtraState(torch.nn.Module):
    """A layer with the key of an extra state and nothing in it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._register_load_state_dict_pre_hook(lambda state, prefix, *_: state.setdefault(f"{prefix}_extra_state"))

    def get_extra_state(self) -> None:
        """Nothing; that there is this method makes torch write the key."""

    def set_extra_state(self, state: Any) -> None:
        """Ignores what a GPU has written."""


def without_missing(load: Callable[..., Any]) -> Callable[..., Any]:
    """Of ``TorchDistLoadShardedStrategy.load``: extra states that a checkpoint does not have are not asked for."""
    from megatron.core.dist_checkpointing.strategies.torch import _get_filesystem_reader

    def loaded(self: Any, sharded_state_dict: Any, checkpoint_dir: Path, *others: Any, **named: Any) -> Any:
        if any(map(_asks, nested_values(sharded_state_dict))):
            there = _get_filesystem_reader(checkpoint_dir, cache_metadata=True).read_metadata().state_dict_metadata
            _, sharded_state_dict = extract_matching_values(
                sharded_state_dict, lambda value: _asks(value) and value.unique_key not in there
            )
        return load(self, sharded_state_dict, checkpoint_dir, *others, **named)

    return loaded


def _asks(value: Any) -> bool:
    return isinstance(value, ShardedObject) and value.key.endswith("._extra_state")

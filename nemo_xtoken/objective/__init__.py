"""The pass over a micro-batch: tiles of logits, chunk merge, losses and their gradients, scale and teacher weights.

For a training loop of your own: `TextBatch` encodes and aligns texts, `PairLoss` is the loss between two models
(docs/plain_torch.py), and `cross_tokenizer_loss` is the same for any number of teachers, on the tensors of a batch.
The names below are loaded when they are first used: importing this package does not import torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nemo_xtoken.objective.pair_loss import PairLoss, TextBatch
    from nemo_xtoken.objective.scale import ObjectiveConfig
    from nemo_xtoken.objective.terms import cross_tokenizer_loss

__all__ = ["ObjectiveConfig", "PairLoss", "TextBatch", "cross_tokenizer_loss"]
_MODULES = {
    "pair_loss": ("PairLoss", "TextBatch"),
    "scale": ("ObjectiveConfig",),
    "terms": ("cross_tokenizer_loss",),
}


def __getattr__(name: str) -> Any:
    for module, names in _MODULES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

"""The pass over a micro-batch: tiles of logits, chunk merge, losses and their gradients, scale and teacher weights.

For a training loop of your own: `CrossTokenizerLoss` is the loss between two models, `TextBatch` what it takes of texts
(docs/plain_torch.md), and `cross_tokenizer_loss` is the same for any number of teachers, on the tensors of a batch.
The names below are loaded when they are first used: importing this package does not import torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nemo_xtoken.objective.cross_tokenizer import CrossTokenizerLoss
    from nemo_xtoken.objective.scale import ObjectiveConfig
    from nemo_xtoken.objective.terms import cross_tokenizer_loss
    from nemo_xtoken.objective.text_batch import TextBatch

__all__ = ["CrossTokenizerLoss", "ObjectiveConfig", "TextBatch", "cross_tokenizer_loss"]
_MODULES = {
    "cross_tokenizer": ("CrossTokenizerLoss",),
    "scale": ("ObjectiveConfig",),
    "terms": ("cross_tokenizer_loss",),
    "text_batch": ("TextBatch",),
}


def __getattr__(name: str) -> Any:
    for module, names in _MODULES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

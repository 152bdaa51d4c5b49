"""Distillation losses across tokenizers: what compares a student's and a teacher's distribution of a chunk.

A loss is a class (`ChunkDivergence`, or `ElementwiseDivergence` for one of your own) and a row of `LOSSES`.  The pass
over a micro-batch that applies it is in `nemo_xtoken.objective`.  The names below are loaded when they are first used:
importing this package does not import torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nemo_xtoken.losses.base import ChunkDivergence, ChunkLossConfig, LossTerms, ModelOutput, TeacherSignal
    from nemo_xtoken.losses.elementwise import ElementwiseDivergence
    from nemo_xtoken.losses.options import DEFAULT_LOSS, DivergenceOptions
    from nemo_xtoken.losses.pair import VocabularyPair
    from nemo_xtoken.losses.registry import LOSSES, make_divergence, register_loss

__all__ = [
    "DEFAULT_LOSS",
    "LOSSES",
    "ChunkDivergence",
    "ChunkLossConfig",
    "DivergenceOptions",
    "ElementwiseDivergence",
    "LossTerms",
    "ModelOutput",
    "TeacherSignal",
    "VocabularyPair",
    "make_divergence",
    "register_loss",
]
_MODULES = {
    "base": ("ChunkDivergence", "ChunkLossConfig", "LossTerms", "ModelOutput", "TeacherSignal"),
    "elementwise": ("ElementwiseDivergence",),
    "options": ("DEFAULT_LOSS", "DivergenceOptions"),
    "pair": ("VocabularyPair",),
    "registry": ("LOSSES", "make_divergence", "register_loss"),
}


def __getattr__(name: str) -> Any:
    for module, names in _MODULES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

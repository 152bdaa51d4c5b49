"""nemo_xtoken: cross-tokenizer distillation for NVIDIA NeMo, at Megatron scale.

Importing this package is cheap and silent: nothing of torch, NeMo or Megatron is loaded before it is used.
``nemo_xtoken.stack`` says which of them are here and what is lost without the others (at a shell: ``xtoken env``).  A
run writes it to its log, and so does the import itself where logging is on at level DEBUG.

`CrossTokenizerLoss` is the loss between two models in a training loop of your own (docs/plain_torch.md).
"""

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

from nemo_xtoken.training.cpu import megatron_import
from nemo_xtoken.version import __version__ as __version__

megatron_import.guard()  # here, since it has to come before anybody imports NeMo or Megatron


if TYPE_CHECKING:
    from nemo_xtoken.objective import CrossTokenizerLoss as CrossTokenizerLoss
    from nemo_xtoken.objective import TextBatch as TextBatch


def __getattr__(name: str) -> Any:
    if name in ("CrossTokenizerLoss", "TextBatch"):
        return getattr(import_module("nemo_xtoken.objective"), name)
    if name != "stack":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from nemo_xtoken.environment import find_stack

    return find_stack()


if (_logging := sys.modules.get("logging")) and (_log := _logging.getLogger(__name__)).isEnabledFor(_logging.DEBUG):
    _log.debug(__getattr__("stack").line())

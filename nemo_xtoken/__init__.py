"""nemo_xtoken: cross-tokenizer distillation for NVIDIA NeMo, at Megatron scale.

Importing this package is cheap and silent: nothing of torch, NeMo or Megatron is loaded before it is used.
``nemo_xtoken.stack`` says which of them are here and what is lost without the others (at a shell: ``xtoken env``).  A
run writes it to its log, and so does the import itself where logging is on at level DEBUG.
"""

import sys
from typing import Any

from nemo_xtoken.training.cpu import megatron_import
from nemo_xtoken.version import __version__ as __version__

megatron_import.guard()  # here, since it has to come before anybody imports NeMo or Megatron


def __getattr__(name: str) -> Any:
    if name != "stack":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from nemo_xtoken.environment import find_stack

    return find_stack()


if (_logging := sys.modules.get("logging")) and (_log := _logging.getLogger(__name__)).isEnabledFor(_logging.DEBUG):
    _log.debug(__getattr__("stack").line())

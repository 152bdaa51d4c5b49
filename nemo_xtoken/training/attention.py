"""One attention backend for all models of a process.

Megatron and Transformer Engine choose it by variables of the environment, ``NVTE_FLASH_ATTN`` and two more.  A model
that is made sets them, and one that wants another backend than the model before it does not get built.
"""

import os
from collections.abc import Sequence
from typing import Any

from nemo_xtoken.errors import InputError

__all__ = ["VARIABLES", "settle_attention"]

VARIABLES = ("NVTE_FLASH_ATTN", "NVTE_FUSED_ATTN", "NVTE_UNFUSED_ATTN")
#: What Megatron sets for each backend.
_VALUES = {
    "flash": ("1", "0", "0"),
    "fused": ("0", "1", "0"),
    "unfused": ("0", "0", "1"),
    "local": ("0", "0", "0"),
    "auto": ("1", "1", "1"),
}


def settle_attention(student: Any, teachers: Sequence[Any] = ()) -> None:
    """Gives the student's Megatron configuration the backend of the run; teachers get theirs from it.

    What the process has been using goes first: it was set by the user, or by a model before.  Else it is what all
    models want; where they differ it is ``auto``, which takes for each model what it can.

    Args:
        student: changed.
        teachers: configurations.

    Raises:
        InputError: variables of the environment that are no backend of Megatron's.
    """
    from megatron.core.transformer.enums import AttnBackend

    present = tuple(os.environ.get(name) for name in VARIABLES)
    if any(value is not None for value in present):
        fitting = [name for name, values in _VALUES.items() if _fits(present, values)]
        if not fitting:
            raise InputError(
                f"{', '.join(f'{n}={v}' for n, v in zip(VARIABLES, present, strict=True) if v is not None)} in the "
                "environment",
                "; ".join(f"{', '.join(values)} for {name}" for name, values in _VALUES.items()),
                "unset them, and set model.config.attention_backend",
            )
        wanted = {student.attention_backend.name} & set(fitting)
        student.attention_backend = AttnBackend[next(iter(wanted), fitting[0])]
        return
    if {config.attention_backend for config in teachers} - {student.attention_backend}:
        student.attention_backend = AttnBackend.auto


def _fits(present: Sequence[str | None], values: Sequence[str]) -> bool:
    return all(found in (None, value) for found, value in zip(present, values, strict=True))

"""A workspace of its own for the matrix products that a teacher launches beside the student's.

Transformer Engine gives all products of a process one buffer, whatever their stream; cuBLASLt writes partial sums
there.  Two products at a time on two streams would spoil each other's.  PyTorch's own have a buffer for each stream.
"""

import functools
import importlib
import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from nemo_xtoken.errors import InputError

__all__ = ["OwnWorkspace"]

#: Where Transformer Engine looks it up: since 2.9 or so a function that remembers, before that a variable.
_PLACES = (
    ("transformer_engine.pytorch.cpp_extensions.gemm", "get_cublas_workspace"),
    ("transformer_engine.pytorch.module.base", "_cublas_workspace"),
)


class OwnWorkspace:
    """Puts another buffer in the place of Transformer Engine's while products are launched.

    Only the thread that launches may be at work then: it is read when a product is launched, and never kept.

    Raises:
        InputError: a version of Transformer Engine that keeps it elsewhere.
    """

    def __init__(self) -> None:
        self._place: tuple[Any, str] | None = None
        self._own: Any = None
        if importlib.util.find_spec("transformer_engine") is None:
            return
        for module_name, name in _PLACES:
            module = importlib.import_module(module_name)
            if hasattr(module, name):
                self._place = module, name
                made = getattr(module, name)
                if callable(made):
                    self._own = functools.lru_cache(maxsize=None)(made.__wrapped__)
                return
        raise InputError(
            "a teacher with ahead=true, and a Transformer Engine that keeps the workspace of its matrix products in an "
            "unknown place",
            "one that keeps it in cpp_extensions.gemm or module.base: products on two streams must not share it",
            "set ahead=false",
        )

    @contextmanager
    def active(self) -> Iterator[None]:
        """Inside, products are launched with this buffer, which the first one makes; afterwards with the process's."""
        if self._place is None:
            yield
            return
        module, name = self._place
        theirs = getattr(module, name)
        setattr(module, name, self._own)
        try:
            yield
        finally:
            self._own = getattr(module, name)
            setattr(module, name, theirs)

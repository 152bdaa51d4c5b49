"""Importing Megatron-core with PyTorch's CUDA build on a machine that has no GPU.

Megatron-core 0.15 compiles an allocator for CUDA's unified memory while it is imported, and goes on without it where
that fails with a RuntimeError, an ImportError or an OSError.  Where a CUDA toolkit is installed and no GPU is visible
PyTorch fails otherwise: it takes the newest of no architectures, an IndexError, and with that ``import megatron.core``
and NeMo fail.  With ``TORCH_CUDA_ARCH_LIST`` set it would compile, for a minute, what cannot be used without a GPU.
"""

import importlib.abc
import importlib.machinery
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any, NoReturn

__all__ = ["guard"]

_MODULE = "megatron.core.inference.unified_memory"
_COMPILE = "load_inline"


def _refuse(*_: Any, **__: Any) -> NoReturn:
    raise OSError("an extension for CUDA is not compiled where there is no GPU")  # as in PyTorch's builds without CUDA


class _Loader(importlib.abc.Loader):
    """Loads the module as another loader does, without a compiler."""

    def __init__(self, loader: importlib.abc.Loader) -> None:
        self._loader = loader

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        from torch.utils import cpp_extension

        compile_extension = getattr(cpp_extension, _COMPILE)
        setattr(cpp_extension, _COMPILE, _refuse)
        try:
            self._loader.exec_module(module)
        finally:
            setattr(cpp_extension, _COMPILE, compile_extension)


class _Finder(importlib.abc.MetaPathFinder):
    """Finds that one module, where PyTorch is a CUDA build and no GPU is visible."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != _MODULE:
            return None
        import torch

        if torch.version.cuda is None or torch.cuda.is_available():
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader)
        return spec


def guard() -> None:
    """Lets Megatron-core be imported here, later in this process.

    Costs nothing and changes nothing until that module is imported, and then for as long as its import takes.  It acts
    only where it comes before that import, so importing ``nemo_xtoken`` calls it.
    """
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())

"""Which kernels a pass uses: chosen by name, in force for the calls within a ``with``."""

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from nemo_xtoken.errors import InputError
from nemo_xtoken.kernels.reference import TorchKernels
from nemo_xtoken.kernels.tile_kernels import TileKernels

__all__ = ["KERNELS", "active", "check_kernels", "kernels_for", "using"]

#: ``auto``: Triton's on an NVIDIA GPU where Triton is installed (PyTorch's CUDA builds bring it), torch's elsewhere.
KERNELS = ("auto", "torch", "triton")

_TORCH = TorchKernels()
_active: ContextVar[TileKernels] = ContextVar("kernels", default=_TORCH)


def active() -> TileKernels:
    """The kernels in force, torch's unless :func:`using` says otherwise."""
    return _active.get()


@contextmanager
def using(kernels: TileKernels) -> Iterator[None]:
    """Has these in force in this thread."""
    token = _active.set(kernels)
    try:
        yield
    finally:
        _active.reset(token)


def check_kernels(name: str) -> None:
    """
    Raises:
        InputError: no such kernels.
    """
    if name not in KERNELS:
        raise InputError(f"kernels={name!r}", f"one of {', '.join(KERNELS)}", "leave it out for torch")


def kernels_for(name: str, cuda: bool) -> TileKernels:
    """The kernels of that name for tensors on a GPU or not.

    Raises:
        InputError: no such kernels, or not here.
    """
    check_kernels(name)
    installed = importlib.util.find_spec("triton") is not None
    if name == "torch" or (name == "auto" and not (cuda and installed)):
        return _TORCH
    if not installed:
        raise InputError(
            "kernels=triton without Triton",
            "the package triton, which PyTorch's CUDA builds for Linux bring along",
            "pip install triton, or choose kernels=torch",
        )
    from nemo_xtoken.kernels.triton_kernels import INTERPRETED, TritonKernels

    if not cuda and not INTERPRETED:
        raise InputError(
            "kernels=triton on a CPU", "tensors on a GPU, or TRITON_INTERPRET=1 for tests", "choose kernels=torch"
        )
    return TritonKernels()

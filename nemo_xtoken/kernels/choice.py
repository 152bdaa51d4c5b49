"""Which kernels a run uses: chosen once by name, and passed to the code that works on tiles."""

import importlib.util

import torch

from nemo_xtoken.errors import InputError
from nemo_xtoken.kernels.reference import TORCH
from nemo_xtoken.kernels.tile_kernels import TileKernels

__all__ = ["KERNELS", "check_kernels", "kernels_for"]

#: ``auto``: Triton's on an NVIDIA GPU where Triton is installed (PyTorch's CUDA builds bring it), torch's elsewhere.
KERNELS = ("auto", "torch", "triton")
#: The version that has ``torch.mm(.., out_dtype=)`` for CUDA.
NEEDED_ON_GPU = (2, 8)


def check_kernels(name: str) -> None:
    """
    Raises:
        InputError: the name is unknown, or the kernels are unavailable on this machine.
    """
    if name not in KERNELS:
        raise InputError(f"kernels={name!r}", f"one of {', '.join(KERNELS)}", "leave it out for torch")


def kernels_for(name: str, cuda: bool) -> TileKernels:
    """The kernels of that name.

    Args:
        cuda: whether the tensors are on a GPU.

    Raises:
        InputError: the name is unknown, or these kernels are unavailable on this machine.
    """
    check_kernels(name)
    if cuda and tuple(int(part) for part in torch.__version__.split(".")[:2]) < NEEDED_ON_GPU:
        raise InputError(
            f"PyTorch {torch.__version__} on a GPU",
            "PyTorch 2.8 or newer, whose products of bfloat16 are given in float32",
            "use a newer PyTorch, or one of NVIDIA's images since 25.06",
        )
    installed = importlib.util.find_spec("triton") is not None
    if name == "torch" or (name == "auto" and not (cuda and installed)):
        return TORCH
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

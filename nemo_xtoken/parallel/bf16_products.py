"""Products of bfloat16 with sums in float32 on a processor with AMX, by the MKL that PyTorch brings.

PyTorch's own products of bfloat16 on a CPU are rounded to bfloat16; those of float32 take factors that are widened
before and narrowed again within, which takes twice the time.
"""

import ctypes
from pathlib import Path

import torch
from torch import Tensor

__all__ = ["product_into"]

#: Of CBLAS.
_ROWS, _AS_IT_IS, _TRANSPOSED = 101, 111, 112
_INT, _POINTER, _FLOAT = ctypes.c_int, ctypes.c_void_p, ctypes.c_float
_ARGUMENTS = (*[_INT] * 6, _FLOAT, _POINTER, _INT, _POINTER, _INT, _FLOAT, _POINTER, _INT)


def product_into(out: Tensor, a: Tensor, b: Tensor, add: bool = False) -> bool:
    """``out = a b``, or ``out += a b``; False, with nothing done, where there is no such product.

    Args:
        out: float32 ``[m, n]``, rows of numbers beside each other.
        a: bfloat16 ``[m, k]``, its rows or its columns beside each other.
        b: bfloat16 ``[k, n]``, likewise.
        add: to what is in ``out``.
    """
    kinds = out.dtype, a.dtype, b.dtype
    if kinds != (torch.float32, torch.bfloat16, torch.bfloat16) or out.device.type != "cpu" or not out.numel():
        return False
    sides = _side(a), _side(b)
    if not a.shape[1] or out.stride(1) != 1 or None in sides or not torch.cpu._is_amx_tile_supported():
        return False
    multiply = getattr(_library(), "cblas_gemm_bf16bf16f32", None)
    if multiply is None:
        return False
    multiply.argtypes, multiply.restype = _ARGUMENTS, None
    (a_form, a_step), (b_form, b_step) = (side for side in sides if side is not None)
    m, n, k = a.shape[0], b.shape[1], a.shape[1]
    multiply(
        _ROWS, a_form, b_form, m, n, k, 1.0, a.data_ptr(), a_step, b.data_ptr(), b_step, float(add),
        out.data_ptr(), max(out.stride(0), n),
    )  # fmt: skip
    return True


def _side(x: Tensor) -> tuple[int, int] | None:
    """A factor's form and the numbers from one of its rows (columns) to the next; None: it lies otherwise."""
    rows, columns = x.shape
    if x.stride(1) == 1 and x.stride(0) >= columns:
        return _AS_IT_IS, x.stride(0)
    if x.stride(0) == 1 and x.stride(1) >= rows:
        return _TRANSPOSED, x.stride(1)
    return None


def _library() -> ctypes.CDLL | None:
    """PyTorch's own, which is loaded already."""
    path = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    try:
        return ctypes.CDLL(str(path))
    except OSError:
        return None

"""RMSNorm of bfloat16: in float32 as everywhere, its way back written out.

Autograd would go over the rows some thirty times in float32, which takes as long as the products of a narrow layer.
"""

from typing import Any

import torch
from torch import Tensor

__all__ = ["rms_norm"]


def rms_norm(x: Tensor, weight: Tensor, eps: float, offset: float = 0.0) -> Tensor:
    """``x / sqrt(mean(x**2) + eps) * (weight + offset)`` along the last dimension.

    Args:
        x: ``[.., n]``; summed in float32 and given back in its own type.
        weight: ``[n]``.
        offset: 1 where a weight is stored as its distance from 1.
    """
    found: Tensor = _RMSNorm.apply(x, weight, eps, offset)
    return found


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, offset: float) -> Tensor:
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
        scale = length.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, scale)
        ctx.offset = offset
        return x.to(torch.float32, copy=True).mul_(scale).mul_(weight.float() + offset).to(x.dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, by_output: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        x, weight, scale = ctx.saved_tensors
        normed, slope = x.to(torch.float32, copy=True).mul_(scale), by_output.to(torch.float32, copy=True)
        by_weight = None
        if ctx.needs_input_grad[1]:
            by_weight = (slope * normed).flatten(0, -2).sum(0).to(weight.dtype)
        if not ctx.needs_input_grad[0]:
            return None, by_weight, None, None
        slope.mul_(weight.float() + ctx.offset)
        along = torch.linalg.vecdot(slope, normed).div_(x.shape[-1]).unsqueeze(-1)
        return slope.addcmul_(normed, along, value=-1).mul_(scale).to(x.dtype), by_weight, None, None

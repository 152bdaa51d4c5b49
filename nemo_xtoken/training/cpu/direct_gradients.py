"""Gradients of weights in bfloat16, added up where Megatron adds them up: in float32, in the weight's ``main_grad``.

Without that each layer makes its gradient in bfloat16, which is then made float32 and added, and an embedding's has a
row for each token of the vocabulary, of which a micro-batch reads a few.  Nothing is rounded on the way here.
"""

from typing import Any

import torch
from torch import Tensor

from nemo_xtoken.parallel import head

__all__ = ["add_weight_gradient", "embedding"]


def add_weight_gradient(inputs: Tensor, by_output: Tensor, main_grad: Tensor) -> None:
    """What Megatron's CUDA extension does as ``wgrad_gemm_accum_fp32``, and ``_fp16``.

    Args:
        inputs: ``[n, in]`` of a linear layer.
        by_output: ``[n, out]``, the derivative with respect to its output.
        main_grad: ``[out, in]``; added to.
    """
    with head.bf16_factors(inputs.dtype):
        head.add_weight_gradient(by_output, inputs, main_grad)


def embedding(ids: Tensor, weight: Tensor) -> Tensor:
    """``torch.nn.functional.embedding``, as Megatron calls it.

    Args:
        ids: int64, any shape.
        weight: ``[V/tp, H]``.
    """
    main_grad = getattr(weight, "main_grad", None)
    direct = weight.dtype == torch.bfloat16 and main_grad is not None and main_grad.dtype == torch.float32
    if direct and weight.requires_grad and torch.is_grad_enabled():
        if hasattr(weight, "zero_out_wgrad"):  # of a tied layer: autograd brings nothing more that must be added
            weight.zero_out_wgrad = False
        found: Tensor = _Embedding.apply(ids, weight)
        return found
    return torch.nn.functional.embedding(ids, weight)


class _Embedding(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, ids: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(ids)
        ctx.weight = weight
        return torch.nn.functional.embedding(ids, weight)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, by_output: Tensor) -> tuple[None, Tensor | None]:
        [ids], weight = ctx.saved_tensors, ctx.weight
        rows = by_output.reshape(-1, by_output.shape[-1])
        weight.main_grad.index_add_(0, ids.reshape(-1), rows.to(weight.main_grad.dtype))
        if hasattr(weight, "zero_out_wgrad"):
            return None, None  # the output layer has a gradient for it, or says that it is added already
        weight.grad_added_to_main_grad = True
        return None, torch.empty_like(weight)  # Megatron asks that there be one, and does not read it

"""Hidden states instead of logits: how they, and the output layer, are taken from a Megatron model."""

from typing import Any

import torch
from torch import Tensor

from nemo_xtoken.parallel.head import OutputHead, accumulation_dtype
from nemo_xtoken.parallel.vocabulary_shard import VocabularyShard

__all__ = ["HiddenStateTap", "main_grad_of", "output_head"]


def output_head(weight: Tensor, shard: VocabularyShard, config: Any, columns: Tensor | None = None) -> OutputHead:
    """A Megatron model's output layer for the loss, with what its architecture does to logits.

    Args:
        weight: ``[V_padded/tp, H]``, this rank's rows.
        config: the model's; Gemma 2's has ``final_logit_softcapping``.
        columns: see ``OutputHead``.
    """
    return OutputHead(weight, shard, columns, softcap=getattr(config, "final_logit_softcapping", None) or None)


def main_grad_of(weight: Tensor, dtype: torch.dtype, config: Any) -> Tensor | None:
    """Where Megatron adds the gradient of a student's output layer up, if the loss may add to it by itself.

    That is where the weight has a gradient, nobody scales the loss (fp16, or a constant ``loss_scale``), and Megatron
    adds up in the type of the loss's own sums.

    Args:
        dtype: of the hidden states.
        config: the model's, with Megatron's ``grad_scale_func``.
    """
    main_grad: Tensor | None = getattr(weight, "main_grad", None)
    if main_grad is None or not (torch.is_grad_enabled() and weight.requires_grad):
        return None
    optimizer = getattr(getattr(config, "grad_scale_func", None), "__self__", None)
    parts = getattr(optimizer, "chained_optimizers", [optimizer])
    scaled = getattr(config, "fp16", False) or any(getattr(part, "grad_scaler", None) is not None for part in parts)
    return None if scaled or main_grad.dtype != accumulation_dtype(dtype) else main_grad


class HiddenStateTap:
    """Takes the last hidden states of a Megatron model before its output layer, so that no logits are made.

    A forward pre-hook on the output layer keeps the hidden states and the weight that the layer was called with (its
    own, or the tied embedding's) and lets the layer compute a single position.  Only the output layer is touched,
    so the body of the model may be any; the layer's other hooks (gathering of parameters) still run.

    Args:
        output_layer: the model's output layer, vocabulary parallel.
        sequence_parallel: the hidden states come as this tensor-parallel rank's part of the sequence.
    """

    def __init__(self, output_layer: Any, sequence_parallel: bool) -> None:
        self.sequence_parallel = sequence_parallel
        self._taken: tuple[Tensor, Tensor] | None = None
        output_layer.register_forward_pre_hook(self._take, with_kwargs=True)

    def _take(self, layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        hidden, *rest = args
        weight = kwargs.get("weight")
        self._taken = (hidden, layer.weight if weight is None else weight)
        return (hidden[:1].detach(), *rest), kwargs

    def pop(self) -> tuple[Tensor, Tensor]:
        """What the last forward pass left: ``(hidden [b*T, H], sample after sample; weight [V_padded/tp, H])``.

        With sequence parallelism the parts of the sequence are gathered over the tensor-parallel group first
        (collective: one all-gather), and the gradient that comes back is this rank's part: it is summed and scattered
        at once (one reduce-scatter).  Without, it must already be summed over that group.

        Raises:
            RuntimeError: no forward pass since the last call.
        """
        if self._taken is None:
            raise RuntimeError("no forward pass has reached the output layer since the last call")
        hidden, weight = self._taken
        self._taken = None
        if self.sequence_parallel:
            from megatron.core.tensor_parallel import gather_from_sequence_parallel_region

            hidden = gather_from_sequence_parallel_region(hidden, tensor_parallel_output_grad=True)
        return hidden.transpose(0, 1).reshape(-1, hidden.shape[-1]), weight

"""The output layer of a model as the losses see it: a sharded weight that turns hidden states into logits, by tile."""

from dataclasses import dataclass

import torch
from torch import Tensor

from nemo_xtoken.errors import InputError
from nemo_xtoken.parallel.layout import VocabularyShard

__all__ = ["OutputHead", "accumulation_dtype"]


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """What softmaxes and sums are computed in: float32, or float64 for float64 inputs."""
    return torch.promote_types(dtype, torch.float32)


@dataclass(frozen=True)
class OutputHead:
    """An output layer, sharded along the vocabulary over the tensor-parallel group.

    Attributes:
        weight: ``[V_padded/tp, H]``, this rank's rows; tied or untied makes no difference here.
        shard: which rows those are.
    """

    weight: Tensor
    shard: VocabularyShard

    def __post_init__(self) -> None:
        if self.weight.ndim != 2 or self.weight.shape[0] != self.shard.rows:
            raise InputError(
                f"an output weight of shape {list(self.weight.shape)}",
                f"[{self.shard.rows}, hidden size] on this rank",
                "check that model and tokenizer belong together and that both use this tensor-parallel size",
            )

    def logits(self, hidden: Tensor) -> Tensor:
        """This rank's logits ``[n, V_padded/tp]`` for ``hidden [n, H]``, in float32 (float64 for float64 inputs).

        Padding columns are -inf: their probability and their gradient are exactly 0.  Collectives: none.
        """
        z = torch.mm(hidden, self.weight.t().to(hidden.dtype)).to(accumulation_dtype(hidden.dtype))
        if self.shard.valid_rows < self.shard.rows:
            z[:, self.shard.valid_rows :] = float("-inf")
        return z

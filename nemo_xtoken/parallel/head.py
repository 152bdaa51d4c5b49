"""The output layer of a model as the losses see it: a sharded weight that turns hidden states into logits, by tile."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from nemo_xtoken.errors import InputError
from nemo_xtoken.parallel.vocabulary_shard import VocabularyShard

__all__ = ["FreeLogits", "OutputHead", "accumulation_dtype"]

#: Rows of a weight that are widened to float32 at a time where the device has no product that does it on the way.
WIDENED_ROWS = 4096


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """What softmaxes and sums are computed in: float32, or float64 for float64 inputs."""
    return torch.promote_types(dtype, torch.float32)


@dataclass(frozen=True)
class OutputHead:
    """An output layer, sharded along the vocabulary over the tensor-parallel group.

    ``z = softcap * tanh(scale * hidden weight^T / softcap)``, without the hyperbolic tangent where softcap is None.

    Attributes:
        weight: ``[V_padded/tp, H]``, this rank's rows; tied or untied makes no difference here.
        shard: which rows those are.
        columns: int64 ``[V]``, the row of each token id where the layer is not in the order of the ids (a co-sharded
            teacher: ``Ownership.owned``), replicated.
        scale: factor on the logits.
        softcap: bound on the logits' size, as Gemma 2 has it.
    """

    weight: Tensor
    shard: VocabularyShard
    columns: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None

    def __post_init__(self) -> None:
        if self.weight.ndim != 2 or self.weight.shape[0] != self.shard.rows:
            raise InputError(
                f"an output weight of shape {list(self.weight.shape)}",
                f"[{self.shard.rows}, hidden size] on this rank",
                "check that model and tokenizer belong together and that both use this tensor-parallel size",
            )
        if self.softcap is not None and not self.softcap > 0:
            raise InputError(f"softcap={self.softcap}", "a number above 0, or None", "take it from the model's config")

    def columns_of(self, ids: Tensor) -> Tensor:
        """Where the logits of these tokens are; ids are token ids, not negative."""
        return ids if self.columns is None else self.columns[ids]

    def logits(self, hidden: Tensor) -> Tensor:
        """This rank's logits ``[n, V_padded/tp]`` for ``hidden [n, H]``, in float32 (float64 for float64 inputs).

        Products of bf16 are summed in float32 and stay there.  Padding columns are -inf: their probability and their
        gradient are exactly 0.  Collectives: none.
        """
        z = self._product(hidden)
        if self.scale != 1:
            z.mul_(self.scale)
        if self.softcap is not None:
            z.div_(self.softcap).tanh_().mul_(self.softcap)
        if self.shard.valid_rows < self.shard.rows:
            z[:, self.shard.valid_rows :] = float("-inf")
        return z

    def slope(self, z: Tensor) -> Tensor | None:
        """The derivative of the logits with respect to the product of hidden states and weight; None: the scale."""
        if self.softcap is None:
            return None
        valid = z[:, : self.shard.valid_rows] / self.softcap
        slope = torch.zeros_like(z)
        slope[:, : self.shard.valid_rows] = (1 - valid * valid) * self.scale
        return slope

    def backward(self, dz: Tensor, slope: Tensor | None, hidden: Tensor, g_weight: Tensor | None) -> Tensor:
        """Takes the gradient with respect to the logits to the hidden states, and adds that of the weight up.

        Args:
            dz: ``[n, V_padded/tp]`` in the accumulation type; overwritten.
            slope: of the logits of this tile, see :meth:`slope`.
            hidden: ``[n, H]``.
            g_weight: ``[V_padded/tp, H]`` in the accumulation type, added to; None: not wanted.

        Returns:
            ``[n, H]``, this rank's part: to be summed over the tensor-parallel group.  Collectives: none.
        """
        if slope is not None:
            dz.mul_(slope)
        elif self.scale != 1:
            dz.mul_(self.scale)
        if dz.is_cuda and hidden.dtype != dz.dtype:  # tensor cores: bf16 in, float32 out
            narrow = dz.to(hidden.dtype)
            if g_weight is not None:
                g_weight += torch.mm(narrow.t(), hidden, out_dtype=dz.dtype)
            return torch.mm(narrow, self.weight.to(hidden.dtype), out_dtype=dz.dtype)
        if g_weight is not None:
            g_weight.addmm_(dz.t(), hidden.to(dz.dtype))
        if self.weight.dtype == dz.dtype:
            return torch.mm(dz, self.weight)
        out = dz.new_zeros((dz.shape[0], self.weight.shape[1]))
        for part, rows in self._blocks(dz):
            out.addmm_(part, rows.to(dz.dtype))
        return out

    def _product(self, hidden: Tensor) -> Tensor:
        dtype = accumulation_dtype(hidden.dtype)
        if hidden.dtype == self.weight.dtype == dtype:
            return torch.mm(hidden, self.weight.t())
        if hidden.is_cuda:
            return torch.mm(hidden, self.weight.t().to(hidden.dtype), out_dtype=dtype)
        z = hidden.new_empty((hidden.shape[0], self.weight.shape[0]), dtype=dtype)
        wide = hidden.to(dtype)
        for part, rows in self._blocks(z):
            part.copy_(torch.mm(wide, rows.to(dtype).t()))
        return z

    def _blocks(self, z: Tensor) -> Iterable[tuple[Tensor, Tensor]]:
        """Columns of z with the rows of the weight that belong to them."""
        return zip(z.split(WIDENED_ROWS, 1), self.weight.split(WIDENED_ROWS), strict=True)


class FreeLogits(OutputHead):
    """A head whose "hidden states" are this rank's logits themselves: for studies of a loss without a model.

    Args:
        shard: of the vocabulary, on a single process; ``hidden`` is then ``[n, V_padded]``.
    """

    def __init__(self, shard: VocabularyShard, columns: Tensor | None = None) -> None:
        super().__init__(torch.empty(shard.rows, 0), shard, columns)

    def _product(self, hidden: Tensor) -> Tensor:
        return hidden.to(accumulation_dtype(hidden.dtype), copy=True)

    def backward(self, dz: Tensor, slope: Tensor | None, hidden: Tensor, g_weight: Tensor | None) -> Tensor:
        """The gradient as it is."""
        return dz

"""The output layer of a model as the losses see it: a sharded weight that turns hidden states into logits, by tile."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from nemo_xtoken.errors import InputError
from nemo_xtoken.parallel.bf16_products import product_into
from nemo_xtoken.parallel.vocabulary_shard import VocabularyShard, group_size

__all__ = ["FreeLogits", "OutputHead", "accumulation_dtype", "add_weight_gradient", "bf16_factors", "multiplies_bf16"]

#: Rows of a weight that are widened to float32 at a time where the device has no product that does it on the way.
WIDENED_ROWS = 2048


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """What softmaxes and sums are computed in: float32, or float64 for float64 inputs."""
    return torch.promote_types(dtype, torch.float32)


def multiplies_bf16(x: Tensor) -> bool:
    """Whether these are of bfloat16 on a CPU whose products take that in groups, with sums in float32."""
    if not x.is_cpu or x.dtype != torch.bfloat16:
        return False
    return bool(torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported())


@contextmanager
def bf16_factors(dtype: torch.dtype) -> Iterator[None]:
    """Within it a CPU's products of float32 may take their factors as bfloat16, with sums in float32.

    Numbers that come from bfloat16 lose nothing by it.  A setting of PyTorch's (2.9 or newer), for all threads.

    Args:
        dtype: that the factors come from; of another than bfloat16 nothing is changed.
    """
    onednn = torch.backends.mkldnn
    if dtype != torch.bfloat16 or not hasattr(onednn, "matmul"):
        yield
        return
    same = {"enabled": onednn.enabled, "deterministic": onednn.deterministic, "allow_tf32": onednn.allow_tf32}
    with onednn.flags(**same, fp32_precision="bf16"):
        yield


def add_weight_gradient(by_output: Tensor, inputs: Tensor, g_weight: Tensor, fresh: bool = False) -> None:
    """Adds the gradient of a linear layer's weight up, on a CPU; within `bf16_factors` where the inputs are bfloat16.

    Args:
        by_output: ``[n, out]``, the derivative with respect to the output.
        inputs: ``[n, in]``.
        g_weight: ``[out, in]``, in which it is summed.
        fresh: nothing is in ``g_weight`` yet: it is overwritten.
    """
    if product_into(g_weight, by_output.t(), inputs, add=not fresh):
        return
    beta, wide = 0 if fresh else 1, inputs.to(g_weight.dtype)
    if by_output.dtype == g_weight.dtype:
        g_weight.addmm_(by_output.t(), wide, beta=beta)
        return
    for part, rows in zip(by_output.split(WIDENED_ROWS, 1), g_weight.split(WIDENED_ROWS), strict=True):
        rows.addmm_(part.t().to(g_weight.dtype), wide, beta=beta)


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
        main_grad: ``[V_padded/tp, H]`` in the accumulation type, where the weight's gradient is to be added up at once,
            as Megatron's fused gradient accumulation does, instead of being handed to autograd: no gradient of the
            weight's size is made beside it, or rounded.  For an objective that nobody scales afterwards.  None:
            autograd gets it.
        sums_hidden: whether the loss sums the gradient of the hidden states over the group; False: it leaves this
            rank's part, since who gathered the hidden states sums and scatters at once (sequence parallelism).
    """

    weight: Tensor
    shard: VocabularyShard
    columns: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None
    main_grad: Tensor | None = None
    sums_hidden: bool = True

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

    def by_product(self, dz: Tensor, slope: Tensor | None) -> Tensor:
        """From the gradient with respect to the logits to that with respect to the product; in place.

        Args:
            dz: ``[n, V_padded/tp]``.
            slope: of the logits of this tile, see :meth:`slope`.
        """
        if slope is not None:
            dz.mul_(slope)
        elif self.scale != 1:
            dz.mul_(self.scale)
        return dz

    def narrow(self, hidden: Tensor) -> torch.dtype:
        """The type in which the gradient with respect to the product is best kept for :meth:`backward`.

        Args:
            hidden: ``[n, H]``.
        """
        own = multiplies_bf16(hidden) and self.weight.dtype == hidden.dtype
        return hidden.dtype if own else accumulation_dtype(hidden.dtype)

    def backward(self, dz: Tensor, hidden: Tensor, g_weight: Tensor | None, fresh: bool = False) -> Tensor:
        """Takes the gradient with respect to the product to the hidden states, and adds that of the weight up.

        Args:
            dz: ``[n, V_padded/tp]`` in the accumulation type, or in that of the hidden states, to which one rank alone
                then rounds its products on a CPU.
            hidden: ``[n, H]``.
            g_weight: ``[V_padded/tp, H]`` in the accumulation type, added to; None: not wanted.
            fresh: nothing is in ``g_weight`` yet: it is overwritten, and may be of the type of :meth:`narrow`.

        Returns:
            ``[n, H]`` in the accumulation type, this rank's part: to be summed over the tensor-parallel group.
            Collectives: none.
        """
        dtype = accumulation_dtype(hidden.dtype)
        if dz.is_cuda and hidden.dtype != dtype:  # tensor cores: bf16 in, float32 out
            narrow = dz.to(hidden.dtype)
            if g_weight is not None:  # added up within the product: no [V/tp, H] besides
                if fresh:
                    g_weight.zero_()
                torch.addmm(g_weight, narrow.t(), hidden, out_dtype=dtype, out=g_weight)
            return torch.mm(narrow, self.weight.to(hidden.dtype), out_dtype=dtype)
        with bf16_factors(hidden.dtype):
            if g_weight is not None:
                add_weight_gradient(dz, hidden, g_weight, fresh)
            if self.weight.dtype == dtype:
                return torch.mm(dz, self.weight)
            by_hidden = hidden.new_empty(hidden.shape, dtype=dtype)
            if product_into(by_hidden, dz, self.weight):
                return by_hidden
            if dz.dtype == self.weight.dtype and group_size(self.shard.group) == 1:
                return torch.mm(dz, self.weight).to(dtype)  # nobody adds to what was rounded
            out = hidden.new_zeros((dz.shape[0], self.weight.shape[1]), dtype=dtype)
            for part, rows in self._blocks(dz):
                out.addmm_(part.to(dtype), rows.to(dtype))
            return out

    def _product(self, hidden: Tensor) -> Tensor:
        dtype = accumulation_dtype(hidden.dtype)
        if hidden.dtype == self.weight.dtype == dtype:
            return torch.mm(hidden, self.weight.t())
        if hidden.is_cuda:
            return torch.mm(hidden, self.weight.t().to(hidden.dtype), out_dtype=dtype)
        z = hidden.new_empty((hidden.shape[0], self.weight.shape[0]), dtype=dtype)
        if product_into(z, hidden, self.weight.t()):
            return z
        wide = hidden.to(dtype)
        with bf16_factors(hidden.dtype):
            for part, rows in self._blocks(z):
                torch.mm(wide, rows.to(dtype).t(), out=part)
        return z

    def _blocks(self, z: Tensor) -> Iterable[tuple[Tensor, Tensor]]:
        """Columns of z with the rows of the weight that belong to them."""
        return zip(z.split(WIDENED_ROWS, 1), self.weight.split(WIDENED_ROWS), strict=True)


class FreeLogits(OutputHead):
    """A head whose "hidden states" are the logits themselves: of a model that gives only these, or of none.

    Args:
        shard: of the vocabulary, on a single process; ``hidden`` is then ``[n, V_padded]``.
        columns: see `OutputHead`.
        order: int64 ``[V]``, the token of each column of the shard, where ``hidden`` is in the order of the ids; of a
            teacher, whose logits get no gradient.
        device: of the hidden states.
    """

    order: Tensor | None

    def __init__(
        self,
        shard: VocabularyShard,
        columns: Tensor | None = None,
        order: Tensor | None = None,
        device: torch.device | None = None,
    ) -> None:
        super().__init__(torch.empty(shard.rows, 0, device=device), shard, columns)
        object.__setattr__(self, "order", order)

    def _product(self, hidden: Tensor) -> Tensor:
        dtype = accumulation_dtype(hidden.dtype)
        if self.order is None:
            return hidden.to(dtype, copy=True)
        z = hidden.new_zeros((hidden.shape[0], self.shard.rows), dtype=dtype)
        z[:, : self.shard.size] = hidden[:, self.order]
        return z

    def narrow(self, hidden: Tensor) -> torch.dtype:
        """No product takes the gradient."""
        return accumulation_dtype(hidden.dtype)

    def backward(self, dz: Tensor, hidden: Tensor, g_weight: Tensor | None, fresh: bool = False) -> Tensor:
        """The gradient as it is, in the accumulation type."""
        return dz.to(accumulation_dtype(hidden.dtype))

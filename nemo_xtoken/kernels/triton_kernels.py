"""The passes over a tile by Triton: each reads and writes ``[n, V/tp]`` once where torch's take several passes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from nemo_xtoken.kernels import source
from nemo_xtoken.kernels.tile_kernels import (
    Compared,
    Elementwise,
    Gather,
    LocalSoftmax,
    RowGradient,
    TileKernels,
    smallest,
)
from nemo_xtoken.kernels.triton_pairs import TritonPairs

__all__ = ["INTERPRETED", "TritonKernels"]

#: Whether the kernels run in Triton's interpreter, on any device (TRITON_INTERPRET=1 when Triton was imported).
INTERPRETED = not isinstance(source.softmax_statistics, triton.JITFunction)


class TritonKernels(TileKernels):
    """Kernels for a GPU; the order of every sum is fixed.

    Args:
        block: columns of a program, a power of 2.
    """

    name = "triton"

    def __init__(self, block: int = 4096) -> None:
        self.block = block
        self.pairs = TritonPairs(block)

    def softmax(self, z: Tensor, valid: int, temperature: float, spare: bool = False) -> LocalSoftmax:
        return _Softmax(self, z.contiguous(), valid, temperature)

    def gather(self, x: Tensor, plan: Gather, table: Tensor, constant: Tensor | None = None) -> Tensor:
        x, table = x.contiguous(), table.to(x.dtype).contiguous()
        rows, columns = x.shape
        out = x.new_empty((rows, plan.width))
        constants = x if constant is None else constant
        arguments = plan.in_place, plan.slots, table, constants, out, rows, columns, min(columns, plan.width)
        self.launch(source.gather_columns, x, *arguments, plan.width, CONSTANT=constant is not None, of=out)
        return out

    def compare(
        self, direction: Elementwise, p: Tensor, q: Tensor, mask: Tensor | None, coefficients: Tensor | None
    ) -> Compared:
        p, q = p.contiguous(), q.contiguous()
        totals, outside = self.parts(q), self.parts(q)
        self.launch(
            source.compare_columns, p, q,
            p if mask is None else mask.view(torch.uint8),
            p if coefficients is None else coefficients.contiguous(),
            totals, outside, q, q.shape[1],
            DIRECTION=direction.name, MASKED=mask is not None, SLOPE=coefficients is not None,
            SMALLEST=smallest(q), of=q,
        )  # fmt: skip
        slope = None if coefficients is None else q
        return Compared(totals.sum(1), None if mask is None else outside.sum(1), slope)

    def through_softmax(self, gradient: RowGradient, p: Tensor, reduce: Callable[[Tensor], Tensor]) -> "_Waiting":
        values, numbers = gradient.values.contiguous(), gradient.source
        if numbers is None:
            numbers = torch.arange(gradient.at.numel(), device=p.device)
        origin = gradient.at.new_full((p.shape[0],), -1).index_copy_(0, gradient.at, numbers)
        sums = self.parts(p)
        by_logarithm = gradient.by_logarithm
        self.launch(source.row_products, p, values, origin, sums, p.shape[1], BY_LOGARITHM=by_logarithm, of=p)
        return _Waiting(values, origin, reduce(sums.sum(1)), by_logarithm)

    def by_logits(
        self,
        p: Tensor,
        by_label: Tensor,
        inner: Tensor,
        labels: Tensor,
        temperature: float,
        waiting: Sequence["_Waiting"],
    ) -> Tensor:
        inner = sum((part.inner for part in waiting), inner)
        dz = p if len(waiting) <= 1 else torch.empty_like(p)
        for number, part in enumerate(waiting or [None]):
            # the first brings the labels' part as well
            self.launch(
                source.logit_gradient, p,
                p if part is None else part.values,
                labels if part is None else part.origin,
                inner, by_label, labels.contiguous(), dz, p.shape[1],
                VALUES=part is not None, BY_LOGARITHM=part is not None and part.by_logarithm, MORE=number > 0,
                TEMPERATURE=temperature, of=p,
            )  # fmt: skip
        return dz

    def blocks(self, width: int) -> int:
        """Programs that share a row."""
        return triton.cdiv(width, self.block)

    def parts(self, x: Tensor) -> Tensor:
        """``[n, blocks]``, room for what each program says of its part of a row."""
        return x.new_empty((x.shape[0], self.blocks(x.shape[1])))

    def launch(self, kernel: Any, *arguments: Any, of: Tensor, **constants: Any) -> None:
        """Starts a program for each row and block of ``of``."""
        rows, width = of.shape
        if rows and width:
            with torch.cuda.device_of(of):
                kernel[rows, self.blocks(width)](*arguments, **constants, BLOCK=self.block, num_warps=8)


class _Softmax:
    """Largest logit and sum of exponentials by block, from one pass; the probabilities by another."""

    def __init__(self, kernels: TritonKernels, z: Tensor, valid: int, temperature: float) -> None:
        self._kernels, self._z, self._valid, self._temperature = kernels, z, valid, temperature
        if not valid:
            self.norm = z.new_full((z.shape[0],), float("-inf"))
            return
        maxima, sums = kernels.parts(z), kernels.parts(z)
        kernels.launch(source.softmax_statistics, z, maxima, sums, valid, z.shape[1], TEMPERATURE=temperature, of=z)
        self._largest = maxima.amax(1)
        self._sum = (sums * torch.exp(maxima - self._largest.unsqueeze(1))).sum(1)
        self.norm = self._largest + self._sum.log()

    def probabilities(self, whole: Tensor | None) -> Tensor:
        if not self._valid:
            return torch.zeros_like(self._z)
        factors = self._sum.reciprocal()
        if whole is not None:
            factors *= torch.exp(self.norm - whole)
        p = torch.empty_like(self._z)
        arguments = self._largest, factors, p, self._valid, p.shape[1]
        constants = {"TEMPERATURE": self._temperature}
        self._kernels.launch(source.softmax_probabilities, self._z, *arguments, **constants, of=p)
        return p


@dataclass(frozen=True)
class _Waiting:
    """
    Attributes:
        values: ``[K, V/tp]``, with respect to the probability or its logarithm.
        origin: int64 ``[n]``, the row of ``values`` of each row; -1 for none.
        inner: ``[n]``, ``sum_v h`` over all ranks.
    """

    values: Tensor
    origin: Tensor
    inner: Tensor
    by_logarithm: bool

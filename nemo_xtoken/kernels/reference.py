"""The passes over a tile by torch: the reference, and what runs where there is no Triton."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from nemo_xtoken.kernels.tile_kernels import Compared, Elementwise, Gather, LocalSoftmax, RowGradient, TileKernels

__all__ = ["TORCH", "TorchKernels"]


class _Softmax:
    """A rank's own softmax, whose exponentials are made once; what it knows of the others is a factor a row."""

    def __init__(self, z: Tensor, valid: int, temperature: float, spare: bool) -> None:
        scaled = z if temperature == 1 else z / temperature
        if valid:
            self.norm = scaled.amax(1)
            in_place = scaled.is_cpu and (spare or temperature != 1)
            self._p = torch.softmax(scaled, dim=1, out=scaled) if in_place else torch.softmax(scaled, dim=1)
            # the largest p is at least 1 / V: nothing is lost in its logarithm
            self.norm.sub_(self._p.amax(1).log_())
        else:
            self._p, self.norm = torch.zeros_like(scaled), scaled.new_full((scaled.shape[0],), float("-inf"))

    def probabilities(self, whole: Tensor | None) -> Tensor:
        return self._p if whole is None else self._p.mul_(torch.exp(self.norm - whole).unsqueeze(1))


class _Waiting(NamedTuple):
    """
    Attributes:
        at: int64 ``[m]``, row numbers.
        h: ``[m, V/tp]``, the derivative with respect to the logarithms of their probabilities.
        inner: ``[m]``, its sum over all ranks.
        all_rows: the rows are all there are, in order.
    """

    at: Tensor
    h: Tensor
    inner: Tensor
    all_rows: bool


class TorchKernels(TileKernels):
    """Torch's own operations, on any device."""

    name = "torch"

    def softmax(self, z: Tensor, valid: int, temperature: float, spare: bool = False) -> LocalSoftmax:
        return _Softmax(z, valid, temperature, spare)

    def gather(self, x: Tensor, plan: Gather, table: Tensor, constant: Tensor | None = None) -> Tensor:
        shared = min(x.shape[1], plan.width)
        out = x.new_empty((x.shape[0], plan.width))
        torch.mul(x[:, :shared], plan.in_place[:shared], out=out[:, :shared])
        out[:, shared:] = 0
        if not plan.disjoint:
            out[:, plan.columns] += table.t()
        elif plan.columns.numel():
            out.index_copy_(1, plan.columns, table.t())
        if constant is not None and plan.constant.numel():
            out.index_copy_(1, plan.constant, constant.unsqueeze(1).expand(-1, plan.constant.numel()).contiguous())
        return out

    def compare(
        self, direction: Elementwise, p: Tensor, q: Tensor, mask: Tensor | None, coefficients: Tensor | None
    ) -> Compared:
        outside = None
        if mask is not None:
            inside = mask.to(p.dtype)
            outside = torch.mv(p, 1 - inside)
            p.mul_(inside)
        terms, slope = direction.compare(p, q, None if coefficients is None else coefficients.unsqueeze(1))
        return Compared(terms.sum(1), outside, slope)

    def through_softmax(self, gradient: RowGradient, p: Tensor, reduce: Callable[[Tensor], Tensor]) -> "_Waiting":
        h, rows = gradient.values, gradient.p
        if gradient.source is not None:
            h = h.index_select(0, gradient.source)
        if rows is None:
            rows = p.index_select(0, gradient.at)
        if not gradient.by_logarithm:
            h.mul_(rows)
        return _Waiting(gradient.at, h, reduce(h.sum(1)), rows is p)

    def by_logits(
        self,
        p: Tensor,
        by_label: Tensor,
        inner: Tensor,
        labels: Tensor,
        temperature: float,
        waiting: Sequence["_Waiting"],
    ) -> Tensor:
        for part in waiting:
            inner = inner.index_add(0, part.at, part.inner)
        dz = p.mul_(-(by_label + inner).unsqueeze(1))  # h with respect to log p is h - p * sum_v h with respect to z
        here = (labels >= 0) & (labels < p.shape[1])
        dz.scatter_add_(1, labels.clamp(0, p.shape[1] - 1).unsqueeze(1), by_label.where(here, 0).unsqueeze(1))
        for part in waiting:
            if part.all_rows:
                dz.add_(part.h)  # takes a third of the time
            else:
                dz.index_add_(0, part.at, part.h)
        return dz if temperature == 1 else dz.div_(temperature)


#: The kernels where none are given.
TORCH = TorchKernels()

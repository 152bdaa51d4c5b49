"""The student in a tile at one temperature, and the gradients that wait there for the tile's end."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from nemo_xtoken.kernels.pair_kernels import PairGradient, PairKernels, TileLogits
from nemo_xtoken.kernels.tile_kernels import TileKernels
from nemo_xtoken.losses.base import LaterTerms
from nemo_xtoken.parallel.head import OutputHead
from nemo_xtoken.parallel.softmax import softmax_and_picked, tile_logits

__all__ = ["Settings", "TileSide", "gradient_by_product"]

#: ``(derivative by each label's log-probability, scale, softcap)`` as a tensor, see `PairKernels.gradient`.
Settings = Callable[[float, float, float], Tensor]


class TileSide:
    """The student's rows of a tile at a temperature.

    Its probabilities are made at once by kernels that work on them, and of those that work on logits only where a
    divergence asks for them.

    Args:
        z: ``[n, V_S/tp]`` logits; kept by kernels that work on them.
        labels: int64 ``[n]``, columns over all ranks.
        head: the output layer.
        temperature: tau.
        kernels: what goes over the tiles.
        base: the objective's derivative with respect to each label's log-probability, of the cross-entropy.
        spare: nobody else needs the logits: probabilities may take their place.

    Attributes:
        log_p: ``[n]``, of the labels.
        inner: ``[n]``, the sum over a row and all ranks of the derivatives in ``entries``; None: there are none.
        pairs: gradients of teachers that are compared by their logits.
        waiting: of the divergences, from ``TileKernels.through_softmax``.
        entries: (rows, columns, the derivative with respect to their log-probabilities as if all were free), of the
            divergences.
    """

    def __init__(
        self,
        z: Tensor,
        labels: Tensor,
        head: OutputHead,
        temperature: float,
        kernels: TileKernels,
        base: float,
        spare: bool = False,
    ) -> None:
        self.labels, self.shard, self.temperature, self.kernels = labels, head.shard, temperature, kernels
        self.base = base
        self._p: Tensor | None = None
        self._logits: TileLogits | None = None
        self._by_label: Tensor | None = None
        self.inner: Tensor | None = None
        self.pairs: list[PairGradient] = []
        self.waiting: list[Any] = []
        self.entries: list[tuple[Tensor, Tensor, Tensor]] = []
        if kernels.pairs is None:
            self._p, self.log_p = softmax_and_picked(z, labels, head.shard, temperature, kernels, spare)
        else:
            self._logits = tile_logits(z, labels, head.shard, temperature, kernels.pairs)
            self.log_p = self._logits.log_p

    @property
    def logits(self) -> TileLogits:
        """What kernels that work on logits take."""
        assert self._logits is not None
        return self._logits

    @property
    def p(self) -> Tensor:
        """``[n, V_S/tp]`` probabilities."""
        if self._p is None:
            self._p, _ = softmax_and_picked(self.logits.z, self.labels, self.shard, self.temperature, self.kernels)
        return self._p

    def add_by_label(self, values: Tensor) -> None:
        """Takes more of the derivative with respect to the labels' log-probabilities in, ``[n]``."""
        self._by_label = values if self._by_label is None else self._by_label + values

    def add(self, later: LaterTerms) -> None:
        """Takes the gradients of single entries in."""
        self.entries.append(later.entries)
        rows, inner = later.inner
        if rows is None:
            self.inner = inner if self.inner is None else self.inner + inner
            return
        if self.inner is None:
            self.inner = torch.zeros_like(self.log_p)
        self.inner.index_add_(0, rows, inner)

    @property
    def by_probabilities(self) -> bool:
        """Whether a part of the gradient goes by the probabilities."""
        return self._logits is None or bool(self.waiting) or self._by_label is not None

    @property
    def pair_kernels(self) -> PairKernels:
        """The kernels that work on logits."""
        assert self.kernels.pairs is not None
        return self.kernels.pairs

    def jobs(self) -> list[tuple[float, Tensor | None, PairGradient | None]]:
        """``(base, inner, pair)`` of the parts that go by the logits; the first takes what is no pair's."""
        alone: tuple[float, Tensor | None] = (self.base, self.inner)
        if self.by_probabilities:
            alone = (0.0, None)  # it is in by_logits
        elif not self.pairs and (self.base or self.inner is not None):
            return [(*alone, None)]
        return [(*(alone if number == 0 else (0.0, None)), pair) for number, pair in enumerate(self.pairs)]

    def by_logits(self) -> Tensor:
        """The part that goes by the probabilities, with ``base`` and ``inner``; takes the place of ``p``."""
        zero = torch.zeros_like(self.log_p)
        by_label = zero if self._by_label is None else self._by_label
        inner, labels = zero if self.inner is None else self.inner, self.labels - self.shard.start
        return self.kernels.by_logits(self.p, by_label + self.base, inner, labels, self.temperature, self.waiting)


def gradient_by_product(
    head: OutputHead,
    sides: Sequence[TileSide],
    z: Tensor | None,
    slope: Tensor | None,
    settings: Settings,
    narrow: torch.dtype,
) -> Tensor:
    """The objective's derivative with respect to the product of hidden states and output weight, ``[n, V_S/tp]``.

    Args:
        sides: the student at each temperature; used up.
        z: the logits, where the kernels work on them; overwritten.
        slope: of the logits, where these are not at hand.
        settings: see `PairKernels.gradient`.
        narrow: the type of the hidden states, in which a GPU's next products take it.

    Returns:
        in the accumulation type, or, on a GPU and where it is written once, in the narrow one.
    """
    dz: Tensor | None = None
    for side in sides:
        if side.by_probabilities:
            part = side.by_logits()
            dz = part if dz is None else dz.add_(part)
    jobs = [(side, *job) for side in sides for job in side.jobs()]
    if z is not None and dz is None and not jobs:  # no cross-entropy, no chunk
        return z.zero_()
    entries = [(side.temperature, entry) for side in sides for entry in side.entries]
    if z is not None and dz is None and len(jobs) == 1 and not entries:
        side, base, inner, pair = jobs[0]
        out = torch.empty_like(z, dtype=narrow) if z.is_cuda and narrow != z.dtype else z
        applied = settings(base, head.scale, head.softcap or 1.0)
        softcap = head.softcap is not None
        side.pair_kernels.gradient(
            side.logits, side.temperature, applied, out, more=False, softcap=softcap, inner=inner, pair=pair
        )
        return out
    if z is not None:
        slope = head.slope(z)
    for number, (side, base, inner, pair) in enumerate(jobs):
        more = dz is not None
        if dz is None:
            dz = side.logits.z if number == len(jobs) - 1 else torch.empty_like(side.logits.z)
        side.pair_kernels.gradient(
            side.logits, side.temperature, settings(base, 1.0, 1.0), dz, more=more, inner=inner, pair=pair
        )
    assert dz is not None
    for tau, (at, columns, part) in entries:
        dz.index_put_((at, columns), part if tau == 1 else part / tau, accumulate=True)
    return head.by_product(dz, slope)

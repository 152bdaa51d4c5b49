"""What a set of kernels does: every pass over a tile of probabilities that has two implementations.

All tensors are a rank's own columns, in float32 or float64.  Where ranks have to talk to each other, the caller does so
between two calls, or hands in the function that does it.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from nemo_xtoken.kernels.pair_kernels import PairKernels

__all__ = ["Compared", "Elementwise", "Gather", "LocalSoftmax", "RowGradient", "TileKernels", "smallest"]


def smallest(x: Tensor) -> float:
    """The smallest probability that is told from 0.

    It lies above the smallest number of x's type by so much that the derivative of a logarithm there is still a number
    after coefficients of a million.
    """
    return torch.finfo(x.dtype).tiny * 2.0**24


class LocalSoftmax(Protocol):
    """The softmax of a tile as far as one rank can tell.

    Attributes:
        norm: ``[n]``, the log-normaliser over this rank's columns.
    """

    norm: Tensor

    def probabilities(self, whole: Tensor | None) -> Tensor:
        """``[n, V/tp]``, 0 in padding; to be called once.

        Args:
            whole: ``[n]``, the log-normaliser over all ranks; None: there is one rank.
        """
        ...


class Elementwise(Protocol):
    """A divergence class by class: ``losses.directions.Direction``."""

    @property
    def name(self) -> str:
        """``forward``, ``reverse`` or ``js``."""
        ...

    @property
    def compare(self) -> Callable[[Tensor, Tensor, Tensor | None], tuple[Tensor, Tensor | None]]:
        """What each class adds and its derivative with respect to q, see there."""
        ...


class Compared(NamedTuple):
    """
    Attributes:
        total: ``[k]``, the sum over the columns.
        outside: ``[k]``, what p had in masked columns; None without a mask.
        slope: ``[k, V/tp]``, the derivative with respect to q, times the coefficients; None without them.
    """

    total: Tensor
    outside: Tensor | None
    slope: Tensor | None


@dataclass(frozen=True)
class Gather:
    """Where each of ``width`` columns comes from.

    Attributes:
        in_place: ``[>= min(width, columns of x)]``, 1 for columns that are x's own, 0 for others.
        columns: int64 ``[rows of the table]``, the column that each row of the table is added to; distinct.
        constant: int64, columns that get one value a row.
        slots: int32 ``[width]``, the same from the other side: a row of the table, -1 for none, -2 for the constant.
        disjoint: nothing of the table falls on a column in place.
    """

    width: int
    in_place: Tensor
    columns: Tensor
    constant: Tensor
    slots: Tensor
    disjoint: bool


@dataclass(frozen=True)
class RowGradient:
    """A derivative with respect to the probabilities of some rows as if all were free, on its way to the rows' logits.

    Attributes:
        values: ``[K, V/tp]``, with respect to the probability; overwritten.
        at: int64 ``[m]``, the rows of p it is for; distinct.
        source: int64 ``[m]``, the row of ``values`` of each; None: m is K and each has its own.
        p: ``[m, V/tp]``, those rows of p where they are at hand; None: they are not.
        by_logarithm: ``values`` is with respect to the logarithm of the probability.
    """

    values: Tensor
    at: Tensor
    source: Tensor | None = None
    p: Tensor | None = None
    by_logarithm: bool = False


class TileKernels(ABC):
    """One implementation; ``TorchKernels`` is the reference.

    Attributes:
        pairs: passes that keep no probability; None: there are none.
    """

    name: str
    pairs: PairKernels | None = None

    @abstractmethod
    def softmax(self, z: Tensor, valid: int, temperature: float, spare: bool = False) -> LocalSoftmax:
        """
        Args:
            z: ``[n, V/tp]`` logits, -inf in padding; left as they are, and not to be changed before the probabilities
                are made.
            valid: columns before the padding.
            spare: the probabilities may take the place of the logits.
        """

    @abstractmethod
    def gather(self, x: Tensor, plan: Gather, table: Tensor, constant: Tensor | None = None) -> Tensor:
        """
        Args:
            x: ``[n, columns]``.
            table: ``[rows, n]``.
            constant: ``[n]``; None: no column is constant.

        Returns:
            ``[n, plan.width]``.
        """

    @abstractmethod
    def compare(
        self, direction: Elementwise, p: Tensor, q: Tensor, mask: Tensor | None, coefficients: Tensor | None
    ) -> Compared:
        """
        Args:
            p, q: ``[k, V/tp]``, the teacher's and the student's; overwritten.
            mask: bool ``[V/tp]``, the columns of p that count; None: all.
            coefficients: ``[k]``; None: no derivative is wanted.
        """

    @abstractmethod
    def through_softmax(self, gradient: RowGradient, p: Tensor, reduce: Callable[[Tensor], Tensor]) -> Any:
        """The gradient through the softmax at temperature 1, ``dL/dz = h - p * sum_v h`` with ``h = dL/dlog p``.

        Args:
            p: ``[n, V/tp]``.
            reduce: sums ``sum_v h`` over the ranks, in place.

        Returns:
            what :meth:`by_logits` takes; p must stay as it is until then.
        """

    @abstractmethod
    def by_logits(
        self,
        p: Tensor,
        by_label: Tensor,
        inner: Tensor,
        labels: Tensor,
        temperature: float,
        waiting: Sequence[Any],
    ) -> Tensor:
        """A tile's whole derivative with respect to the logits, ``[n, V/tp]``.

        Args:
            p: ``[n, V/tp]``; overwritten.
            by_label: ``[n]``, the derivative with respect to the log-probability of each row's label.
            inner: ``[n]``, the sum over the whole vocabulary of the derivatives with respect to log p that the caller
                adds.
            labels: int64 ``[n]``, column numbers; one that is not this rank's lies outside ``[0, V/tp)``.
            waiting: of :meth:`through_softmax`.
        """

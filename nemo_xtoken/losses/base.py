"""What goes into a loss and what comes out: model outputs as hidden states, results as sums and counts."""

from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from nemo_xtoken.parallel.head import OutputHead

__all__ = ["ChunkDivergence", "LossSum", "ModelOutput"]


@dataclass(frozen=True)
class ModelOutput:
    """The last hidden states of a model and the output layer that makes logits of them, tile by tile.

    Attributes:
        hidden: ``[b*T, H]``, sample after sample; replicated over the tensor-parallel group.
        head: the output layer, sharded along the vocabulary over that group.
    """

    hidden: Tensor
    head: OutputHead


@dataclass(frozen=True)
class LossSum:
    """A loss as a sum over its items.  Nobody divides but the one place that knows the counts of all ranks.

    Attributes:
        total: scalar, the sum over this micro-batch, differentiable, equal on all ranks of the tensor-parallel group.
        count: number of items in the sum.
        metrics: name -> sum over the same items, detached.
    """

    total: Tensor
    count: int
    metrics: dict[str, Tensor] = field(default_factory=dict)


class ChunkDivergence(Protocol):
    """A divergence between the student's and the teacher's distribution of one chunk, on sharded vocabularies."""

    metric_names: tuple[str, ...]

    def value(self, p_student: Tensor, p_teacher: Tensor) -> Tensor:
        """The divergence and its metrics, one column a chunk.

        Args:
            p_student: ``[k, V_S/tp]`` probabilities, this rank's columns.
            p_teacher: ``[k, V_T/tp]`` likewise.

        Returns:
            ``[1 + metrics, k]``: the divergence first, then ``metric_names``; equal on all ranks.
        """
        ...

    def student_gradient(self, p_student: Tensor, p_teacher: Tensor) -> Tensor:
        """The derivative of the divergence by each student probability, ``[k, V_S/tp]``, as if all were free."""
        ...

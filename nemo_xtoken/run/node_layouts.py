"""How a run lies on its GPUs, by the number of nodes."""

from collections.abc import Mapping
from dataclasses import dataclass

from nemo_xtoken.errors import InputError

__all__ = ["Layout", "choose_layout"]


@dataclass(frozen=True)
class Layout:
    """How student and teachers lie on the GPUs; what is left of them is data parallel.

    Attributes:
        tensor, pipeline, context: parallel sizes.
        micro_batch: samples that a data-parallel rank computes at a time.
    """

    tensor: int = 1
    pipeline: int = 1
    context: int = 1
    micro_batch: int = 1

    @property
    def strategy(self) -> dict[str, int]:
        """The settings of ``trainer.strategy``."""
        return {
            "tensor_model_parallel_size": self.tensor,
            "pipeline_model_parallel_size": self.pipeline,
            "context_parallel_size": self.context,
            "sequence_parallel": self.tensor > 1,
        }


def choose_layout(nodes: int, layouts: Mapping[int, Layout]) -> Layout:
    """That of the largest number in ``layouts`` that is not above ``nodes``.

    The global batch is a recipe's own and the same on any number of nodes.

    Args:
        nodes: of 8 GPUs.
        layouts: by number of nodes, one of them for 1.

    Raises:
        InputError: less than one node.
    """
    if nodes < 1:
        raise InputError(f"nodes={nodes}", "1 or more", "correct it, or leave it out: it follows the job")
    return layouts[max(number for number in layouts if number <= nodes)]

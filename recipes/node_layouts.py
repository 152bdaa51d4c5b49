"""How a run lies on its GPUs, by the number of nodes.  Knows neither NeMo nor Megatron-Bridge."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Optional

from nemo_xtoken.errors import InputError
from nemo_xtoken.launch.ranks import placement

__all__ = ["Layout", "lay_out"]


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


def lay_out(nodes: Optional[int], layouts: Mapping[int, Layout]) -> tuple[int, Layout]:
    """The number of nodes of a run, and its layout: that of the largest number in ``layouts`` that is not above it.

    The global batch is a recipe's own and the same on any number of nodes.

    Args:
        nodes: of 8 GPUs; None: those of the job that ``srun`` or ``torchrun`` started this process in, else 1.
        layouts: by number of nodes, one of them for 1.

    Raises:
        InputError: less than one node.
    """
    if nodes is None:
        place = placement(os.environ)
        nodes = place.nodes if place else 1
    if nodes < 1:
        raise InputError(f"nodes={nodes}", "1 or more", "correct it, or leave it out: it follows the job")
    return nodes, layouts[max(number for number in layouts if number <= nodes)]

"""The directions in which two distributions can be compared: forward and reverse KL, and Jensen-Shannon.

Each is a sum of one term a class, elementwise, so that it can be taken on a rank's own columns.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from nemo_xtoken.errors import InputError

__all__ = ["DIRECTIONS", "Direction", "direction_named", "representable", "smallest"]


def smallest(x: Tensor) -> float:
    """The smallest probability that is told from 0 in ``x``'s type."""
    return torch.finfo(x.dtype).tiny


def representable(x: Tensor) -> Tensor:
    """Keeps a probability that underflowed to 0 from becoming an infinite logarithm; all others stay as they are."""
    return x.clamp_min(smallest(x))


@dataclass(frozen=True)
class Direction:
    """A divergence of q, the student's, from p, the teacher's, class by class.

    Attributes:
        compare: ``(p, q) -> (what each class adds, 0 where both are 0; its derivative by q)``.
        bounded_by: the side that must have mass wherever the other has, lest the divergence be infinite.
    """

    compare: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
    bounded_by: str | None


def _log(x: Tensor) -> Tensor:
    return representable(x).log_()


def _forward(p: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
    ratio = p / representable(q)
    term = _log(ratio).mul_(p)
    return term, ratio.neg_().masked_fill_(q <= smallest(q), 0)  # times a q of 0 it adds nothing


def _reverse(p: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
    difference = _log(q).sub_(_log(p))
    return q * difference, difference.add_(1)


def _js(p: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
    middle = _log((p + q).div_(2))
    slope = _log(q).sub_(middle).div_(2)
    return _log(p).sub_(middle).mul_(p).div_(2).addcmul_(q, slope), slope


#: ``forward``: KL(p || q), spreads over all the teacher says.  ``reverse``: KL(q || p), keeps to what it says most.
#: ``js``: their mean by the middle of p and q, at most log 2.
DIRECTIONS = {
    "forward": Direction(_forward, "student"),
    "reverse": Direction(_reverse, "teacher"),
    "js": Direction(_js, None),
}


def direction_named(name: str) -> Direction:
    """
    Raises:
        InputError: no such direction.
    """
    if name not in DIRECTIONS:
        raise InputError(
            f"direction={name!r}", f"one of {', '.join(DIRECTIONS)}", "choose one of these; forward is the paper's"
        )
    return DIRECTIONS[name]

"""The directions in which two distributions can be compared: forward and reverse KL, and Jensen-Shannon.

Each is a sum of one term a class and its derivative by the student's probability, both elementwise, so that they can be
taken on a rank's own columns.
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
        term: ``(p, q) ->`` what the class adds; 0 where both are 0.
        slope: ``(p, q) ->`` its derivative by q.
        bounded_by: the side that must have mass wherever the other has, lest the divergence be infinite.
    """

    term: Callable[[Tensor, Tensor], Tensor]
    slope: Callable[[Tensor, Tensor], Tensor]
    bounded_by: str | None


def _forward_term(p: Tensor, q: Tensor) -> Tensor:
    return torch.xlogy(p, p / representable(q))


def _forward_slope(p: Tensor, q: Tensor) -> Tensor:
    return torch.where(q > smallest(q), -p / representable(q), 0)  # times q that is 0, it adds nothing


def _reverse_term(p: Tensor, q: Tensor) -> Tensor:
    return torch.xlogy(q, q) - torch.xlogy(q, representable(p))  # q / p could be infinite


def _reverse_slope(p: Tensor, q: Tensor) -> Tensor:
    return torch.log(representable(q)) - torch.log(representable(p)) + 1


def _js_term(p: Tensor, q: Tensor) -> Tensor:
    middle = representable((p + q) / 2)
    return (torch.xlogy(p, p / middle) + torch.xlogy(q, q / middle)) / 2


def _js_slope(p: Tensor, q: Tensor) -> Tensor:
    return torch.log(representable(q) / representable((p + q) / 2)) / 2


#: ``forward``: KL(p || q), spreads over all the teacher says.  ``reverse``: KL(q || p), keeps to what it says most.
#: ``js``: their mean by the middle of p and q, at most log 2.
DIRECTIONS = {
    "forward": Direction(_forward_term, _forward_slope, "student"),
    "reverse": Direction(_reverse_term, _reverse_slope, "teacher"),
    "js": Direction(_js_term, _js_slope, None),
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

"""The directions in which two distributions can be compared: forward and reverse KL, and Jensen-Shannon.

Each is a sum of one term a class, elementwise, so that it can be taken on a rank's own columns; and the forward KL of
two outcomes, from the logarithm of one's probability.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from nemo_xtoken.kernels.tile_kernels import smallest
from nemo_xtoken.losses.options import DIRECTION_CHOICES, check_choice

__all__ = ["DIRECTIONS", "Direction", "bernoulli_kl", "direction_named"]


@dataclass(frozen=True)
class Direction:
    """A divergence of q, the student's, from p, the teacher's, class by class.

    Attributes:
        name: in ``DIRECTIONS``; kernels know it by that.
        compare: ``(p, q, coefficients [k, 1] or None) -> (what each class adds, 0 where both are 0; its derivative
            with respect to q, times the coefficients, or None)``.  q may be overwritten.
        bounded_by: the side that must have mass wherever the other has, lest the divergence be infinite.
    """

    name: str
    compare: Callable[[Tensor, Tensor, Tensor | None], tuple[Tensor, Tensor | None]]
    bounded_by: str | None


def _log(x: Tensor) -> Tensor:
    return x.clamp_min(smallest(x)).log_()


def _forward(p: Tensor, q: Tensor, coefficients: Tensor | None) -> tuple[Tensor, Tensor | None]:
    bound = smallest(q)
    ratio = p / q.clamp_min_(bound)
    term = torch.clamp_min(ratio, bound, out=q).log_().mul_(p)  # memory of q's size is not made anew
    return term, None if coefficients is None else ratio.mul_(-coefficients)


def _reverse(p: Tensor, q: Tensor, coefficients: Tensor | None) -> tuple[Tensor, Tensor | None]:
    difference = _log(q).sub_(_log(p))
    return q * difference, None if coefficients is None else difference.add_(1).mul_(coefficients)


def _js(p: Tensor, q: Tensor, coefficients: Tensor | None) -> tuple[Tensor, Tensor | None]:
    middle = _log((p + q).div_(2))
    slope = _log(q).sub_(middle).div_(2)
    term = _log(p).sub_(middle).mul_(p).div_(2).addcmul_(q, slope)
    return term, None if coefficients is None else slope.mul_(coefficients)


#: ``forward``: KL(p || q), spreads over all the teacher says.  ``reverse``: KL(q || p), keeps to what it says most.
#: ``js``: their mean by the middle of p and q, at most log 2.
DIRECTIONS = {
    d.name: d
    for d in (
        Direction("forward", _forward, "student"),
        Direction("reverse", _reverse, "teacher"),
        Direction("js", _js, None),
    )
}


def direction_named(name: str) -> Direction:
    """
    Raises:
        InputError: there is no such direction.
    """
    check_choice("direction", name, DIRECTION_CHOICES)
    return DIRECTIONS[name]


def bernoulli_kl(log_m_teacher: Tensor, log_m_student: Tensor) -> tuple[Tensor, Tensor]:
    """``KL(Bernoulli(m_T) || Bernoulli(m_S))`` from the logarithms of m; its derivative with respect to ``log m_S``.

    A probability nearer to 1 than its type can tell is taken as the nearest that it can, so that 1 - m is never 0.
    """
    nearest = -torch.finfo(log_m_teacher.dtype).eps / 2
    log_s, log_t = (x.clamp_max(nearest) for x in (log_m_student, log_m_teacher))
    m, other = log_t.exp(), -torch.expm1(log_t)
    student_other = -torch.expm1(log_s)
    value = m * (log_t - log_s) + other * (other.log() - student_other.log())
    return value, other * log_s.exp() / student_other - m

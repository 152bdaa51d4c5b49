"""P-KL: the KL divergence from the teacher to the student projected into the teacher's vocabulary.

Per chunk ``KL(p_T || W^T p_S)`` (X-Token, arXiv 2605.21699) over the whole teacher vocabulary and the column REST,
which holds the student's mass on empty rows of W and the teacher's mass on tokens that W does not reach.
"""

import torch
from torch import Tensor

from nemo_xtoken.parallel.exchange import VocabularyExchange
from nemo_xtoken.parallel.softmax import all_reduce_sum

__all__ = ["ProjectedKL", "representable", "smallest"]


class ProjectedKL(torch.nn.Module):
    """``KL(p_T || W^T p_S)`` and its closed-form derivative.

    With ``q = W^T p_S`` the derivative by ``p_S`` is ``-r``, ``r = W (p_T / q)``; through the softmax that becomes
    ``p_S * (sum_s p_S r - r)`` for the logits.

    Where W has no empty row the student has no way to put mass on REST.  The teacher is then conditioned on the tokens
    that W reaches, weighted by their mass M: ``M * KL(p_T / M || W^T p_S)``, which has the same gradient and is finite.
    """

    metric_names: tuple[str, ...] = ("teacher_unreached", "student_empty")

    def __init__(self, exchange: VocabularyExchange) -> None:
        super().__init__()
        self.exchange = exchange

    def value(self, p_student: Tensor, p_teacher: Tensor) -> Tensor:
        """``[3, k]``: the divergence, the teacher's unreached mass, the student's mass on empty rows.

        Args:
            p_student: ``[k, V_S/tp]``, this rank's columns.
            p_teacher: ``[k, V_T/tp]``, this rank's columns.

        Collectives: those of ``exchange.project`` and one all-reduce of 2k values.
        """
        q, rest = self.exchange.project(p_student)
        reached = self.exchange.reached
        inside = torch.where(reached, p_teacher, 0)
        divergence = torch.xlogy(inside, inside / representable(q)).sum(1)
        sums = torch.stack([divergence, torch.where(reached, 0, p_teacher).sum(1)])
        divergence, unreached = all_reduce_sum(sums, self.exchange.group)
        if self.exchange.has_rest:
            divergence = divergence + torch.xlogy(unreached, unreached) - torch.xlogy(unreached, representable(rest))
        else:
            mass = (1 - unreached).clamp_min(0)
            divergence = divergence - torch.xlogy(mass, mass)
        return torch.stack([divergence, unreached, rest])

    def student_gradient(self, p_student: Tensor, p_teacher: Tensor) -> Tensor:
        """``-r``, ``[k, V_S/tp]``.  Collectives: those of ``project`` and ``pull``, and one all-reduce of k values."""
        q, rest = self.exchange.project(p_student)
        reached = self.exchange.reached
        g = torch.where(reached & (q > smallest(q)), p_teacher / representable(q), 0)
        unreached = all_reduce_sum(torch.where(reached, 0, p_teacher).sum(1), self.exchange.group)
        return -self.exchange.pull(g, unreached / representable(rest))


def smallest(x: Tensor) -> float:
    """The smallest probability that is told from 0 in ``x``'s type."""
    return torch.finfo(x.dtype).tiny


def representable(x: Tensor) -> Tensor:
    """Keeps a probability that underflowed to 0 from becoming an infinite logarithm; all others stay as they are."""
    return x.clamp_min(smallest(x))

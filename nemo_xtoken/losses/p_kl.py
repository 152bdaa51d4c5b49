"""P-KL: the KL divergence from the teacher to the student projected into the teacher's vocabulary.

Per chunk ``KL(p_T || W^T p_S)`` (X-Token, arXiv 2605.21699) over the whole teacher vocabulary and the column REST,
which holds the student's mass on empty rows of W and the teacher's mass on tokens that W does not reach.
"""

import torch
from torch import Tensor

from nemo_xtoken.losses.directions import direction_named
from nemo_xtoken.parallel.exchange import VocabularyExchange
from nemo_xtoken.parallel.softmax import all_reduce_sum

__all__ = ["ProjectedKL"]


class ProjectedKL(torch.nn.Module):
    """The divergence of ``q = W^T p_S`` from ``p_T`` and its closed-form derivative.

    With g the derivative by q, the derivative by ``p_S`` is ``W g``.  For the forward KL that is ``-r``,
    ``r = W (p_T / q)``, and through the softmax ``p_S * (sum_s p_S r - r)`` for the logits.

    Where one side has no way to put mass on REST the divergence to be bounded compares what both can say:

    - forward, no row of W is empty: the teacher is conditioned on the tokens that W reaches, weighted by their mass M:
      ``M * KL(p_T / M || q)``, which has the same gradient and is finite.
    - reverse, W reaches every teacher token: the student is conditioned on the rows that are not empty, of mass N:
      ``KL(q / N || p_T)``.  (Weighting it by N would pay the student for leaving them.)

    Args:
        exchange: W.
        direction: ``"forward"``, ``KL(p_T || q)``, the paper's; ``"reverse"``, ``KL(q || p_T)``; ``"js"``, the
            Jensen-Shannon divergence.
    """

    metric_names: tuple[str, ...] = ("teacher_unreached", "student_empty")

    def __init__(self, exchange: VocabularyExchange, direction: str = "forward") -> None:
        super().__init__()
        self.exchange = exchange
        self.direction = direction_named(direction)
        self.teacher_conditioned = self.direction.bounded_by == "student" and not exchange.has_rest
        self.student_conditioned = self.direction.bounded_by == "teacher" and not exchange.has_unreached

    def value(self, p_student: Tensor, p_teacher: Tensor) -> Tensor:
        """``[3, k]``: the divergence, the teacher's unreached mass, the student's mass on empty rows.

        Args:
            p_student: ``[k, V_S/tp]``, this rank's columns.
            p_teacher: ``[k, V_T/tp]``, this rank's columns.

        Collectives: those of ``exchange.project`` and one all-reduce of 2k values; another where the student is
        conditioned.
        """
        q, rest = self.exchange.project(p_student)
        if self.student_conditioned:
            q = q / self._mass(q)
        divergence, unreached = self._sums(p_teacher, q)
        if self.teacher_conditioned:
            mass = (1 - unreached).clamp_min(0)
            divergence = divergence - torch.xlogy(mass, mass)
        elif not self.student_conditioned:
            divergence = divergence + self.direction.term(unreached, rest)
        return torch.stack([divergence, unreached, rest])

    def student_gradient(self, p_student: Tensor, p_teacher: Tensor) -> Tensor:
        """``W g``, ``[k, V_S/tp]``.

        Collectives: those of ``project`` and ``pull``, and one all-reduce of k values; two where the student is
        conditioned.
        """
        q, rest = self.exchange.project(p_student)
        if self.student_conditioned:
            return self.exchange.pull(self._conditioned_slope(p_teacher, q), torch.zeros_like(rest))
        g = torch.where(self.exchange.reached, self.direction.slope(p_teacher, q), 0)
        unreached = torch.where(self.exchange.reached, 0, p_teacher).sum(1)
        return self.exchange.pull(g, self.direction.slope(all_reduce_sum(unreached, self.exchange.group), rest))

    def _sums(self, p_teacher: Tensor, q: Tensor) -> Tensor:
        """``[2, k]``: the terms of all tokens that W reaches, and the teacher's mass on those it does not."""
        inside = torch.where(self.exchange.reached, p_teacher, 0)
        local = torch.stack([self.direction.term(inside, q).sum(1), (p_teacher - inside).sum(1)])
        return all_reduce_sum(local, self.exchange.group)

    def _mass(self, q: Tensor) -> Tensor:
        """N, ``[k, 1]``, summed rather than ``1 - rest``, of which nothing is left when it is small."""
        limits = torch.finfo(q.dtype)
        return all_reduce_sum(q.sum(1, keepdim=True), self.exchange.group).clamp_min(limits.tiny * limits.eps)

    def _conditioned_slope(self, p_teacher: Tensor, q: Tensor) -> Tensor:
        """``(log(u / p_T) - KL(u || p_T)) / N`` with ``u = q / N``, ``[k, V_T/tp]``."""
        limits = torch.finfo(q.dtype)
        mass = self._mass(q)
        u = q / mass
        centred = self.direction.slope(p_teacher, u) - 1 - self._sums(p_teacher, u)[0].unsqueeze(1)
        return torch.where(self.exchange.reached, centred, 0) / mass.clamp_min(limits.tiny / limits.eps)

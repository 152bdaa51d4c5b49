"""How the rows of a chunk become one term.

``chain_rule``: a chunk is the distribution at its first position times the probability m of its later tokens,
``m = prod p(x_i | ..)``, 1 where there is none.  The divergence of the two sides is then ``m_T * D + C``: D compares
the distributions at the first position, and C is the KL of the Bernoulli distributions of m where the student has later
tokens, 0 where it has none.  It is never negative, and its gradient reaches every student token of the chunk.
``mean``: the arithmetic mean of the distributions.  ``first``: the one at the first position alone.
``geometric_mean``: the mean of their logarithms, which does not sum to 1; for divergences that want it.
"""

import torch
from torch import Tensor

from nemo_xtoken.kernels.tile_kernels import RowGradient
from nemo_xtoken.losses.chunks import ScoredRows
from nemo_xtoken.losses.directions import bernoulli_kl

__all__ = ["continuation", "merge_rows", "spread_gradient", "sum_later_tokens", "to_later_tokens"]

MEANS = ("mean", "geometric_mean")


def merge_rows(p: Tensor, scored: ScoredRows, merge: str) -> Tensor:
    """One distribution a chunk: the mean of its rows (``mean``, ``geometric_mean``), or its first row (other merges).

    Args:
        p: ``[n, V/tp]`` probabilities of ``scored``'s rows.

    Returns:
        ``[K, V/tp]``; p itself where each row is a chunk.
    """
    if scored.first.numel() == p.shape[0]:
        return p
    if merge not in MEANS:
        return p.index_select(0, scored.first)
    inside = torch.nonzero(scored.chunk >= 0).squeeze(1)
    rows = p.index_select(0, inside)
    out = p.new_zeros((scored.first.numel(), p.shape[1]))
    out.index_add_(0, scored.chunk[inside], rows if merge == "mean" else rows.log_())
    out.div_(scored.tokens.unsqueeze(1).to(p.dtype))
    return out if merge == "mean" else out.exp_()


def spread_gradient(g: Tensor, merged: Tensor, scored: ScoredRows, merge: str) -> RowGradient:
    """The way back through :func:`merge_rows`, to the rows' probabilities or their logarithms.

    Args:
        g: ``[K, V/tp]``, with respect to the merged distribution; overwritten.
        merged: what :func:`merge_rows` made of the rows.
    """
    if merge not in MEANS:
        return RowGradient(g, scored.first, p=merged)
    inside = torch.nonzero(scored.chunk >= 0).squeeze(1)
    g.div_(scored.tokens.unsqueeze(1).to(g.dtype))
    if merge == "mean":
        return RowGradient(g, inside, scored.chunk[inside])
    return RowGradient(g.mul_(merged), inside, scored.chunk[inside], by_logarithm=True)


def sum_later_tokens(log_p: Tensor, scored: ScoredRows) -> Tensor:
    """``log m``: the log-probability of each chunk's tokens after its first, given all before; 0 where there is none.

    Args:
        log_p: ``[n]``, log-probability of each row's label.

    Returns:
        ``[K]``.
    """
    # a dense form, since a GPU would be waited for to learn how many rows there are
    later = log_p.where(later_rows(scored), 0)
    return log_p.new_zeros(scored.first.numel()).index_add(0, scored.chunk.clamp_min(0), later)


def to_later_tokens(by_chunk: Tensor, scored: ScoredRows) -> Tensor:
    """``[n]``, the value of its chunk at each row after a chunk's first, 0 elsewhere."""
    return by_chunk[scored.chunk.clamp_min(0)].where(later_rows(scored), 0)


def later_rows(scored: ScoredRows) -> Tensor:
    """bool ``[n]``, the rows of chunks after their first."""
    return (scored.chunk >= 0).index_fill(0, scored.first, False)


def continuation(
    log_m_teacher: Tensor, log_m_student: Tensor, teacher_tokens: Tensor, student_tokens: Tensor
) -> tuple[Tensor, Tensor]:
    """C of the chain rule and its derivative with respect to ``log m_S``, ``[K]`` each.

    Where only the student has later tokens m_T is 1 and C is ``-log m_S``.
    """
    value, slope = bernoulli_kl(log_m_teacher, log_m_student)
    both, some = teacher_tokens > 1, student_tokens > 1
    value = torch.where(both, value, -log_m_student)
    slope = torch.where(both, slope, -1)
    return torch.where(some, value, 0), torch.where(some, slope, 0)

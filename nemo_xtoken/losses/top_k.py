"""Putting classes together: the teacher's most probable tokens stay, all others are one class, REST, on both sides.

A divergence of distributions over such classes is one again: not negative, 0 where they agree, never above the whole
one, and the whole one when no token is left out.  A top-k without REST is none of that.
"""

import torch
from torch import Tensor

from nemo_xtoken.parallel.ownership import Ownership
from nemo_xtoken.parallel.top_k_over_ranks import top_k_mask

__all__ = ["TopKClasses"]


class TopKClasses(torch.nn.Module):
    """Chooses, per chunk, the k tokens that the teacher finds most probable; of equal ones the smaller id.

    Args:
        k: tokens that stay classes of their own.
        ownership: of the teacher's tokens.
        candidates: bool ``[V_T/tp]``, of this rank's columns those to choose from; over all ranks more than k.
    """

    tokens: Tensor
    candidates: Tensor

    def __init__(self, k: int, ownership: Ownership, candidates: Tensor) -> None:
        super().__init__()
        self.k, self.group = k, ownership.shard.group
        self.register_buffer("tokens", torch.from_numpy(ownership.local_tokens), persistent=False)
        self.register_buffer("candidates", candidates.clone(), persistent=False)

    def fold(self, p: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
        """
        Args:
            p, q: ``[n, V_T/tp]``, the teacher's and the student's, this rank's columns; 0 outside the classes after.

        Returns:
            ``(bool [n, V_T/tp], the classes; [2, n], this rank's part of what p and q had outside them)``.
            Collectives: those of ``top_k_mask``.
        """
        kept = top_k_mask(torch.where(self.candidates, p, -1), self.tokens, self.k, self.group)
        tails = torch.stack([torch.where(kept, 0, x).sum(1) for x in (p, q)])
        p.mul_(kept)
        q.mul_(kept)
        return kept, tails

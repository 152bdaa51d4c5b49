"""Softmax over a vocabulary that is sharded along its last dimension: normalisers, probabilities, picked log-probs.

Every function takes this rank's columns of the logits and the tensor-parallel group, and returns tensors that are
equal on all ranks of the group unless it says otherwise.
"""

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

from nemo_xtoken.parallel.layout import VocabularyShard, group_size

__all__ = ["all_reduce_sum", "log_normalizer", "log_normalizer_and_picked", "pick_local"]


def all_reduce_sum(x: Tensor, group: ProcessGroup | None) -> Tensor:
    """The sum of ``x`` over the group, on every rank, in place.  Collectives: one all-reduce (none for one rank)."""
    if group_size(group) > 1:
        dist.all_reduce(x, group=group)
    return x


def pick_local(x: Tensor, ids: Tensor, shard: VocabularyShard) -> Tensor:
    """``x[i, ids[i]]`` where this rank holds the id, 0 elsewhere: summed over the group it is the picked value.

    Args:
        x: ``[n, V/tp]``, this rank's columns.
        ids: int64 ``[n]``, global token ids; a negative one picks nothing.
        shard: the layout of x's columns.

    Returns:
        ``[n]``, differing between ranks.  Collectives: none.
    """
    local = ids - shard.start
    mine = (local >= 0) & (local < shard.rows) & (ids >= 0)
    picked = x.gather(1, local.clamp(0, shard.rows - 1).unsqueeze(1)).squeeze(1)
    return torch.where(mine, picked, picked.new_zeros(()))


def log_normalizer(z: Tensor, group: ProcessGroup | None) -> Tensor:
    """``log sum_v exp z[i, v]`` over the whole vocabulary.

    Args:
        z: ``[n, V/tp]`` logits, -inf in padding columns.  At least one column of some rank must be finite.

    Returns:
        ``[n]``.  Collectives: one all-gather of n values; the ranks are combined in rank order, so that the result is
        the same on all of them to the last bit.
    """
    return log_normalizer_and_picked(z, None, None, group)[0]


def log_normalizer_and_picked(
    z: Tensor, ids: Tensor | None, shard: VocabularyShard | None, group: ProcessGroup | None
) -> tuple[Tensor, Tensor | None]:
    """The log-normaliser and the logits of one chosen token per row, by a single collective.

    Args:
        z: ``[n, V/tp]`` logits.
        ids: int64 ``[n]`` token to pick in each row, negative for none (its logit is then 0); or None.
        shard: layout of the columns; needed with ``ids``.

    Returns:
        ``(log-normaliser [n], picked logits [n] or None)``.  Collectives: one all-gather of n or 2n values.
    """
    rows = [torch.logsumexp(z, dim=1)]
    if ids is not None:
        assert shard is not None
        rows.append(pick_local(z, ids, shard))
    local = torch.stack(rows)
    ranks = group_size(group)
    if ranks == 1:
        return local[0], local[1] if ids is not None else None
    gathered = local.new_empty((ranks, *local.shape))
    dist.all_gather_into_tensor(gathered.view(-1), local.view(-1), group=group)
    return torch.logsumexp(gathered[:, 0], dim=0), gathered[:, 1].sum(0) if ids is not None else None

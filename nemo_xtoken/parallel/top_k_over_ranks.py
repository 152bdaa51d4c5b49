"""The largest values of a row whose columns are sharded, without gathering the row."""

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

from nemo_xtoken.parallel.softmax import all_reduce_sum
from nemo_xtoken.parallel.vocabulary_shard import group_size

__all__ = ["top_k_mask"]


def top_k_mask(x: Tensor, ids: Tensor, k: int, group: ProcessGroup | None) -> Tensor:
    """Which values are among the k largest of their row over all ranks; of equal ones the smaller id goes first.

    So it is the same choice in every layout of the columns.

    Args:
        x: ``[n, c]``, this rank's columns; finite.
        ids: int64 ``[c]``, of the columns; no two are equal, here or on another rank.

    Returns:
        bool ``[n, c]``; over the ranks k of a row are True, or all where there are not more.  Collectives: one
        all-gather of ``[n, k]`` and one all-reduce of n; where values tie at the border, each of them twice.
    """
    here = min(k, x.shape[1])
    largest = x.new_full((x.shape[0], k), float("-inf"))
    largest[:, :here] = torch.topk(x, here, dim=1).values
    least = torch.topk(_side_by_side(largest, group), k, dim=1).values[:, -1:]
    mask = x >= least
    if bool((all_reduce_sum(mask.sum(1), group) <= k).all()):  # equal on all ranks, and so is the way from here
        return mask
    above = x > least
    wanted = k - all_reduce_sum(above.sum(1), group)
    nobody = torch.iinfo(ids.dtype).max
    tied = torch.where(mask & ~above, ids, nobody)
    smallest = tied.new_full((x.shape[0], k), nobody)
    smallest[:, :here] = torch.topk(tied, here, dim=1, largest=False).values
    in_order = _side_by_side(smallest, group).sort(dim=1).values
    last = in_order.gather(1, (wanted - 1).clamp_min(0).unsqueeze(1))
    return above | ((tied <= last) & (tied != nobody) & (wanted > 0).unsqueeze(1))


def _side_by_side(x: Tensor, group: ProcessGroup | None) -> Tensor:
    """``[n, ranks*k]`` of each rank's ``[n, k]``."""
    ranks = group_size(group)
    if ranks == 1:
        return x
    gathered = x.new_empty((ranks, *x.shape))
    dist.all_gather_into_tensor(gathered.view(-1), x.reshape(-1), group=group)
    return gathered.transpose(0, 1).reshape(x.shape[0], -1)

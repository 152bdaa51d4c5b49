"""Softmax over a vocabulary that is sharded along its last dimension: normalisers, probabilities, picked log-probs.

Every function takes this rank's columns of the logits and the tensor-parallel group, and returns tensors that are
equal on all ranks of the group unless it says otherwise.
"""

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

from nemo_xtoken.kernels.pair_kernels import PairKernels, TileLogits
from nemo_xtoken.kernels.reference import TORCH
from nemo_xtoken.kernels.tile_kernels import TileKernels
from nemo_xtoken.parallel.vocabulary_shard import VocabularyShard, group_size

__all__ = ["all_reduce_sum", "log_normalizer_and_picked", "pick_local", "softmax_and_picked", "tile_logits"]


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


def log_normalizer_and_picked(z: Tensor, ids: Tensor, shard: VocabularyShard) -> tuple[Tensor, Tensor]:
    """The log-normaliser and the logits of one chosen token per row, by a single collective.

    Args:
        z: ``[n, V/tp]`` logits, -inf in padding columns.
        ids: int64 ``[n]``, the tokens.
        shard: layout of the columns.

    Returns:
        ``(log sum_v exp z[i, v] over the whole vocabulary [n], picked logits [n])``.  Collectives: one all-gather of 2n
        values; the ranks are combined in rank order, so that the result is the same on all of them to the last bit.
    """
    return _over_ranks(torch.logsumexp(z, dim=1), pick_local(z, ids, shard), shard.group)


def _over_ranks(norm: Tensor, picked: Tensor, group: ProcessGroup | None) -> tuple[Tensor, Tensor]:
    ranks = group_size(group)
    if ranks == 1:
        return norm, picked
    local = torch.stack([norm, picked])
    gathered = local.new_empty((ranks, *local.shape))
    dist.all_gather_into_tensor(gathered.view(-1), local.view(-1), group=group)
    return torch.logsumexp(gathered[:, 0], dim=0), gathered[:, 1].sum(0)


def softmax_and_picked(
    z: Tensor,
    ids: Tensor,
    shard: VocabularyShard,
    temperature: float = 1.0,
    kernels: TileKernels = TORCH,
    spare: bool = False,
) -> tuple[Tensor, Tensor]:
    """Probabilities at a temperature, and the log-probability of one chosen token per row, by a single collective.

    Each rank takes the softmax of its own columns; what the ranks know of each other is a factor a row.

    Args:
        z: ``[n, V/tp]`` logits, -inf in padding columns; left as they are.
        ids: int64 ``[n]``, the tokens.
        shard: layout of the columns.
        spare: the probabilities may take the place of the logits.

    Returns:
        ``(probabilities [n, V/tp], log-probability of the token [n])``.  Collectives: one all-gather of 2n values.
    """
    picked = pick_local(z, ids, shard) / temperature
    local = kernels.softmax(z, shard.valid_rows, temperature, spare)
    whole, picked = _over_ranks(local.norm, picked, shard.group)
    p = local.probabilities(whole if group_size(shard.group) > 1 else None)
    return p, picked - whole


def tile_logits(z: Tensor, ids: Tensor, shard: VocabularyShard, temperature: float, kernels: PairKernels) -> TileLogits:
    """What kernels that work on logits have to know of a tile; arguments and collectives as in
    :func:`softmax_and_picked`."""
    norms, picked, log_p = kernels.statistics(z, ids, shard.start, shard.valid_rows, temperature).unbind()
    if group_size(shard.group) == 1:
        return TileLogits(z, norms, log_p, ids, shard.start, shard.valid_rows)
    whole, picked = _over_ranks(norms, picked, shard.group)
    return TileLogits(z, whole, picked - whole, ids, shard.start, shard.valid_rows)

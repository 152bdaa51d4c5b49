"""Evaluation of a model on labelled text: cross-entropy and top-1 accuracy, tile by tile, without gradients."""

import torch
import torch.distributed as dist
from torch import Tensor

from nemo_xtoken.data.batch import IGNORED
from nemo_xtoken.losses.base import LossSum, ModelOutput
from nemo_xtoken.parallel.softmax import log_normalizer_and_picked
from nemo_xtoken.parallel.vocabulary_shard import VocabularyShard, group_size

__all__ = ["most_probable", "token_statistics"]


@torch.no_grad()
def token_statistics(model: ModelOutput, labels: Tensor, tile_rows: int = 256) -> LossSum:
    """Sum of ``-log p(label)``, with the number of labels that are the most probable token as metric ``correct``.

    Args:
        model: hidden states ``[n, H]`` and the sharded output layer.
        labels: int64 ``[n]``, ``IGNORED`` where nothing is predicted.

    Collectives per tile: two all-gathers over the tensor-parallel group.  Of equally probable tokens the one with the
    smallest id counts as the prediction, in every layout.
    """
    shard = model.head.shard
    rows = torch.nonzero(labels != IGNORED).squeeze(1)
    total, correct = model.hidden.new_zeros(2, dtype=torch.float64)
    for part in rows.split(tile_rows):
        z = model.head.logits(model.hidden.index_select(0, part))
        norm, picked = log_normalizer_and_picked(z, labels[part], shard)
        total += (norm - picked).sum().double()
        correct += (most_probable(z, shard) == labels[part]).sum()
    return LossSum(total, rows.numel(), {"correct": correct})


def most_probable(z: Tensor, shard: VocabularyShard) -> Tensor:
    """int64 ``[n]``, the token with the largest logit; of several the one with the smallest id, in every layout.

    Args:
        z: ``[n, V_padded/tp]``, this rank's logits.
        shard: which columns those are.

    Collective: an all-gather over the tensor-parallel group.
    """
    value, index = z.max(dim=1)
    best = torch.stack([value.double(), (index + shard.start).double()])
    if group_size(shard.group) > 1:
        ranks = best.new_empty((group_size(shard.group), *best.shape))
        dist.all_gather_into_tensor(ranks.view(-1), best.view(-1), group=shard.group)
        best = ranks[ranks[:, 0].argmax(0), :, torch.arange(z.shape[0], device=z.device)].t()
    return best[1].long()

"""Sharded normalisers and picked logits against torch's own; the same bits on every rank."""

import pytest
import torch
import torch.distributed as dist
from ranks import run_ranks

from nemo_xtoken.parallel.layout import VocabularyShard
from nemo_xtoken.parallel.softmax import log_normalizer, log_normalizer_and_picked


def logits():
    z = torch.randn(7, 12, generator=torch.Generator().manual_seed(0)) * 5
    z[:, 10:] = float("-inf")  # padding
    return z, torch.tensor([0, 9, 5, 6, -1, 3, 2])


def sharded():
    z, ids = logits()
    group = dist.group.WORLD
    shard = VocabularyShard(10, 12, group)
    local = z.chunk(dist.get_world_size(), 1)[dist.get_rank()].contiguous()
    norm, picked = log_normalizer_and_picked(local, ids, shard, group)
    assert torch.equal(norm, log_normalizer(local, group))
    return norm.numpy(), picked.numpy()


@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_any_number_of_ranks(ranks):
    z, ids = logits()
    want = torch.where(ids >= 0, z.gather(1, ids.clamp_min(0)[:, None])[:, 0], 0)
    results = run_ranks(ranks, sharded)
    for norm, picked in results:
        torch.testing.assert_close(torch.from_numpy(norm), torch.logsumexp(z, 1), rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(torch.from_numpy(picked), want, rtol=0, atol=0)
        assert (norm == results[0][0]).all()


def test_one_process():
    z, ids = logits()
    norm, picked = log_normalizer_and_picked(z, ids, VocabularyShard(10, 12), None)
    torch.testing.assert_close(norm, torch.logsumexp(z, 1))
    assert picked[4] == 0

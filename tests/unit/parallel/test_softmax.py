"""Sharded normalisers, probabilities and picked logits against torch's own; the same bits on every rank."""

import pytest
import torch
import torch.distributed as dist
from ranks import run_ranks

from nemo_xtoken.parallel.softmax import log_normalizer_and_picked, softmax_and_picked
from nemo_xtoken.parallel.vocabulary_shard import VocabularyShard

PADDED = 12
#: 10: padding on the last rank; 6: one of two ranks, and two of four, have nothing but padding
SIZES = (10, 6)


def logits(size):
    z = torch.randn(7, PADDED, generator=torch.Generator().manual_seed(0)) * 5
    z[3] *= 100  # most probabilities underflow
    z[:, size:] = float("-inf")  # padding
    return z, torch.tensor([0, 5, 5, 4, 1, 3, 2])


def everything(size, group=None):
    z, ids = logits(size)
    shard = VocabularyShard(size, PADDED, group)
    local = z[:, shard.start : shard.start + shard.rows].contiguous()
    before = local.clone()
    out = [*log_normalizer_and_picked(local, ids, shard)]
    for tau in (1.0, 2.5):
        out += softmax_and_picked(local, ids, shard, tau)
    assert torch.equal(local, before)
    for tau, (p, log_p) in ((2.5, out[4:]), (1.0, out[2:4])):
        spared = softmax_and_picked(local, ids, shard, tau, spare=True)
        assert torch.equal(spared[0], p)
        assert torch.equal(spared[1], log_p)
        assert (spared[0].data_ptr() == local.data_ptr()) == (tau == 1 and shard.valid_rows > 0)
    return [x.numpy() for x in out]


def on_world(size):
    return everything(size, dist.group.WORLD)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_any_number_of_ranks(ranks, size):
    z, ids = logits(size)
    results = [everything(size)] if ranks == 1 else run_ranks(ranks, on_world, size)
    at = lambda x: x.gather(1, ids[:, None])[:, 0]  # noqa: E731
    for norm, picked, p, log_p, p_tau, log_p_tau in results:
        torch.testing.assert_close(torch.from_numpy(norm), torch.logsumexp(z, 1), rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(torch.from_numpy(picked), at(z), rtol=0, atol=0)
        torch.testing.assert_close(torch.from_numpy(log_p), at(z.log_softmax(1)), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(torch.from_numpy(log_p_tau), at((z / 2.5).log_softmax(1)), rtol=1e-5, atol=1e-5)
        assert p.shape == p_tau.shape == (7, PADDED // ranks)
        assert all((a == b).all() for a, b in zip((norm, picked, log_p), (*results[0][:2], results[0][3]), strict=True))
    for part, tau in ((2, 1.0), (4, 2.5)):
        whole = torch.cat([torch.from_numpy(result[part]) for result in results], 1)
        torch.testing.assert_close(whole, (z / tau).softmax(1), rtol=1e-5, atol=1e-7)
        assert (whole[:, size:] == 0).all()

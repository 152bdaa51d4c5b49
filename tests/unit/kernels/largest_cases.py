"""Losses that look at the largest of a row, by Triton's kernels against torch's; run by test_kernels.py interpreted."""

import harness
import pytest
import torch
import torch.distributed as dist
from cases import Problem
from ranks import run_ranks

from nemo_xtoken.kernels.pair_kernels import TileLogits
from nemo_xtoken.kernels.reference import TORCH
from nemo_xtoken.kernels.triton_kernels import INTERPRETED, TritonKernels
from nemo_xtoken.losses.gold import Gold
from nemo_xtoken.losses.h_kl import HybridKL
from nemo_xtoken.losses.nrl import nrl_exact_pairs
from nemo_xtoken.losses.sorted_l1 import UniversalLogitDistance
from nemo_xtoken.losses.strict_1to1 import StrictOneToOne

assert INTERPRETED
TRITON = TritonKernels(block=16)

KINDS = {
    "strict_1to1": lambda p, s, k: StrictOneToOne(nrl_exact_pairs(p.matrix), s, 4, k),
    "strict_1to1, all pairs": lambda p, s, k: StrictOneToOne(nrl_exact_pairs(p.matrix), s, 100, k),
    "uld": lambda p, s, k: UniversalLogitDistance(s, p.v_t, kernels=k),
    "uld, a cap": lambda p, s, k: UniversalLogitDistance(s, p.v_t, 5, kernels=k),
    "gold": lambda p, s, k: Gold(nrl_exact_pairs(p.matrix), s, kernels=k),
    "gold, a cap": lambda p, s, k: Gold(nrl_exact_pairs(p.matrix), s, "rest", 3, kernels=k),
    "gold, a top-k": lambda p, s, k: Gold(nrl_exact_pairs(p.matrix), s, "rest", 3, 2, kernels=k),
    "h_kl, a cap": lambda p, s, k: HybridKL(nrl_exact_pairs(p.matrix), p.matrix, s, "rest", 3, kernels=k),
}


def found(problem, name, kernels, merge="chain_rule", tau=1.0, group=None):
    return harness.ours(problem, lambda shard: KINDS[name](problem, shard, kernels), merge, tau, 7, group, kernels)


def same(got, wanted, rtol):
    harness.compare(got, wanted, rtol)
    assert got[4].keys() == wanted[4].keys()
    for name, value in wanted[4].items():
        assert abs(got[4][name] - value) <= rtol * max(1, abs(value)), name


@pytest.mark.parametrize(
    ("name", "merge", "tau", "dtype"),
    [
        ("strict_1to1", "chain_rule", 1.0, torch.float64),
        ("strict_1to1", "first", 1.7, torch.float32),
        ("strict_1to1, all pairs", "first", 1.7, torch.float64),
        ("uld", "first", 1.0, torch.float64),
        ("uld, a cap", "chain_rule", 1.7, torch.float64),
        ("uld, a cap", "chain_rule", 1.0, torch.float32),
        ("gold", "chain_rule", 1.0, torch.float64),
        ("gold, a cap", "first", 1.7, torch.float32),
        ("gold, a top-k", "chain_rule", 1.0, torch.float64),
        ("h_kl, a cap", "chain_rule", 1.0, torch.float64),
    ],
)
def test_a_loss_by_logits_is_the_one_by_probabilities(name, merge, tau, dtype):
    problem = Problem(seed=3, b=1, reach=0.7, dtype=dtype)
    paired = KINDS[name](problem, harness.student_shard(problem), TRITON).column_pairs()
    assert (paired is None) == (name == "gold, a top-k")
    rtol = 1e-11 if dtype == torch.float64 else 3e-5
    same(found(problem, name, TRITON, merge, tau), found(problem, name, TORCH, merge, tau), rtol)


CUT = ("strict_1to1", "uld, a cap", "gold, a cap")


def on_rank(problem):
    return [found(problem, name, TRITON, group=dist.group.WORLD) for name in CUT]


def test_ranks_equal_one_process():
    """Of the largest that ranks find some are not among the largest of all."""
    problem = Problem(seed=7, b=1, pad_s=24, pad_t=40)
    results = run_ranks(2, on_rank, problem)
    for number, name in enumerate(CUT):
        harness.compare_ranks([one[number] for one in results], found(problem, name, TORCH), 1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("keep", [1, 5, 11, 0])
def test_the_largest_of_rows(keep, dtype):
    """By a stable sort; with ties, both zeros, and logits of -inf."""
    random = torch.Generator().manual_seed(keep)
    z = torch.randn(5, 40, dtype=dtype, generator=random)
    z[1] = z[1].round()
    z[2] = torch.randn(40, generator=random).sign() * 0.0
    z[3, 3:] = -torch.inf
    z[:, 37:] = -torch.inf  # padding
    mask = (torch.arange(40) % 3 > 0).to(torch.uint8)
    mask[37:] = 0
    first = torch.tensor([0, 1, 2, 3])
    side = TileLogits(z, torch.logsumexp(z, 1), first, first, 0, 37)
    taking_part = torch.nonzero(mask).squeeze(1)
    largest = TRITON.pairs.largest(side, first, mask, keep, keep + 1, 1.3, True)
    for k, row in enumerate(z[first]):
        order = torch.sort(row[taking_part], descending=True, stable=True).indices
        wanted = taking_part[order[:keep]].sort().values
        assert largest.columns[k].tolist() == [*wanted.tolist(), -1]
        assert largest.values[k].tolist() == [*row[wanted].tolist(), -torch.inf]
        others = taking_part[order[keep:]]
        left = torch.exp(row[others] / 1.3 - side.norms[k]).sum()
        torch.testing.assert_close(largest.left[k], left, rtol=1e-5, atol=1e-30)
        assert largest.starts[k].tolist() == [int((wanted < begin).sum()) for begin in (0, 16, 32)]
        if keep:
            here = (row > largest.limits[k]) | ((row == largest.limits[k]) & (torch.arange(40) <= largest.last[k]))
            assert torch.nonzero(here & (mask > 0)).squeeze(1).tolist() == wanted.tolist()

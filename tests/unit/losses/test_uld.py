"""ULD and the sorted L1 distance: against a dense sort, with and without a cap, for ties, on any ranks."""

import functools

import numpy as np
import pytest
import torch
import torch.distributed as dist
from cases import Problem
from dense import sorted_l1
from harness import compare, compare_ranks, compared, gradcheck, ours, reference
from hypothesis import given, settings
from hypothesis import strategies as st
from ranks import run_ranks

from nemo_xtoken.errors import InputError
from nemo_xtoken.losses.chunks import MERGES
from nemo_xtoken.losses.sorted_l1 import DEFAULT_CAP, SortedL1, UniversalLogitDistance
from nemo_xtoken.parallel.ownership import Ownership
from nemo_xtoken.parallel.vocabulary_shard import VocabularyShard

CAPS = (DEFAULT_CAP, 25, 7, 1)  # all, between the two vocabularies, some, one


def make_of(problem, cap):
    return lambda shard: UniversalLogitDistance(shard, problem.v_t, cap)


@pytest.mark.parametrize("merge", MERGES)
@pytest.mark.parametrize("cap", CAPS)
@pytest.mark.parametrize("case", [{}, {"v_s": 31, "v_t": 23}, {"v_s": 30, "v_t": 30}])
def test_value_and_gradient_equal_the_dense_reference(merge, cap, case):
    problem = Problem(seed=3, pad_s=32, pad_t=32, **case)
    for tau in (1.0, 2.5):
        want = reference(problem, functools.partial(sorted_l1, cap=cap), merge, tau)
        compare(ours(problem, make_of(problem, cap), merge, tau), want, 1e-9)


def every_kind(problem, group=None):
    return [ours(problem, make_of(problem, cap), merge, group=group) for merge in MERGES for cap in CAPS]


def on_rank(problem):
    return every_kind(problem, dist.group.WORLD)


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("pads", [(24, 40), (48, 32)])  # the second leaves the last of four ranks no student token
def test_tensor_parallel_ranks_equal_one_process(ranks, pads):
    problem = Problem(seed=7, pad_s=pads[0], pad_t=pads[1])
    results = run_ranks(ranks, on_rank, problem)
    for i, want in enumerate(every_kind(problem)):
        compare_ranks([result[i] for result in results], want, 1e-9)


@pytest.mark.parametrize("merge", MERGES)
@pytest.mark.parametrize("cap", [DEFAULT_CAP, 5])
def test_gradcheck_of_the_hand_written_backward(merge, cap):
    problem = Problem(seed=11, b=1, t_s=6, t_t=7, v_s=9, v_t=11, pad_s=10, pad_t=12, h=3)
    assert gradcheck(problem, make_of(problem, cap), merge)


@given(seed=st.integers(0, 10_000), cap=st.integers(1, 40), scale=st.floats(0.1, 20))
@settings(deadline=None, max_examples=100)
def test_never_negative_and_within_its_bound_of_the_exact_distance(seed, cap, scale):
    random = torch.Generator().manual_seed(seed)
    p_s = torch.softmax(scale * torch.randn(3, 20, generator=random, dtype=torch.float64), 1)
    p_t = torch.softmax(scale * torch.randn(3, 33, generator=random, dtype=torch.float64), 1)
    shard = VocabularyShard(20, 20)
    exact, _ = compared(UniversalLogitDistance(shard, 33), p_s, p_t)
    capped, _ = compared(UniversalLogitDistance(shard, 33, cap=cap), p_s, p_t)
    assert (exact[1] == 0).all()
    assert (capped >= 0).all()
    assert (capped[0] <= exact[0] + 1e-12).all()
    assert (exact[0] <= capped[0] + capped[1] + 1e-12).all()


def ties(dtype, group=None):
    """Values of a coarse grid, so that most are tied, across ranks and inside."""
    random = torch.Generator().manual_seed(3)
    p_s = torch.randint(0, 3, (6, 24), generator=random).to(dtype) / 16
    p_t = torch.randint(0, 3, (6, 32), generator=random).to(dtype) / 16
    p_s[:, 21:], p_t[:, 30:] = 0, 0  # padding
    tokens_s, tokens_t = np.arange(21) % 5 != 2, np.arange(30) % 3 != 0
    ranks, rank = (1, 0) if group is None else (dist.get_world_size(group), dist.get_rank(group))
    out = []
    for cap in (100, 12, 4):
        order = Ownership.in_order(VocabularyShard(30, 32, group))
        loss = SortedL1(tokens_s, tokens_t, VocabularyShard(21, 24, group), order, cap)
        out.append(tuple(x.numpy() for x in compared(loss, p_s.chunk(ranks, 1)[rank], p_t[:, :30])))
    return out


def ties_on_rank(dtype):
    return ties(dtype, dist.group.WORLD)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_ties_go_to_the_smaller_id_in_every_layout(dtype):
    alone = ties(dtype)
    for (value, gradient), (expected, slope) in zip(alone, ties(torch.float64), strict=True):
        assert (value == expected).all()
        assert (gradient == slope).all()
    for ranks in (2, 4):
        results = run_ranks(ranks, ties_on_rank, dtype)
        for i, (value, gradient) in enumerate(alone):
            for result in results:
                assert (result[i][0] == value).all()
            assert (np.concatenate([result[i][1] for result in results], 1) == gradient).all()
    assert set(np.unique(alone[0][1])) == {-1.0, 0.0, 1.0}


def test_the_subgradient_stands_where_the_token_stands():
    shard = VocabularyShard(4, 4)
    p_s = torch.tensor([[0.25, 0.25, 0.4, 0.1]], dtype=torch.float64)
    p_t = torch.tensor([[0.3, 0.2, 0.2, 0.3]], dtype=torch.float64)  # sorted .3 .3 .2 .2 under .4 .25 .25 .1
    loss = UniversalLogitDistance(shard, 4)
    value, slope = compared(loss, p_s, p_t)
    assert value[0].tolist() == pytest.approx([0.1 + 0.05 + 0.05 + 0.1])
    assert slope.tolist() == [[-1, 1, 1, -1]]  # of the two .25 the first comes first
    assert compared(loss, p_s, p_s.flip(1))[1].tolist() == [[0, 0, 0, 0]]


@pytest.mark.parametrize("by", [1e-4, 1e-8, 1e-12])
@pytest.mark.parametrize(
    ("p_s", "p_t", "slopes"),
    [
        # the largest is now more, now less than the teacher's, and so is what the others leave
        ([0.5, 0.3, 0.2], [0.5, 0.2, 0.3], ([1, 0, -1], [-1, 0, 1])),
        # two swap their places, between which the sign changes: the derivatives swap tokens, at the same distance
        ([0.25, 0.5, 0.25], [0.5, 0.3, 0.2], ([-1, 0, 1], [1, 0, -1])),
    ],
    ids=["a sign", "an order"],
)
def test_the_gradient_jumps_where_the_distance_has_a_kink(by, p_s, p_t, slopes):
    """However near the two points are: beside a kink rounding decides, and no layout's gradient is the other's."""
    loss = UniversalLogitDistance(VocabularyShard(3, 3), 3)
    move = torch.tensor([[by, 0, -by]], dtype=torch.float64)
    point, p_t = (torch.tensor([values], dtype=torch.float64) for values in (p_s, p_t))
    (above, up), (below, down) = (compared(loss, p, p_t) for p in (point + move, point - move))
    assert above[0].item() == pytest.approx(below[0].item(), abs=4 * by)
    assert (up.tolist(), down.tolist()) == ([slopes[0]], [slopes[1]])


def test_nobody_taking_part_is_nothing():
    shard = VocabularyShard(4, 4)
    p = torch.full((2, 4), 0.25)
    loss = SortedL1(np.zeros(4, bool), np.zeros(4, bool), shard, Ownership.in_order(shard))
    value, slope = compared(loss, p, p)
    assert value.tolist() == [[0, 0], [0, 0]]
    assert slope.tolist() == [[0] * 4] * 2


@pytest.mark.parametrize("merge", MERGES)
def test_extreme_logits_stay_finite(merge):
    problem = Problem(seed=4, dtype=torch.float32)
    problem.weight_s, problem.weight_t = problem.weight_s * 200, problem.weight_t * 200
    for value in ours(problem, make_of(problem, 7), merge)[:4]:
        assert torch.isfinite(torch.as_tensor(value)).all()


def test_bad_settings_are_refused():
    shard = VocabularyShard(4, 4)
    with pytest.raises(InputError, match="sorted_cap=0"):
        UniversalLogitDistance(shard, 4, cap=0)
    with pytest.raises(InputError, match="mask of \\[3\\]"):
        SortedL1(np.ones(3, bool), np.ones(4, bool), shard, Ownership.in_order(shard))

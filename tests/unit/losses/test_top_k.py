"""The teacher's top-k with a class REST: against dense float64 autograd, proper at any k, the whole at k = V_T."""

import functools
import itertools

import numpy as np
import pytest
import torch
import torch.distributed as dist
from cases import Problem
from dense import DIRECTIONS, dense_w, projected_top_k
from harness import compare, compare_ranks, compared, gradcheck, logit_gradient, ours, reference
from hypothesis import given, settings
from hypothesis import strategies as st
from ranks import run_ranks

from nemo_xtoken.errors import InputError
from nemo_xtoken.losses.gold import Gold
from nemo_xtoken.losses.h_kl import HybridKL
from nemo_xtoken.losses.nrl import nrl_exact_pairs
from nemo_xtoken.losses.p_kl import ProjectedKL
from nemo_xtoken.losses.same_tokenizer import SameTokenizerKL
from nemo_xtoken.parallel.common_set import CommonSet
from nemo_xtoken.parallel.exchange import VocabularyExchange
from nemo_xtoken.parallel.vocabulary_shard import VocabularyShard

#: rows empty and tokens unreached; no empty row; every token reached and rows empty; neither
CASES = {
    "open": {"reach": 0.5},
    "no empty row": {"empty": 0.0, "reach": 0.5},
    "all reached": {"v_s": 60, "pad_s": 64, "v_t": 9, "empty": 0.2},
    "closed": {"v_s": 60, "pad_s": 64, "v_t": 9, "empty": 0.0},
}


def p_kl(problem, direction, k):
    return lambda shard: ProjectedKL(VocabularyExchange.co_sharded(problem.matrix, shard), direction, k)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("case", CASES)
def test_p_kl_equals_the_dense_reference(direction, case):
    problem = Problem(seed=3, **CASES[case])
    w = dense_w(problem.matrix, problem.v_s, problem.v_t)
    for k, merge, tau in ((1, "mean", 1.0), (4, "chain_rule", 2.5), (500, "first", 1.0)):
        dense = functools.partial(projected_top_k, w=w, direction=direction, k=k)
        want = reference(problem, dense, merge, tau)
        compare(ours(problem, p_kl(problem, direction, k), merge, tau), want, 1e-6)  # W is stored in float32


def same(direction, k):
    return lambda shard: SameTokenizerKL(shard, 29, direction, k)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_same_tokenizer_equals_p_kl_over_the_identity(direction):
    problem = Problem(seed=3, v_s=29, v_t=29, pad_s=32, pad_t=48)
    w = torch.cat([torch.eye(29, dtype=torch.float64), torch.zeros(29, 1, dtype=torch.float64)], 1)
    for k in (1, 5, 29):
        dense = functools.partial(projected_top_k, w=w, direction=direction, k=k)
        compare(ours(problem, same(direction, k), "mean", 1.7), reference(problem, dense, "mean", 1.7), 1e-9)


def every_kind(problems, group=None):
    identity = Problem(seed=3, v_s=29, v_t=29, pad_s=32, pad_t=48)
    found = [
        ours(problem, p_kl(problem, direction, k), "mean", group=group)
        for problem in problems
        for direction, k in (("forward", 3), ("reverse", 3), ("js", 5))
    ]
    found.append(ours(identity, same("forward", 4), "mean", group=group))
    strict = nrl_exact_pairs(problems[0].matrix)
    found.append(ours(problems[0], lambda s: HybridKL(strict, problems[0].matrix, s, top_k=3), "mean", group=group))
    return found


def on_rank(problems):
    return every_kind(problems, dist.group.WORLD)


@pytest.mark.parametrize("ranks", [2, 4])
def test_tensor_parallel_ranks_equal_one_process(ranks):
    problems = [Problem(seed=7, pad_s=24, pad_t=40), Problem(seed=7, v_s=60, pad_s=64, v_t=9, pad_t=12, empty=0.2)]
    results = run_ranks(ranks, on_rank, problems)
    for i, want in enumerate(every_kind(problems)):
        compare_ranks([result[i] for result in results], want, 1e-9)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("case", ["no empty row", "all reached"])
def test_gradcheck_of_the_hand_written_backward(direction, case):
    shape = {"v_s": 9, "v_t": 11, "reach": 0.5, "empty": 0.0}
    if case == "all reached":
        shape = {"v_s": 40, "v_t": 5, "empty": 0.2}
    problem = Problem(seed=11, b=1, t_s=6, t_t=7, pad_s=40, pad_t=12, h=3, **shape)
    assert gradcheck(problem, p_kl(problem, direction, 2), "mean")


@given(seed=st.integers(0, 10_000), case=st.sampled_from(sorted(CASES)), scale=st.floats(0.01, 30))
@settings(deadline=None, max_examples=30)
def test_proper_at_any_k_and_never_more_than_the_whole(seed, case, scale):
    problem = Problem(seed=seed, **CASES[case])
    shard = VocabularyShard(problem.v_s, problem.weight_s.shape[0])
    random = torch.Generator().manual_seed(seed)
    p_s = torch.softmax(scale * torch.randn(4, problem.v_s, generator=random, dtype=torch.float64), 1)
    p_s = torch.nn.functional.pad(p_s, (0, shard.rows - problem.v_s))
    p_t = torch.softmax(scale * torch.randn(4, problem.v_t, generator=random, dtype=torch.float64), 1)
    # W is stored in float32: its rows, and so q, sum to 1 only so far, and KL(p || q) >= -log sum q
    mass = problem.matrix.weights.astype(np.float64).sum(1)
    rounding = np.abs(mass[mass > 0] - 1).max()
    for direction in DIRECTIONS:
        values = [
            compared(p_kl(problem, direction, k)(shard), p_s, p_t)[0][0] for k in (1, 2, 4, problem.v_t - 1, None)
        ]
        for less, more in itertools.pairwise(values):
            assert (less >= -rounding - 1e-9).all()
            assert (less <= more + 1e-9 * (1 + more.abs())).all()
            assert torch.isfinite(more).all()


@pytest.mark.parametrize("case", CASES)
def test_from_v_t_up_it_is_the_whole(case):
    problem = Problem(seed=3, **CASES[case])
    for direction in DIRECTIONS:
        whole = ours(problem, p_kl(problem, direction, None), "mean")
        got = ours(problem, p_kl(problem, direction, problem.v_t), "mean")
        assert all(np.array_equal(a, b) for a, b in zip(got[:4], whole[:4], strict=True))


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_extreme_logits_stay_finite(direction):
    """Most of the teacher's probabilities underflow, and so tie."""
    for case in CASES.values():
        problem = Problem(seed=4, dtype=torch.float32, **case)
        problem.weight_s, problem.weight_t = problem.weight_s * 200, problem.weight_t * 200
        for value in ours(problem, p_kl(problem, direction, 4), "chain_rule")[:4]:
            assert torch.isfinite(torch.as_tensor(value)).all()


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_zero_where_the_student_agrees(direction):
    random = torch.Generator().manual_seed(0)
    z = 3 * torch.randn(3, 17, generator=random, dtype=torch.float64)
    shard = VocabularyShard(17, 17)
    value, gradient = logit_gradient(SameTokenizerKL(shard, 17, direction, 4), z, torch.softmax(z, 1), shard)
    assert float(value.abs().max()) < 1e-12
    assert float(gradient.abs().max()) < 1e-12


def test_a_token_outside_is_pushed_as_its_class_is():
    """Forward, every token reached: dKL/dz_j = q_j (1 - R_T / R_S) for all tokens j outside of the k."""
    random = torch.Generator().manual_seed(1)
    z = torch.randn(1, 17, generator=random, dtype=torch.float64)
    p = torch.softmax(2 * torch.randn(1, 17, generator=random, dtype=torch.float64), 1)
    shard = VocabularyShard(17, 17)
    _, gradient = logit_gradient(SameTokenizerKL(shard, 17, "forward", 4), z, p, shard)
    outside = p[0].argsort(descending=True)[4:]
    q = torch.softmax(z, 1)[0, outside]
    torch.testing.assert_close(gradient[0, outside], q * (1 - p[0, outside].sum() / q.sum()), rtol=1e-10, atol=0)


def test_the_published_partial_kl_has_no_top_k():
    strict = CommonSet(np.array([0, 2]), np.array([4, 1]), 12, 15)
    Gold(strict, VocabularyShard(12, 12), "rest", top_k=1)
    with pytest.raises(InputError, match="top_k=1 with partial_kl=paper"):
        Gold(strict, VocabularyShard(12, 12), "paper", top_k=1)

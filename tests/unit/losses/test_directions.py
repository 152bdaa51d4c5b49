"""Reverse KL and Jensen-Shannon, and the forward KL beside them: P-KL's three directions against dense autograd."""

import functools
import math

import numpy as np
import pytest
import torch
import torch.distributed as dist
from cases import Problem
from dense import dense_w, projected
from harness import compare, compare_ranks, gradcheck, logit_gradient, ours, reference
from hypothesis import given, settings
from hypothesis import strategies as st
from ranks import run_ranks

from nemo_xtoken.errors import InputError
from nemo_xtoken.losses.chunks import MERGES
from nemo_xtoken.losses.directions import DIRECTIONS
from nemo_xtoken.losses.p_kl import ProjectedKL
from nemo_xtoken.parallel.exchange import VocabularyExchange
from nemo_xtoken.parallel.vocabulary_shard import VocabularyShard
from nemo_xtoken.projection.matrix import ProjectionMatrix

#: rows empty and tokens unreached; no empty row; every token reached and rows empty; neither
CASES = {
    "open": {"reach": 0.5},
    "no empty row": {"empty": 0.0, "reach": 0.5},
    "all reached": {"v_s": 60, "pad_s": 64, "v_t": 9, "empty": 0.2},
    "closed": {"v_s": 60, "pad_s": 64, "v_t": 9, "empty": 0.0},
}


def make_of(problem, direction):
    return lambda shard: ProjectedKL(VocabularyExchange.co_sharded(problem.matrix, shard), direction)


@pytest.mark.parametrize("merge", MERGES)
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("case", CASES)
def test_value_and_gradient_equal_the_dense_reference(merge, direction, case):
    problem = Problem(seed=3, **CASES[case])
    assert problem.matrix.empty_rows.any() == (case in ("open", "all reached"))
    assert problem.matrix.reached.all() == (case in ("all reached", "closed"))
    w = dense_w(problem.matrix, problem.v_s, problem.v_t)
    dense = functools.partial(projected, w=w, direction=direction)
    for tau in (1.0, 2.5):
        # W's weights are stored in float32
        compare(ours(problem, make_of(problem, direction), merge, tau), reference(problem, dense, merge, tau), 1e-6)


def every_kind(problems, group=None):
    return [
        ours(problem, make_of(problem, direction), merge, group=group)
        for problem in problems
        for direction in ("reverse", "js")
        for merge in ("mean", "chain_rule")
    ]


def on_rank(problems):
    return every_kind(problems, dist.group.WORLD)


@pytest.mark.parametrize("ranks", [2, 4])
def test_tensor_parallel_ranks_equal_one_process(ranks):
    problems = [
        Problem(seed=7, pad_s=24, pad_t=40),
        Problem(seed=7, v_s=60, pad_s=64, v_t=9, pad_t=12, empty=0.2),  # the student conditioned
    ]
    results = run_ranks(ranks, on_rank, problems)
    for i, want in enumerate(every_kind(problems)):
        compare_ranks([result[i] for result in results], want, 1e-9)


@pytest.mark.parametrize("direction", ["reverse", "js"])
@pytest.mark.parametrize("case", CASES)
def test_gradcheck_of_the_hand_written_backward(direction, case):
    shape = {"v_s": 9, "v_t": 11} | {k: v for k, v in CASES[case].items() if k in ("empty", "reach")}
    if case in ("all reached", "closed"):
        shape |= {"v_s": 40, "v_t": 5}
    problem = Problem(seed=11, b=1, t_s=6, t_t=7, pad_s=40, pad_t=12, h=3, **shape)
    assert problem.matrix.reached.all() == (case in ("all reached", "closed"))
    assert gradcheck(problem, make_of(problem, direction), "mean")


@given(seed=st.integers(0, 10_000), case=st.sampled_from(sorted(CASES)), scale=st.floats(0.01, 30))
@settings(deadline=None, max_examples=30)
def test_never_negative_and_js_at_most_log_2(seed, case, scale):
    problem = Problem(seed=seed, b=1, **CASES[case])
    problem.weight_s = problem.weight_s * scale
    for direction in DIRECTIONS:
        for merge in MERGES:
            value = ours(problem, make_of(problem, direction), merge)[1]
            assert value > -1e-9
            assert np.isfinite(value)
            if direction == "js" and merge != "chain_rule":
                assert value <= problem.batch["chunks"].shape[0] * math.log(2) + 1e-9


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("case", CASES)
def test_extreme_logits_stay_finite(direction, case):
    problem = Problem(seed=4, dtype=torch.float32, **CASES[case])
    problem.weight_s, problem.weight_t = problem.weight_s * 200, problem.weight_t * 200
    for merge in MERGES:
        for value in ours(problem, make_of(problem, direction), merge)[:4]:
            assert torch.isfinite(torch.as_tensor(value)).all()


def test_the_conditioned_student_is_not_paid_for_leaving():
    """Reverse, every teacher token reached: moving mass to empty rows changes nothing, all of it stays a number."""
    matrix = ProjectionMatrix(np.array([[0], [1], [-1]], np.int32), np.array([[1], [1], [0]], np.float32), 2, "s", "t")
    shard = VocabularyShard(3, 3)
    loss = ProjectedKL(VocabularyExchange.co_sharded(matrix, shard), "reverse")
    p_t = torch.tensor([[0.3, 0.7]], dtype=torch.float64)
    values = []
    for lift in (-5.0, 0.0, 5.0):
        value, gradient = logit_gradient(loss, torch.tensor([[1.0, 0.5, lift]], dtype=torch.float64), p_t, shard)
        values.append(float(value))
        assert abs(float(gradient[0, 2])) < 1e-9
    assert values == pytest.approx([values[0]] * 3, rel=1e-9)
    value, gradient = logit_gradient(loss, torch.tensor([[1.0, 0.5, 900.0]]), p_t.float(), shard)
    assert torch.isfinite(value).all()
    assert torch.isfinite(gradient).all()


def test_an_unknown_direction_is_refused():
    problem = Problem()
    with pytest.raises(InputError, match="direction='sideways'"):
        make_of(problem, "sideways")(VocabularyShard(23, 24))

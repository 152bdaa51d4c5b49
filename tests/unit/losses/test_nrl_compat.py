"""The public losses, value and gradient, against a dense float64 form of what is known of them; in any layout."""

import itertools

import numpy as np
import pytest
import torch
import torch.distributed as dist
from cases import Problem
from dense import dense_w, largest, nrl_gold, nrl_p_kl, nrl_relaxed
from harness import WEIGHTS, compare, compare_ranks, gradcheck, ours, student_shard, teacher_output
from ranks import run_ranks

from nemo_xtoken.losses.nrl import NrlGold, NrlProjectedKL, nrl_exact_pairs, nrl_relaxed_pairs
from nemo_xtoken.parallel.exchange import VocabularyExchange

LOSSES = ("p_kl", "gold", "h_kl")
#: rows empty and tokens unreached; a teacher with fewer uncommon tokens; nothing in common
PROBLEMS = {"open": {}, "small teacher": {"v_s": 31, "v_t": 12, "pad_s": 32}, "apart": {"empty": 1.0}}


def make_of(problem, loss, k):
    if loss == "p_kl":
        return lambda shard: NrlProjectedKL(VocabularyExchange.co_sharded(problem.matrix, shard), k)
    relaxed = loss == "h_kl"
    common = nrl_relaxed_pairs(problem.matrix) if relaxed else nrl_exact_pairs(problem.matrix)
    return lambda shard: NrlGold(common, shard, k)


def dense(problem, loss, k, tau):
    """(ce, kd, grad hidden, grad weight) by autograd, in float64."""
    hidden = problem.hidden_s.double().flatten(0, 1).clone().requires_grad_()
    weight = problem.weight_s.double().clone().requires_grad_()
    z_s = (hidden @ weight.T)[:, : problem.v_s].reshape(problem.hidden_s.shape[0], -1, problem.v_s)
    z_t = (problem.hidden_t.double() @ problem.weight_t.double().T)[..., : problem.v_t]
    labels = problem.batch["student_labels"]
    ce = torch.nn.functional.cross_entropy(z_s.flatten(0, 1), labels.flatten(), ignore_index=-100, reduction="sum")
    if loss == "p_kl":
        kd = nrl_p_kl(z_s, z_t, problem.batch, dense_w(problem.matrix, problem.v_s, problem.v_t), k, tau)
    else:
        exact = nrl_exact_pairs(problem.matrix)
        pairs = list(zip(exact.student.tolist(), exact.teacher.tolist(), strict=True))
        kd = nrl_gold(z_s, z_t, problem.batch, nrl_relaxed(problem.matrix) if loss == "h_kl" else pairs, k, tau)
    (WEIGHTS[0] * ce + WEIGHTS[1] * kd).backward()
    return ce.item(), kd.item(), hidden.grad.numpy(), weight.grad.numpy()


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("case", PROBLEMS)
def test_value_and_gradient_equal_the_dense_reference(loss, case):
    problem = Problem(seed=3, **PROBLEMS[case])
    for k, tau in ((5, 1.0), (5, 2.5), (8192, 1.0)):
        got = ours(problem, make_of(problem, loss, k), "chain_rule", tau)  # the merge is not asked for
        compare(got, dense(problem, loss, k, tau), 1e-6 if loss == "p_kl" else 1e-9)  # W is stored in float32


@pytest.mark.parametrize("loss", LOSSES)
def test_in_float32_it_is_the_same_to_float_precision(loss):
    problem = Problem(seed=3, b=3, dtype=torch.float32)
    compare(ours(problem, make_of(problem, loss, 9), "chain_rule"), dense(problem, loss, 9, 1.0), 1e-5)


def every_kind(problem, group=None):
    return [
        ours(problem, make_of(problem, loss, k), "chain_rule", tau, group=group)
        for loss in LOSSES
        for k, tau in ((5, 1.0), (8192, 2.0))
    ]


def on_rank(problem):
    return every_kind(problem, dist.group.WORLD)


@pytest.mark.parametrize("ranks", [2, 4])
def test_tensor_parallel_ranks_equal_one_process(ranks):
    problem = Problem(seed=7, pad_s=24, pad_t=40)
    results = run_ranks(ranks, on_rank, problem)
    for i, want in enumerate(every_kind(problem)):
        compare_ranks([result[i] for result in results], want, 1e-9)


@pytest.mark.parametrize("loss", LOSSES)
def test_gradcheck_of_the_hand_written_backward(loss):
    problem = Problem(seed=10, b=1, t_s=7, t_t=8, v_s=9, v_t=11, pad_s=10, pad_t=12, h=3)
    assert (problem.batch["chunks"][:, [2, 4]] > 1).any(0).all()
    assert gradcheck(problem, make_of(problem, loss, 4), "chain_rule")


@pytest.mark.parametrize("loss", LOSSES)
def test_extreme_logits_stay_finite(loss):
    problem = Problem(seed=4, dtype=torch.float32)
    problem.weight_s, problem.weight_t = problem.weight_s * 200, problem.weight_t * 200
    for value in ours(problem, make_of(problem, loss, 6), "chain_rule")[:4]:
        assert torch.isfinite(torch.as_tensor(value)).all()


def sets_on_rank(problem, k):
    divergence = make_of(problem, "p_kl", k)(student_shard(problem, dist.group.WORLD))
    output = teacher_output(problem, divergence.ownership, dist.group.WORLD)
    return divergence.tokens[divergence.for_batch(output).kept].tolist()


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_the_set_is_that_of_the_largest_logits_of_all_positions(ranks):
    """Equal logits too: the smaller ids are in it, wherever they lie.  Positions outside of chunks count."""
    problem = Problem(seed=2, pad_s=24, pad_t=32)
    problem.hidden_t, problem.weight_t = problem.hidden_t.round(), problem.weight_t.round()  # products without error
    problem.weight_t[5:20] = problem.weight_t[5]  # 15 tokens that tie
    z = (problem.hidden_t @ problem.weight_t.T)[..., : problem.v_t]
    for k in (1, 6, 10, 31):
        want, _ = largest(z.flatten(0, 1).max(0).values, range(problem.v_t), k)
        results = run_ranks(ranks, sets_on_rank, problem, k)
        assert sorted(itertools.chain(*results)) == sorted(want)


def test_a_token_that_no_position_ranks_high_is_not_compared():
    """The one set of the micro-batch is the point: what the student does elsewhere is not seen by the loss."""
    problem = Problem(seed=3, dtype=torch.float64)
    _, _, _, gradient, metrics = ours(problem, make_of(problem, "p_kl", 2), "chain_rule")
    assert metrics["student_left_out"] > 1
    assert np.isfinite(gradient).all()


def test_the_mean_of_logarithms_can_be_negative():
    """Chunks of several teacher tokens that disagree: their geometric mean sums to far less than 1."""
    problem = Problem(seed=3)
    problem.weight_t = problem.weight_t * 4
    chunks = problem.batch["chunks"]
    problem.batch["chunks"] = chunks[chunks[:, 4] > 1]
    problem.weight_s = problem.weight_s * 0.01
    values = [ours(problem, make_of(problem, loss, 8192), "chain_rule")[4] for loss in ("gold", "h_kl")]
    assert min(value["partial_kl"] for value in values) < 0


def test_pairs_of_h_kl_need_a_weight_of_six_tenths():
    problem = Problem(seed=5, v_s=60, pad_s=64, v_t=40, pad_t=40)
    problem.matrix.weights[:7] *= np.float32(0.6)
    problem.matrix.weights[7:14] *= np.float32(0.59)
    common = nrl_relaxed_pairs(problem.matrix)
    got = list(zip(common.student.tolist(), common.teacher.tolist(), strict=True))
    assert got == nrl_relaxed(problem.matrix, np.float32(0.6))
    assert len(got) > len(nrl_exact_pairs(problem.matrix))
    assert not any(7 <= s < 14 and problem.matrix.weights[s].max() < 0.6 for s, _ in got)

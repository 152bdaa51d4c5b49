"""P-KL and cross-entropy, value and gradient, against dense float64 autograd; alone and over tensor-parallel ranks."""

import harness
import pytest
import torch
import torch.distributed as dist
from cases import Problem
from dense import dense_w, projected_kl
from harness import close
from hypothesis import given, settings
from hypothesis import strategies as st
from ranks import run_ranks

from nemo_xtoken.losses.base import ModelOutput
from nemo_xtoken.losses.chunks import MERGES
from nemo_xtoken.losses.directions import bernoulli_kl
from nemo_xtoken.losses.p_kl import ProjectedKL
from nemo_xtoken.objective.terms import cross_tokenizer_loss
from nemo_xtoken.parallel.exchange import VocabularyExchange
from nemo_xtoken.parallel.head import OutputHead
from nemo_xtoken.parallel.vocabulary_shard import VocabularyShard


def projected(problem):
    return lambda shard: ProjectedKL(VocabularyExchange.co_sharded(problem.matrix, shard))


def ours(problem, merge, tau, tile_rows, group=None):
    """(ce, kd, metrics, grad hidden, grad weight) with the vocabularies sharded over ``group``."""
    ce, kd, g_hidden, g_weight, metrics = harness.ours(problem, projected(problem), merge, tau, tile_rows, group)
    return ce, kd, metrics, g_hidden, g_weight


def reference(problem, merge, tau):
    w = dense_w(problem.matrix, problem.v_s, problem.v_t)
    return harness.reference(problem, lambda p_s, p_t: projected_kl(p_s, p_t, w), merge, tau)


@pytest.mark.parametrize("merge", MERGES)
@pytest.mark.parametrize("tau", [1.0, 2.5])
@pytest.mark.parametrize("case", [{}, {"empty": 0.0}, {"reach": 0.5}, {"empty": 0.0, "reach": 0.5}])
def test_value_and_gradient_equal_the_dense_reference(merge, tau, case):
    problem = Problem(seed=3, **case)
    ce, kd, _, g_hidden, g_weight = ours(problem, merge, tau, tile_rows=4)
    want_ce, want_kd, want_hidden, want_weight = reference(problem, merge, tau)
    close(ce, want_ce, 1e-7)  # W's weights are stored in float32
    close(kd, want_kd, 1e-7)
    close(g_hidden, want_hidden, 1e-7)
    close(g_weight, want_weight, 1e-7)


@pytest.mark.parametrize("merge", MERGES)
def test_tiles_do_not_change_the_result(merge):
    problem = Problem(seed=5, b=3)
    whole = ours(problem, merge, 1.0, tile_rows=10_000)
    for rows in (1, 2, 7):
        part = ours(problem, merge, 1.0, tile_rows=rows)
        for a, b in zip(part[:2] + part[3:], whole[:2] + whole[3:], strict=True):
            close(a, b, 1e-12)


def on_rank(problem, merge, tau):
    ce, kd, metrics, g_hidden, g_weight = ours(problem, merge, tau, 4, dist.group.WORLD)
    return ce, kd, metrics, g_hidden, g_weight


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("merge", MERGES)
def test_tensor_parallel_ranks_equal_one_process(ranks, merge):
    problem = Problem(seed=7, pad_s=24, pad_t=40, dtype=torch.float32)
    ce, kd, metrics, g_hidden, g_weight = ours(problem, merge, 1.0, 4)
    results = run_ranks(ranks, on_rank, problem, merge, 1.0)
    for got in results:
        close(got[0], ce, 1e-5)
        close(got[1], kd, 1e-5)
        close(got[3], g_hidden, 1e-5)
        for name, value in metrics.items():
            close(got[2][name], value, 1e-5)
    close(torch.cat([torch.as_tensor(got[4]) for got in results]), g_weight, 1e-5)


@pytest.mark.parametrize("merge", MERGES)
def test_gradcheck_of_the_hand_written_backward(merge):
    problem = Problem(seed=11, b=1, t_s=6, t_t=7, v_s=9, v_t=11, pad_s=10, pad_t=12, h=3)
    assert harness.gradcheck(problem, projected(problem), merge)


@given(seed=st.integers(0, 10_000), empty=st.sampled_from([0.0, 0.3]), scale=st.floats(0.01, 30))
@settings(deadline=None, max_examples=60)
def test_never_negative(seed, empty, scale):
    problem = Problem(seed=seed, b=1, empty=empty, reach=0.7)
    problem.weight_s = problem.weight_s * scale
    for merge in MERGES:
        value = ours(problem, merge, 1.0, 8)[1]
        assert value > -1e-9
        assert torch.isfinite(torch.tensor(value))


def test_zero_value_and_gradient_where_the_student_agrees():
    """Same tokenizer, W the identity, same logits: nothing to learn."""
    problem = Problem(seed=2, v_s=20, v_t=20, pad_s=20, pad_t=20, t_s=9, t_t=9)
    problem.matrix.ids[:], problem.matrix.weights[:] = -1, 0
    problem.matrix.ids[:, 0], problem.matrix.weights[:, 0] = torch.arange(20).numpy(), 1
    problem.hidden_t, problem.weight_t = problem.hidden_s.clone(), problem.weight_s.clone()
    problem.batch["teacher_labels"] = problem.batch["student_labels"].clone()
    problem.batch["chunks"] = torch.tensor([[0, 0, 1, 0, 1], [0, 1, 2, 1, 2], [1, 3, 3, 3, 3]])
    hidden = problem.hidden_s.flatten(0, 1).clone().requires_grad_()
    shard = VocabularyShard(20, 20)
    student = ModelOutput(hidden, OutputHead(problem.weight_s, shard))
    for merge in MERGES:
        signal = harness.signal_of(problem, projected(problem)(shard), merge)
        terms = cross_tokenizer_loss(student, problem.batch["student_labels"], [signal], ce_weight=0.0)
        (gradient,) = torch.autograd.grad(terms.objective, hidden)
        assert abs(float(terms.kd[0].total)) < 1e-12
        assert float(gradient.abs().max()) < 1e-12


def test_extreme_logits_stay_finite():
    """Probabilities that underflow, a teacher that is certain: the loss and its gradient remain numbers."""
    problem = Problem(seed=4, dtype=torch.float32)
    problem.weight_s, problem.weight_t = problem.weight_s * 200, problem.weight_t * 200
    for merge in MERGES:
        ce, kd, _, g_hidden, g_weight = ours(problem, merge, 1.0, 4)
        assert all(torch.isfinite(torch.as_tensor(x)).all() for x in (ce, kd, g_hidden, g_weight))


def test_bernoulli_kl_is_proper():
    t = torch.log(torch.tensor([0.3, 0.3, 0.9, 1.0, 1.0]))
    s = torch.log(torch.tensor([0.3, 0.7, 0.1, 1.0, 0.5]))
    value, _ = bernoulli_kl(t, s)
    assert value[0].abs() < 1e-6
    assert (value[1:3] > 0).all()
    assert value[3].abs() < 1e-6
    torch.testing.assert_close(value[4], torch.tensor(0.6931472), rtol=1e-5, atol=1e-6)

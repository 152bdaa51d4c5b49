"""Learned W: its gradient against dense float64 autograd and finite differences, on any ranks; what cannot change."""

import dataclasses

import harness
import numpy as np
import pytest
import torch
import torch.distributed as dist
from cases import Problem
from dense import projected
from harness import WEIGHTS, close
from ranks import run_ranks
from torch.func import functional_call

from nemo_xtoken.losses.base import ModelOutput
from nemo_xtoken.losses.chunks import MERGES
from nemo_xtoken.losses.nrl import NrlProjectedKL
from nemo_xtoken.losses.p_kl import ProjectedKL
from nemo_xtoken.objective.terms import cross_tokenizer_loss
from nemo_xtoken.parallel.exchange import VocabularyExchange
from nemo_xtoken.parallel.head import OutputHead
from nemo_xtoken.parallel.learned_entries import LearnedProjection
from nemo_xtoken.projection.matrix import ProjectionMatrix

K = 4  # places in a row of these problems


def shifts(problem):
    """Where training might have moved the logits, ``[V_S padded, K]``."""
    rows = problem.weight_s.shape[0]
    return torch.from_numpy(np.random.default_rng(4).normal(size=(rows, K)))


def parts(problem, direction="forward", group=None, dtype=torch.float64):
    """(student's hidden, its head, signal, LearnedProjection, its logits, shifted, of ``dtype``) of this rank."""
    ranks, rank = (1, 0) if group is None else (dist.get_world_size(group), dist.get_rank(group))
    shard = harness.student_shard(problem, group)
    divergence = ProjectedKL(VocabularyExchange.co_sharded(problem.matrix, shard), direction)
    signal = harness.signal_of(problem, divergence, "chain_rule", group=group)
    learned = LearnedProjection(divergence.exchange, problem.matrix)
    logits = learned.logits.detach().to(dtype) + shifts(problem).to(dtype).chunk(ranks)[rank].flatten()
    head = OutputHead(problem.weight_s.chunk(ranks)[rank].clone().requires_grad_(), shard)
    return problem.hidden_s.flatten(0, 1).clone().requires_grad_(), head, signal, learned, logits.requires_grad_()


def loss(problem, hidden, head, signal, learned, logits, merge, tau=1.0):
    entries = functional_call(learned, {"logits": logits}, ())
    config = dataclasses.replace(signal.config, merge=merge, temperature=tau)
    signal = dataclasses.replace(signal, entry_weights=entries, config=config)
    labels = problem.batch["student_labels"]
    return cross_tokenizer_loss(ModelOutput(hidden, head), labels, [signal], WEIGHTS[0], WEIGHTS[1:], 4)


def ours(problem, merge, direction="forward", tau=1.0, group=None, dtype=torch.float64):
    hidden, head, *rest, logits = parts(problem, direction, group, dtype)
    terms = loss(problem, hidden, head, *rest, logits, merge, tau)
    terms.objective.backward()
    return terms.ce.total.item(), terms.kd[0].total.item(), hidden.grad.numpy(), logits.grad.view(-1, K).numpy()


def dense(problem, merge, direction="forward", tau=1.0):
    """The same with W ``[V_S, V_T + 1]`` written out, and autograd."""
    ids, used = torch.from_numpy(problem.matrix.ids), torch.from_numpy(problem.matrix.ids >= 0)
    start = torch.from_numpy(problem.matrix.weights).double().log().where(used, 0.0)
    moved = (start + shifts(problem)[: problem.v_s]).requires_grad_()
    w = torch.zeros(problem.v_s, problem.v_t + 1, dtype=torch.float64)
    for s in range(problem.v_s):
        if used[s].any():
            w[s, ids[s][used[s]].long()] = moved[s][used[s]].softmax(0)
        else:
            w[s, -1] = 1
    ce, kd, g_hidden, _ = harness.reference(problem, lambda p, q: projected(p, q, w, direction), merge, tau)
    return ce, kd, g_hidden, moved.grad.numpy()


@pytest.mark.parametrize("direction", ["forward", "reverse", "js"])
@pytest.mark.parametrize("case", [{}, {"empty": 0.0}, {"reach": 0.5}])
@pytest.mark.parametrize("merge", MERGES)
def test_value_and_gradient_equal_the_dense_reference(merge, direction, case):
    problem = Problem(seed=3, **case)
    got, want = ours(problem, merge, direction, 1.5), dense(problem, merge, direction, 1.5)
    close(got[1], want[1], 1e-6, "distillation")  # log W is stored in float32
    close(got[2], want[2], 1e-6, "gradient of hidden states")
    close(got[3][: problem.v_s], want[3], 1e-6, "gradient of the logits of W")
    several = (problem.matrix.ids >= 0).sum(axis=1) > 1
    assert np.abs(got[3][: problem.v_s][several]).max() > 1e-3
    assert not got[3][: problem.v_s][~several].any()
    assert not got[3][problem.v_s :].any()


GRADCHECKS = {
    **{merge: (lambda e: ProjectedKL(e), merge) for merge in MERGES},
    "top_k": (lambda e: ProjectedKL(e, top_k=3), "mean"),
    "reverse_top_k": (lambda e: ProjectedKL(e, "reverse", top_k=3), "first"),
    "nrl_p_kl": (lambda e: NrlProjectedKL(e, 6), "mean"),
}


@pytest.mark.parametrize("case", GRADCHECKS)
def test_gradcheck(case):
    make, merge = GRADCHECKS[case]
    problem = Problem(seed=13, b=1, t_s=6, t_t=7, v_s=9, v_t=11, pad_s=10, pad_t=12, h=3, empty=0.2)
    hidden, head, signal, learned, logits = parts(problem)
    signal = dataclasses.replace(signal, divergence=make(signal.divergence.exchange))
    several = torch.from_numpy(np.pad((problem.matrix.ids >= 0).sum(axis=1) > 1, (0, 1))).repeat_interleave(K)
    assert several.sum() >= 8
    fixed = logits.detach()

    def objective(hidden, free):
        logits = fixed.index_put((several.nonzero().squeeze(1),), free)
        return loss(problem, hidden, head, signal, learned, logits, merge, 1.7).objective

    assert torch.autograd.gradcheck(objective, (hidden, fixed[several].requires_grad_()))


def on_rank(problem, merge):
    *_, learned, logits = parts(problem, group=dist.group.WORLD, dtype=torch.float32)
    learned.logits.data.copy_(logits.detach())
    whole = learned.whole()
    return *ours(problem, merge, group=dist.group.WORLD, dtype=torch.float32), whole.weights, learned().tolist()


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("merge", MERGES)
def test_tensor_parallel_ranks_equal_one_process(ranks, merge):
    problem = Problem(seed=7, pad_s=24, pad_t=40, dtype=torch.float32)
    want = ours(problem, merge, dtype=torch.float32)
    *_, learned, logits = parts(problem, dtype=torch.float32)
    learned.logits.data.copy_(logits.detach())
    results = run_ranks(ranks, on_rank, problem, merge)
    for got in results:
        close(got[1], want[1], 1e-5)
        close(got[2], want[2], 1e-5)
        np.testing.assert_array_equal(got[4], learned.whole().weights)
    close(np.concatenate([got[3] for got in results]), want[3], 1e-5)


def learned_of(matrix, rows=24):
    from nemo_xtoken.parallel.vocabulary_shard import VocabularyShard

    exchange = VocabularyExchange.co_sharded(matrix, VocabularyShard(matrix.student_size, rows))
    return LearnedProjection(exchange, matrix), exchange


def test_it_starts_at_w_and_stays_stochastic():
    matrix = Problem(seed=3).matrix
    learned, exchange = learned_of(matrix)
    torch.testing.assert_close(learned(), exchange.weights, rtol=1e-6, atol=0)
    np.testing.assert_allclose(learned.whole().weights, matrix.weights, rtol=1e-6)
    learned.logits.data += 50 * torch.randn_like(learned.logits)  # softmaxes that underflow in float32
    whole = learned.whole()  # which refuses rows that are no distributions
    np.testing.assert_array_equal(whole.ids, matrix.ids)
    np.testing.assert_array_equal(whole.reached, matrix.reached)
    assert (whole.weights[matrix.ids >= 0] > 0).all()
    assert np.abs(whole.weights - matrix.weights).max() > 0.5


def test_entries_may_have_gaps_between_them():
    ids = np.array([[-1, 2, -1, 0], [1, -1, -1, -1], [-1, -1, -1, -1], [-1, 3, 1, 2]], np.int32)
    weights = np.array([[0, 0.75, 0, 0.25], [1, 0, 0, 0], [0, 0, 0, 0], [0, 0.5, 0.25, 0.25]], np.float32)
    matrix = ProjectionMatrix(ids, weights, 5, "s", "t")
    learned, exchange = learned_of(matrix, 4)
    torch.testing.assert_close(learned(), exchange.weights)
    np.testing.assert_allclose(learned.whole().weights, weights, rtol=1e-6)
    assert learned.whole().student_digest == "s"


def test_a_matrix_without_several_entries_has_nothing_to_learn():
    ids = np.array([[2], [0], [-1]], np.int32)
    learned, exchange = learned_of(ProjectionMatrix(ids, (ids >= 0).astype(np.float32), 5, "s", "t"), 4)
    assert learned().tolist() == exchange.weights.tolist()
    np.testing.assert_array_equal(learned.whole().weights, learned.matrix.weights)


def test_logits_stay_float32_in_a_model_of_another_precision():
    learned, _ = learned_of(Problem(seed=3).matrix)
    before = learned.logits.detach().clone()
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), learned).bfloat16()
    assert model[0].weight.dtype == torch.bfloat16
    assert learned.logits.dtype == torch.float32
    torch.testing.assert_close(learned.logits.detach(), before, rtol=0, atol=0)


def test_descent_finds_the_split_that_the_teacher_uses():
    """A student sure of a token that W spells as two: the row moves to the teacher's shares."""
    matrix = ProjectionMatrix(np.array([[0, 1]], np.int32), np.array([[0.9, 0.1]], np.float32), 2, "s", "t")
    learned, exchange = learned_of(matrix, 1)
    divergence = ProjectedKL(exchange)
    optimizer = torch.optim.Adam(learned.parameters(), lr=0.1)
    p_s, p_t = torch.ones(1, 1), torch.tensor([[0.3, 0.7]])
    order = torch.from_numpy(divergence.ownership.order)
    shown = torch.zeros(1, divergence.ownership.shard.rows)
    shown[:, :2] = p_t[:, order]
    for _ in range(200):
        entries = learned()
        with torch.no_grad():
            compared = divergence.finish(divergence.start(p_s, entries), shown.clone(), torch.ones(1))
        optimizer.zero_grad()
        entries.backward(compared.by_entry)
        optimizer.step()
    assert float(compared.values[0]) < 1e-5
    np.testing.assert_allclose(learned.whole().weights, p_t.numpy(), atol=1e-2)

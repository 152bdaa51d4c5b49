"""The exchange between vocabularies: W^T p and W g against the dense matrix, each other's transpose, on any ranks."""

import numpy as np
import pytest
import torch
import torch.distributed as dist
from cases import random_matrix
from dense import dense_w
from ranks import run_ranks

from nemo_xtoken.errors import InputError
from nemo_xtoken.parallel.exchange import VocabularyExchange
from nemo_xtoken.parallel.layout import VocabularyShard

V_S, V_T, PAD_S, PAD_T = 21, 30, 24, 32


def problem(empty):
    rng = np.random.default_rng(1)
    matrix = random_matrix(rng, V_S, V_T, empty=empty, reach=0.8)
    p = torch.zeros(5, PAD_S, dtype=torch.float64)
    p[:, :V_S] = torch.from_numpy(rng.random((5, V_S)))
    g = torch.zeros(5, PAD_T, dtype=torch.float64)
    g[:, :V_T] = torch.from_numpy(rng.normal(size=(5, V_T)))
    return matrix, p, g, torch.from_numpy(rng.normal(size=5))


def both_ways(empty, group=None):
    matrix, p, g, g_rest = problem(empty)
    ranks, rank = (1, 0) if group is None else (dist.get_world_size(group), dist.get_rank(group))
    exchange = VocabularyExchange(matrix, VocabularyShard(V_S, PAD_S, group), VocabularyShard(V_T, PAD_T, group))
    q, rest = exchange.project(p.chunk(ranks, 1)[rank])
    out = exchange.pull(g.chunk(ranks, 1)[rank], g_rest)
    return q.numpy(), rest.numpy(), out.numpy()


def on_world(empty):
    return both_ways(empty, dist.group.WORLD)


@pytest.mark.parametrize("empty", [0.0, 0.3])
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_equals_the_dense_matrix(ranks, empty):
    matrix, p, g, g_rest = problem(empty)
    w = dense_w(matrix, V_S, V_T)
    parts = [both_ways(empty)] if ranks == 1 else run_ranks(ranks, on_world, empty)
    q = np.concatenate([part[0] for part in parts], 1)
    pulled = np.concatenate([part[2] for part in parts], 1)
    want = (p[:, :V_S] @ w).numpy()
    np.testing.assert_allclose(q[:, :V_T], want[:, :V_T], rtol=1e-6, atol=1e-9)
    assert (q[:, V_T:] == 0).all()
    for part in parts:
        np.testing.assert_allclose(part[1], want[:, V_T], rtol=1e-6, atol=1e-12)
    closed = torch.cat([g[:, :V_T], g_rest[:, None]], 1)
    np.testing.assert_allclose(pulled[:, :V_S], (closed @ w.T).numpy(), rtol=1e-6, atol=1e-9)
    assert (pulled[:, V_S:] == 0).all()


def test_pull_is_the_derivative_of_project():
    """gradcheck of the hand-written transpose: <g, W^T p> differentiated by p is W g."""
    matrix, p = problem(0.3)[:2]
    exchange = VocabularyExchange(matrix, VocabularyShard(V_S, PAD_S), VocabularyShard(V_T, PAD_T))

    class Project(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return exchange.project(x)

        @staticmethod
        def backward(ctx, g, g_rest):
            return exchange.pull(g, g_rest)

    assert torch.autograd.gradcheck(Project.apply, (p.requires_grad_(),))


def test_refuses_a_matrix_of_other_vocabularies():
    matrix = problem(0.0)[0]
    with pytest.raises(InputError, match="teacher vocabulary of 30"):
        VocabularyExchange(matrix, VocabularyShard(V_S, PAD_S), VocabularyShard(29, PAD_T))


def test_refuses_an_output_layer_that_is_too_small_or_does_not_divide():
    with pytest.raises(InputError, match="20 rows for a vocabulary of 21"):
        VocabularyShard(21, 20)
    assert all("6 rows" in message for message in run_ranks(4, indivisible))


def indivisible():
    try:
        VocabularyShard(5, 6, dist.group.WORLD)
    except InputError as error:
        return str(error)
    return ""

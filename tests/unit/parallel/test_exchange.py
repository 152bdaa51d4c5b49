"""The exchange between vocabularies: W^T p and W g against the dense matrix, each other's transpose, on any ranks."""

import dataclasses

import numpy as np
import pytest
import torch
import torch.distributed as dist
from cases import random_matrix
from dense import dense_w
from ranks import run_ranks

from nemo_xtoken.errors import InputError
from nemo_xtoken.parallel.exchange import VocabularyExchange
from nemo_xtoken.parallel.ownership import Ownership
from nemo_xtoken.parallel.vocabulary_shard import VocabularyShard
from nemo_xtoken.projection.matrix import ProjectionMatrix

V_S, V_T, PAD_S = 21, 30, 24
LAYOUTS = ("co_sharded", "even", "shuffled")


@dataclasses.dataclass(frozen=True)
class PlannedShard(VocabularyShard):
    """The rows that the first rank would hold in a group that is not there."""

    planned: int = 1

    @property
    def ranks(self):
        return self.planned

    @property
    def rank(self):
        return 0


def problem(empty, swapped=False):
    rng = np.random.default_rng(1)
    v_s, v_t = (V_T, V_S) if swapped else (V_S, V_T)
    matrix = random_matrix(rng, v_s, v_t, empty=empty, reach=0.8)
    return matrix, *(torch.from_numpy(x) for x in (rng.random((5, v_s)), rng.normal(size=(5, v_t)), rng.normal(size=5)))


def ownership_of(layout, matrix, student):
    if layout == "co_sharded":
        return Ownership.co_sharded(matrix, student)
    even = Ownership.even(matrix.teacher_size, student.group)
    if layout == "even":
        return even
    return dataclasses.replace(even, order=np.random.default_rng(9).permutation(matrix.teacher_size))


def columns(x, order, shard):
    """This rank's columns of a whole table, padded with zeros."""
    out = x.new_zeros((x.shape[0], shard.padded))
    out[:, : x.shape[1]] = x if order is None else x[:, torch.from_numpy(order)]
    return out[:, shard.start : shard.start + shard.rows].contiguous()


def entries_of(matrix, student, ownership):
    """(student tokens, teacher tokens) of the entries of this rank's rows that are not in place, row after row."""
    s, slot = np.nonzero(matrix.ids >= 0)
    t = matrix.ids[s, slot].astype(np.int64)
    (rank, row), (owner, column) = np.divmod(s, student.rows), np.divmod(ownership.owned[t], ownership.shard.rows)
    in_place = (matrix.weights[s, slot] == 1) & (owner == rank) & (column == row)
    mine = (rank == student.rank) & ~in_place
    return s[mine], t[mine]


def both_ways(empty, layout, swapped, group=None):
    """Everything in the teacher's own order again, the ranks' parts beside each other."""
    matrix, p, g, g_rest = problem(empty, swapped)
    student = VocabularyShard(matrix.student_size, 32 if swapped else PAD_S, group)
    ownership = ownership_of(layout, matrix, student)
    exchange = VocabularyExchange(matrix, student, ownership)
    weights = exchange.weights.double() * 1.0
    started = exchange.start(columns(p, None, student), weights)
    q, rest = started.finish()
    out, by_entry = started.pull(columns(g, ownership.order, ownership.shard), g_rest)
    entries = *entries_of(matrix, student, ownership), by_entry.numpy()
    return q.numpy(), rest.numpy(), out.numpy(), entries, exchange.crossing, ownership


def on_world(*args):
    return both_ways(*args, dist.group.WORLD)[:5]


@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("empty", [0.0, 0.3])
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_equals_the_dense_matrix(ranks, empty, layout, swapped):
    matrix, p, g, g_rest = problem(empty, swapped)
    v_s, v_t = matrix.student_size, matrix.teacher_size
    w = dense_w(matrix, v_s, v_t)
    alone = both_ways(empty, layout, swapped)
    parts = [alone] if ranks == 1 else run_ranks(ranks, on_world, empty, layout, swapped)
    order = ownership_of(layout, matrix, PlannedShard(v_s, 32 if swapped else PAD_S, planned=ranks)).order
    q = np.concatenate([part[0] for part in parts], 1)
    pulled = np.concatenate([part[2] for part in parts], 1)
    want = (p @ w).numpy()
    np.testing.assert_allclose(q[:, :v_t], want[:, order], rtol=1e-6, atol=1e-9)
    assert (q[:, v_t:] == 0).all()
    for part in parts:
        np.testing.assert_allclose(part[1], want[:, v_t], rtol=1e-6, atol=1e-12)
    closed = torch.cat([g, g_rest[:, None]], 1)
    np.testing.assert_allclose(pulled[:, :v_s], (closed @ w.T).numpy(), rtol=1e-6, atol=1e-9)
    assert (pulled[:, v_s:] == 0).all()
    for part in parts:  # by W[s, t]: sum over rows of p[s] g[t]
        s, t, by_entry = part[3]
        np.testing.assert_allclose(by_entry, (p[:, s] * g[:, t]).sum(0).numpy(), rtol=1e-6, atol=1e-9)


def sent_on_rank(layout):
    """What the plan says is sent by each rank, and what is: counted at the collective, forward and backward."""
    matrix, p, g, g_rest = problem(0.3)
    student = VocabularyShard(V_S, PAD_S, dist.group.WORLD)
    ownership = ownership_of(layout, matrix, student)
    exchange = VocabularyExchange(matrix, student, ownership)
    counted, real = [], dist.all_to_all_single
    dist.all_to_all_single = lambda out, x, *args, **kwargs: counted.append(x.numel()) or real(out, x, *args, **kwargs)
    try:
        started = exchange.start(columns(p, None, student))
        started.finish()
        started.pull(columns(g, ownership.order, ownership.shard), g_rest)
    finally:
        dist.all_to_all_single = real
    return exchange.crossing.tolist(), counted, exchange.bytes_a_chunk(8) * p.shape[0]


@pytest.mark.parametrize("ranks", [2, 4])
def test_what_is_sent_is_what_was_planned_and_co_sharding_sends_least(ranks):
    total = {}
    for layout in LAYOUTS:
        results = run_ranks(ranks, sent_on_rank, layout)
        crossing = results[0][0]
        assert all(result[0] == crossing for result in results)
        assert [result[1][0] for result in results] == [5 * n for n in crossing]
        in_all = sum(8 * n for result in results for n in result[1])
        assert results[0][2] * ranks == in_all
        total[layout] = sum(crossing)
    planned = VocabularyExchange.co_sharded(problem(0.3)[0], PlannedShard(V_S, PAD_S, planned=ranks))
    assert planned.crossing.sum() == total["co_sharded"] < total["even"]
    assert total["co_sharded"] < total["shuffled"]


def test_one_process_sends_nothing():
    matrix = problem(0.3)[0]
    exchange = VocabularyExchange.co_sharded(matrix, VocabularyShard(V_S, PAD_S))
    assert exchange.crossing.tolist() == [0]
    assert exchange.bytes_a_chunk(4) == 0


def classes_on(group=None, layout="even"):
    """Of 0/1 rows, most of which are not in place: the sums of classes, REST, the way back, and which way was taken."""
    matrix, p, g, g_rest = classes()
    student = VocabularyShard(V_S, PAD_S, group)
    ownership = ownership_of(layout, matrix, student)
    exchange = VocabularyExchange(matrix, student, ownership)
    started = exchange.start(columns(p, None, student))
    q, rest = started.finish()
    out, by_entry = started.pull(columns(g, ownership.order, ownership.shard), g_rest)
    assert by_entry is None
    return q.numpy(), rest.numpy(), out.numpy(), exchange.whole


def classes():
    random = np.random.default_rng(5)
    ids = random.choice([3, 8, 21, 27], V_S).astype(np.int32)
    ids[random.random(V_S) < 0.2] = -1
    matrix = ProjectionMatrix(ids[:, None], (ids[:, None] >= 0).astype(np.float32), V_T, "", "")
    return matrix, *problem(0.0)[1:]


def classes_on_rank(layout):
    return classes_on(dist.group.WORLD, layout)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_classes_equal_the_dense_matrix(ranks, layout):
    matrix, p, g, g_rest = classes()
    w = dense_w(matrix, V_S, V_T)
    parts = [classes_on(layout=layout)] if ranks == 1 else run_ranks(ranks, classes_on_rank, layout)
    assert all(part[3] for part in parts)
    order = ownership_of(layout, matrix, PlannedShard(V_S, PAD_S, planned=ranks)).order
    want = (p @ w).numpy()
    q, pulled = (np.concatenate([part[i] for part in parts], 1) for i in (0, 2))
    np.testing.assert_allclose(q[:, :V_T], want[:, order], rtol=1e-12, atol=1e-12)
    for part in parts:
        np.testing.assert_allclose(part[1], want[:, V_T], rtol=1e-12, atol=1e-12)
    closed = torch.cat([g, g_rest[:, None]], 1)
    np.testing.assert_allclose(pulled[:, :V_S], (closed @ w.T).numpy(), rtol=1e-12, atol=1e-12)
    assert (pulled[:, V_S:] == 0).all()


def test_pull_is_the_derivative_of_project():
    """gradcheck of the hand-written transpose, by p and by the entries of W."""
    matrix, p = problem(0.3)[:2]
    exchange = VocabularyExchange.co_sharded(matrix, VocabularyShard(V_S, PAD_S))

    class Project(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, weights):
            ctx.started = exchange.start(x, weights)
            return ctx.started.finish()

        @staticmethod
        def backward(ctx, g, g_rest):
            return ctx.started.pull(g, g_rest)

    x = torch.nn.functional.pad(p, (0, PAD_S - V_S)).requires_grad_()
    assert torch.autograd.gradcheck(Project.apply, (x, exchange.weights.double().requires_grad_()))


def test_refuses_a_matrix_of_other_vocabularies():
    matrix = problem(0.0)[0]
    with pytest.raises(InputError, match="teacher vocabulary of 30"):
        VocabularyExchange(matrix, VocabularyShard(V_S, PAD_S), Ownership.even(29, None))
    with pytest.raises(InputError, match="student vocabulary of 21"):
        VocabularyExchange.co_sharded(matrix, VocabularyShard(20, PAD_S))


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

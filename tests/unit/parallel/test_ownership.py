"""Who owns which teacher token: a permutation, beside the student's tokens, and what is left to send."""

import numpy as np
import pytest
import torch
import torch.distributed as dist
from cases import random_matrix
from hypothesis import given, settings
from hypothesis import strategies as st
from ranks import run_ranks
from real_tokenizers import real

from nemo_xtoken.errors import InputError
from nemo_xtoken.parallel.exchange import VocabularyExchange
from nemo_xtoken.parallel.ownership import Ownership, reorder_rows, spread_rows
from nemo_xtoken.parallel.vocabulary_shard import VocabularyShard
from nemo_xtoken.projection.build import build_projection
from nemo_xtoken.projection.matrix import ProjectionMatrix


@given(
    seed=st.integers(0, 10_000),
    v_s=st.integers(4, 60),
    v_t=st.integers(4, 60),
    empty=st.sampled_from([0.0, 0.5, 1.0]),
)
@settings(deadline=None, max_examples=60)
def test_a_permutation_that_puts_single_entries_in_place_where_there_is_room(seed, v_s, v_t, empty):
    matrix = random_matrix(np.random.default_rng(seed), v_s, v_t, empty=empty)
    shard = VocabularyShard(v_s, v_s + 3)
    ownership = Ownership.co_sharded(matrix, shard)
    assert (np.sort(ownership.order) == np.arange(v_t)).all()
    assert (ownership.order[ownership.owned] == np.arange(v_t)).all()
    assert (Ownership.co_sharded(matrix, shard).order == ownership.order).all()
    single = np.flatnonzero((matrix.ids >= 0).sum(axis=1) == 1)
    wanted = {int(t): [int(s) for s in single if matrix.ids[s].max() == t] for t in matrix.ids[single].max(axis=1)}
    for token, students in wanted.items():
        if students[0] < v_t:
            assert ownership.owned[token] == students[0]


def identity(size):
    ids = np.arange(size, dtype=np.int32)[:, None]
    return ProjectionMatrix(ids, np.ones((size, 1), np.float32), size, "s", "t")


def crossing(student_size, padded, teacher_size):
    matrix = identity(max(student_size, teacher_size))
    matrix = ProjectionMatrix(
        matrix.ids[:student_size], matrix.weights[:student_size], max(student_size, teacher_size), "s", "t"
    )
    exchange = VocabularyExchange.co_sharded(matrix, VocabularyShard(student_size, padded, dist.group.WORLD))
    return exchange.crossing.tolist(), exchange.in_place.sum().item(), exchange.weights.numel()


def test_exact_rows_never_leave_their_rank():
    """Where the teacher has at least as many rows a rank as the student."""
    results = run_ranks(4, crossing, 50, 52, 128)
    assert [result[0] for result in results] == [[0] * 4] * 4
    assert sum(result[1] for result in results) == 50
    assert sum(result[2] for result in results) == 0


def reordered(padded):
    group = dist.group.WORLD
    held = VocabularyShard(21, padded, group)
    whole = torch.arange(padded * 3, dtype=torch.float32).view(padded, 3)
    mine = whole[held.start : held.start + held.rows]
    matrix = random_matrix(np.random.default_rng(0), 30, 21)
    ownership = Ownership.co_sharded(matrix, VocabularyShard(30, 32, group))
    return reorder_rows(mine, held, ownership).numpy(), ownership.order


@pytest.mark.parametrize("padded", [24, 40])
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_rows_go_where_they_are_owned_from_any_padding(ranks, padded):
    results = run_ranks(ranks, reordered, padded)
    order = results[0][1]
    rows = np.concatenate([result[0] for result in results])
    assert (rows[:21] == np.arange(padded * 3).reshape(padded, 3)[order]).all()
    assert (rows[21:] == 0).all()


def spread():
    """Ranks 2 and 0 hold the layer; ranks 0 and 1, then 3 alone, want it, in different orders."""
    group = dist.new_group([0, 1])
    whole = torch.arange(24 * 3).view(24, 3).float()
    rank = dist.get_rank()
    mine = {2: whole[:12], 0: whole[12:]}.get(rank, whole[:0])
    orders = []
    if rank in (0, 1):
        shard = VocabularyShard(21, 24, group)
        orders = [Ownership(np.random.default_rng(n).permutation(21), shard) for n in range(2)]
    elif rank == 3:
        orders = [Ownership.in_order(VocabularyShard(21, 22))]
    found = spread_rows(mine, 12, [2, 0], dist.group.WORLD, orders)
    return [rows.numpy() for rows in found], [o.order[o.shard.start : o.shard.start + o.shard.rows] for o in orders]


def test_rows_go_to_other_ranks_than_those_that_hold_them():
    whole = np.arange(24 * 3).reshape(24, 3)
    counts = []
    for found, orders in run_ranks(4, spread):
        counts.append(len(found))
        for rows, order in zip(found, orders, strict=True):
            assert (rows[: len(order)] == whole[order]).all()
            assert (rows[len(order) :] == 0).all()
    assert counts == [2, 2, 0, 1]


def test_a_layer_of_another_vocabulary_is_refused():
    with pytest.raises(InputError, match="for 22 tokens, a loss for 21"):
        reorder_rows(torch.zeros(24, 3), VocabularyShard(22, 24), Ownership.even(21, None))
    with pytest.raises(InputError, match="an order of 3 tokens for a vocabulary of 4"):
        Ownership(np.arange(3), VocabularyShard(4, 4))


def sent_for_llama(matrix, padded):
    """Entries of one chunk that go through the collective, forward and backward, and the plan's."""
    student = VocabularyShard(matrix.student_size, padded, dist.group.WORLD)
    exchange = VocabularyExchange.co_sharded(matrix, student)
    counted, original = [], dist.all_to_all_single
    dist.all_to_all_single = lambda out, x, *a, **k: counted.append(x.numel()) or original(out, x, *a, **k)
    try:
        started = exchange.start(torch.rand(1, student.rows))
        q, rest = started.finish()
        started.pull(torch.rand_like(q), rest)
    finally:
        dist.all_to_all_single = original
    return counted, exchange.crossing.tolist()


@pytest.mark.parametrize(("ranks", "most"), [(2, 2950), (4, 3650), (8, 5000)])
def test_llama_to_qwen_sends_a_fiftieth_of_a_dense_exchange(ranks, most):
    """A dense reduce-scatter sends 75,834, 113,751 and 132,710 entries a rank and chunk."""
    matrix = build_projection(real("llama3"), real("qwen3"))
    results = run_ranks(ranks, sent_for_llama, matrix, -(-matrix.student_size // (128 * ranks)) * 128 * ranks)
    forward = [counted[0] for counted, _ in results]
    assert all(planned == forward for _, planned in results)
    assert 0 < max(forward) <= most
    assert sum(counted[1] for counted, _ in results) == sum(forward)

"""Megatron's order of sequence parts, padded documents, and rows that change ranks with their gradients."""

import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from ranks import run_ranks

from nemo_xtoken.errors import InputError
from nemo_xtoken.parallel import context_parallel as context
from nemo_xtoken.parallel.context_parallel import ContextLayout, move_rows


@pytest.fixture
def ranks(monkeypatch):
    """Makes a group of that many ranks out of a number, for layouts alone."""
    monkeypatch.setattr(context, "group_size", lambda group: group or 1)


def test_samples_are_cut_as_megatron_cuts_them(ranks):
    assert ContextLayout.zigzag(1, 8, 2).positions.tolist() == [[0, 1, 6, 7], [2, 3, 4, 5]]
    assert ContextLayout.zigzag(2, 8, 4).positions.tolist() == [
        [0, 7, 8, 15],
        [1, 6, 9, 14],
        [2, 5, 10, 13],
        [3, 4, 11, 12],
    ]
    assert ContextLayout.zigzag(2, 5, None).positions.tolist() == [list(range(10))]
    with pytest.raises(InputError, match="6 positions, context parallel over 2"):
        ContextLayout.zigzag(1, 6, 2)


def test_documents_are_cut_one_by_one(ranks):
    """Of 5, 4 and 1 tokens: padded to 8, 4 and 4; rank 0 has the first and the last quarter of each."""
    layout = ContextLayout.by_document(torch.tensor([0, 5, 9]), 10, 2)
    assert layout.bounds.tolist() == [0, 8, 12, 16]
    assert layout.positions.tolist() == [[0, 1, -1, -1, 5, 8, 9, -1], [2, 3, 4, -1, 6, 7, -1, -1]]
    longer = ContextLayout.by_document(torch.tensor([0, 5, 9]), 10, 2, multiple=3)
    assert longer.bounds.tolist() == [0, 8, 12, 24]
    assert longer.positions.shape == (2, 12)
    assert longer.positions[:, :6].tolist() == layout.positions[:, :6].tolist()


@given(
    sizes=st.lists(st.integers(1, 20), min_size=1, max_size=9),
    size=st.integers(1, 5),
    multiple=st.sampled_from([1, 2, 4]),
)
@settings(deadline=None, max_examples=60)
def test_every_position_is_there_once(sizes, size, multiple):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(context, "group_size", lambda group: group or 1)
        starts = torch.tensor([0, *np.cumsum(sizes)[:-1]])
        total = sum(sizes)
        layout = ContextLayout.by_document(starts, total, size, multiple)
    flat = layout.positions.flatten()
    assert sorted(flat[flat >= 0].tolist()) == list(range(total))
    assert layout.positions.shape[1] % multiple == 0
    assert torch.equal(flat[layout.rows()], torch.arange(total))
    lengths = torch.diff(layout.bounds)
    assert (lengths[:-1] < torch.tensor(sizes)[:-1] + 2 * size).all()
    if size > 1:
        assert (lengths % (2 * size) == 0).all()


def test_take_fills_padding():
    layout = ContextLayout(torch.tensor([[2, -1, 0]]))
    assert layout.take(torch.tensor([5.0, 6.0, 7.0]), 9.0).tolist() == [7.0, 9.0, 5.0]
    assert layout.take(torch.tensor([[5, 6], [6, 7], [7, 8]])).tolist() == [[7, 8], [0, 0], [5, 6]]


TOTAL, WIDTH = 24, 5


def on_rank(seed, empty):
    group = dist.group.WORLD
    size, rank = dist.get_world_size(), dist.get_rank()
    random = np.random.default_rng(seed)
    starts = torch.tensor([0, 7, 8, 19])
    out = []
    for layout in (ContextLayout.zigzag(2, TOTAL // 2, group), ContextLayout.by_document(starts, TOTAL, group)):
        order = random.permutation(TOTAL)[: TOTAL - 5]
        cuts = np.sort(random.integers(0, len(order) + 1, size - 1))
        if empty:
            cuts[:] = 0  # all for the last rank
        wanted = [torch.from_numpy(part) for part in np.split(order, cuts)]
        whole = torch.arange(TOTAL * WIDTH, dtype=torch.float32).view(TOTAL, WIDTH)
        hidden = layout.take(whole, float("nan")).requires_grad_()
        moved = move_rows(hidden, layout, wanted)
        assert torch.equal(moved, whole[wanted[rank]])
        (moved * (1 + moved.detach())).sum().backward()
        kept = layout.local >= 0
        asked = torch.zeros(TOTAL, dtype=torch.bool)
        asked[order] = True
        expected = torch.where(asked[:, None], 1 + whole, 0)
        assert torch.equal(hidden.grad[kept], expected[layout.local[kept]])
        assert not hidden.grad[~kept].any()
        out.append(moved.shape[0])
    return out


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("empty", [False, True])
def test_rows_reach_who_wants_them_and_gradients_go_back(size, empty):
    counts = np.array(run_ranks(size, on_rank, 3, empty))
    assert (counts.sum(0) == TOTAL - 5).all()


def test_one_process_takes_its_own_rows():
    layout = ContextLayout.zigzag(1, 4, None)
    hidden = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda h: move_rows(h, layout, [torch.tensor([3, 0])]), (hidden,))

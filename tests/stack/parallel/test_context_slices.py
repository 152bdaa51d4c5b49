"""The slices of a batch that context-parallel ranks take are those that Megatron takes."""

import pytest
import torch

from nemo_xtoken.parallel import context_parallel
from nemo_xtoken.parallel.context_parallel import ContextLayout


@pytest.fixture
def megatron(monkeypatch):
    """Megatron's place in a group, to be set, and its function for a batch; ours takes a number for a group."""
    utils = pytest.importorskip("megatron.core.utils", reason="megatron-core is not installed")

    class Of:
        size, rank = 1, 0

    state = Of()
    monkeypatch.setattr(context_parallel, "group_size", lambda group: group or 1)
    monkeypatch.setattr(utils.parallel_state, "get_context_parallel_world_size", lambda: state.size)
    monkeypatch.setattr(utils.parallel_state, "get_context_parallel_rank", lambda: state.rank)
    return state, utils.get_batch_on_this_cp_rank


def test_as_megatrons_own_slices(megatron):
    """Against megatron-core's function for a batch, whose ranks are asked for one after the other."""
    place, get_batch_on_this_cp_rank = megatron
    tokens = torch.arange(3 * 24).view(3, 24)
    for size in (2, 4):
        for rank in range(size):
            place.size, place.rank = size, rank
            expected = get_batch_on_this_cp_rank({"tokens": tokens.clone()})["tokens"]
            found = ContextLayout(ContextLayout.zigzag(3, 24, size).positions[rank : rank + 1])
            assert torch.equal(found.take(tokens.flatten()).view(3, -1), expected)

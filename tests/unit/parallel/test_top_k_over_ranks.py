"""The k largest over ranks: as a sort by (value, id) finds them, whatever the layout, ties included."""

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from ranks import run_ranks

from nemo_xtoken.parallel.top_k_over_ranks import top_k_mask


def by_sorting(x, ids, k):
    mask = torch.zeros_like(x, dtype=torch.bool)
    for row, values in enumerate(x.tolist()):
        best = sorted(range(len(values)), key=lambda i: (-values[i], int(ids[i])))[:k]
        mask[row, best] = True
    return mask


def values(seed, rows=6, columns=24):
    """Rows without ties, with some, with nothing but ties, and with zeros in most places."""
    random = torch.Generator().manual_seed(seed)
    x = torch.rand(rows, columns, generator=random, dtype=torch.float64)
    x[1] = (x[1] * 4).floor()
    x[2] = 0.5
    x[3, 3:] = 0
    return x, torch.randperm(columns, generator=random) * 3


@given(seed=st.integers(0, 10_000), k=st.integers(1, 30))
@settings(deadline=None, max_examples=60)
def test_alone_it_is_what_sorting_finds(seed, k):
    x, ids = values(seed)
    assert torch.equal(top_k_mask(x, ids, k, None), by_sorting(x, ids, k))


def on_rank(cases):
    rank, ranks = dist.get_rank(), dist.get_world_size()
    return [
        top_k_mask(x.chunk(ranks, 1)[rank], ids.chunk(ranks)[rank], k, dist.group.WORLD).numpy() for x, ids, k in cases
    ]


@pytest.mark.parametrize("ranks", [2, 4])
def test_over_ranks_it_is_the_same_choice(ranks):
    cases = [(*values(seed), k) for seed in range(4) for k in (1, 2, 5, 7, 23, 24, 40)]
    results = run_ranks(ranks, on_rank, cases)
    for number, (x, ids, k) in enumerate(cases):
        got = torch.cat([torch.from_numpy(result[number]) for result in results], 1)
        assert torch.equal(got, by_sorting(x, ids, k))


def test_a_rank_without_columns_takes_part():
    x, ids = values(0)
    results = run_ranks(2, on_uneven_rank, x, ids, 5)
    assert torch.equal(torch.cat([torch.from_numpy(r) for r in results], 1), by_sorting(x, ids, 5))


def on_uneven_rank(x, ids, k):
    mine = slice(None) if dist.get_rank() == 0 else slice(0, 0)
    return top_k_mask(x[:, mine], ids[mine], k, dist.group.WORLD).numpy()

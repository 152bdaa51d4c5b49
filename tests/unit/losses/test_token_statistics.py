"""Cross-entropy and accuracy of labelled text, against the whole table of logits, for any sharding."""

import numpy as np
import pytest
import torch
import torch.distributed as dist
from ranks import run_ranks

from nemo_xtoken.data.batch import IGNORED
from nemo_xtoken.losses.base import ModelOutput
from nemo_xtoken.objective.token_statistics import token_statistics
from nemo_xtoken.parallel.head import OutputHead
from nemo_xtoken.parallel.vocabulary_shard import VocabularyShard

V, H, N = 21, 5, 30


def problem(padded, dtype=torch.float32):
    """Hidden states, an output layer with ties across its parts and loud padding, and labels with gaps."""
    random = torch.Generator().manual_seed(0)
    whole = lambda *shape: torch.randint(-3, 4, shape, generator=random).to(dtype)  # noqa: E731 (exact logits)
    hidden, weight = whole(N, H), whole(padded, H)
    weight[:V] = torch.randint(-3, 4, (V, H), generator=torch.Generator().manual_seed(1)).to(dtype)
    weight[3], weight[8] = torch.tensor([4.0, 4, 0, 4, 0]), torch.tensor([-4.0, 0, 4, 0, 4])
    weight[15] = weight[3]  # the same logit in another rank's part, and in the same one
    weight[4] = weight[3]
    weight[20] = weight[8]
    weight[V:] *= 100
    hidden[:6] = weight[3]  # these predict 3, tied with 4 and 15
    hidden[6:9] = weight[8]
    labels = torch.randint(0, V, (N,), generator=random)
    labels[:9] = torch.tensor([3, 4, 15, 3, 15, IGNORED, 8, 20, 8])
    labels[20:24] = IGNORED
    return hidden, weight, labels


def expected(padded):
    hidden, weight, labels = problem(padded)
    kept = labels != IGNORED
    z = (hidden.double() @ weight[:V].double().t())[kept]
    ce = -torch.log_softmax(z, 1)[torch.arange(len(z)), labels[kept]].sum()
    best = np.argmax(z.numpy(), axis=1)  # of equal logits the first
    return float(ce), int((best == labels[kept].numpy()).sum()), len(z)


def on_rank(padded, tile_rows, labels=None):
    hidden, weight, made = problem(padded)
    ranks, rank = dist.get_world_size(), dist.get_rank()
    shard = VocabularyShard(V, padded, dist.group.WORLD)
    part = weight.chunk(ranks)[rank].contiguous()
    labels = made if labels is None else labels
    found = token_statistics(ModelOutput(hidden, OutputHead(part, shard)), labels, tile_rows)
    return float(found.total), int(found.metrics["correct"]), found.count


@pytest.mark.parametrize("tile_rows", [7, 256])
@pytest.mark.parametrize(("ranks", "padded"), [(1, 21), (1, 24), (2, 24), (4, 24), (4, 32)])
def test_sums_are_those_of_the_whole_table(ranks, padded, tile_rows):
    ce, correct, count = expected(padded)
    assert 3 <= correct < count
    for found in run_ranks(ranks, on_rank, padded, tile_rows):
        assert found[0] == pytest.approx(ce, rel=1e-5)
        assert found[1:] == (correct, count)


def test_of_equal_logits_the_smallest_id_is_the_prediction():
    """Rows 0 to 8 have ties; 3 and 8 are the smallest of theirs."""
    _, _, labels = problem(24)
    only = torch.full_like(labels, IGNORED)
    only[:9] = labels[:9]
    for ranks in (1, 2, 4):
        for _, correct, count in run_ranks(ranks, on_rank, 24, 256, only):
            assert (correct, count) == (4, 8)


def test_without_labels_there_is_nothing():
    none = torch.full((N,), IGNORED)
    for ranks in (1, 2):
        assert run_ranks(ranks, on_rank, 24, 256, none) == [(0.0, 0, 0)] * ranks


def test_one_process_without_a_group():
    hidden, weight, labels = problem(24)
    found = token_statistics(ModelOutput(hidden, OutputHead(weight, VocabularyShard(V, 24))), labels)
    ce, correct, count = expected(24)
    assert float(found.total) == pytest.approx(ce, rel=1e-5)
    assert (int(found.metrics["correct"]), found.count) == (correct, count)
    assert not found.total.requires_grad

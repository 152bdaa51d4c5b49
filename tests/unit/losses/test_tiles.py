"""How many rows a tile has, from the vocabularies, the widths and the device."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from nemo_xtoken.losses.base import ModelOutput
from nemo_xtoken.objective.terms import cross_tokenizer_loss
from nemo_xtoken.objective.tiles import Tile, rows_within, together
from nemo_xtoken.parallel.head import OutputHead
from nemo_xtoken.parallel.vocabulary_shard import VocabularyShard


def heads(hidden, device="meta"):
    """Output layers of Llama-3 and Qwen3 without their memory, of these widths."""
    return [
        OutputHead(torch.empty(size, width, device=device), VocabularyShard(size, size))
        for size, width in zip((128_256, 151_680), hidden, strict=True)
    ]


def test_rows_on_a_cpu_follow_the_widths():
    """At real widths a tile pays for reading the weights; at none it stays small."""
    row, logits = 4 * (5 * 128_256 + 6 * 151_680), 4 * (2 * 128_256 + 151_680)
    found = {}
    for hidden in ((64, 64), (512, 512), (2048, 2560)):
        student, teacher = heads(hidden)
        found[hidden] = rows_within(None, student, [teacher])
        assert 96 * 2**20 // row <= found[hidden] <= 2**30 // logits
    assert list(found.values()) == sorted(found.values())
    assert found[2048, 2560] > 3 * found[64, 64]
    assert rows_within(None, heads((2048, 0))[0], []) > 100


def test_rows_on_a_gpu_are_whole_blocks():
    with FakeTensorMode():
        student, teacher = heads((2048, 2560), "cuda")
        rows = rows_within(None, student, [teacher])
        assert rows % 128 == 0
        assert rows == 1024  # in 6 GiB
        assert rows_within(1024, student, [teacher]) == 128
        assert rows_within(600, student, [teacher]) == 101  # less than a block: as many as there is room for


@pytest.mark.parametrize("device", ["meta", "cuda"])
def test_what_is_set_is_kept_to(device):
    with FakeTensorMode():
        student, teacher = heads((2048, 2560), device)
        row = 4 * (5 * 128_256 + 6 * 151_680)
        for mib in (1, 20, 300, 5000):
            assert rows_within(mib, student, [teacher]) * row <= max(row, mib * 2**20)


@pytest.mark.parametrize(("blocks", "tile_rows", "sizes"), [
    ([32] * 16, 318, [256, 256]),
    ([30, 31, 32, 29] * 5, 620, [610]),
    ([30] * 50, 620, [510, 480, 510]),
    ([7, 40, 7], 10, [7, 40, 7]),
    ([5], 10, [5]),
    ([], 10, []),
])  # fmt: skip
def test_blocks_are_taken_together_in_equal_parts(blocks, tile_rows, sizes):
    """A few rows that are left over would take the whole weight and its gradient as many do."""
    stops = [sum(blocks[: number + 1]) for number in range(len(blocks))]
    given = [Tile(slice(stop - size, stop), ()) for size, stop in zip(blocks, stops, strict=True)]
    groups = together(given, tile_rows)
    assert [block for group in groups for block in group] == given
    assert [group[-1].rows.stop - group[0].rows.start for group in groups] == sizes


def test_float16_gradients_are_rounded_after_the_loss_scale():
    """A gradient below the least number of float16 is not 0 where the loss is scaled up, as float16 needs."""
    random = torch.Generator().manual_seed(0)
    labels = torch.randint(50, (1, 6), generator=random)
    hidden = torch.randn(6, 4, generator=random).half().requires_grad_()
    weight = torch.randn(50, 4, generator=random).half().requires_grad_()
    output = ModelOutput(hidden, OutputHead(weight, VocabularyShard(50, 50)))
    terms = cross_tokenizer_loss(output, labels, [], ce_weight=1e-9, tile_rows=4)
    (terms.objective * 2.0**16).backward()
    for tensor in (hidden, weight):
        assert tensor.grad.dtype == torch.float16
        assert tensor.grad.count_nonzero() > tensor.numel() / 2

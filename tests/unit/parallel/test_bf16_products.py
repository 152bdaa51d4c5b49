"""Products of bfloat16 with float32 sums against float64, in every form; and what the output layer makes of them."""

import itertools

import pytest
import torch

from nemo_xtoken.parallel import bf16_products, head
from nemo_xtoken.parallel.bf16_products import product_into
from nemo_xtoken.parallel.head import OutputHead
from nemo_xtoken.parallel.vocabulary_shard import VocabularyShard

M, N, K = 7, 33, 50
needs_amx = pytest.mark.skipif(not torch.cpu._is_amx_tile_supported(), reason="no AMX")


def factor(rows, columns, form):
    """bfloat16 ``[rows, columns]``: as rows, as columns, or as a part of either."""
    whole = torch.randn(rows + 3, columns + 5).bfloat16()
    part = whole[1 : rows + 1, 2 : columns + 2]
    return {"rows": part.contiguous(), "columns": part.t().contiguous().t(), "part": part, "turned": _turned(part)}[
        form
    ]


def _turned(part):
    return torch.randn(part.shape[1] + 2, part.shape[0] + 1).bfloat16()[1:-1, 1:].t()


FORMS = ("rows", "columns", "part", "turned")


@needs_amx
@pytest.mark.parametrize(("a", "b"), list(itertools.product(FORMS, FORMS)))
@pytest.mark.parametrize("add", [False, True])
def test_a_product_is_that_of_float64(a, b, add):
    torch.manual_seed(0)
    left, right = factor(M, K, a), factor(K, N, b)
    out = torch.randn(M, N + 4)[:, 1 : N + 1]
    expected = left.double() @ right.double() + (out.double() if add else 0)
    assert product_into(out, left, right, add)
    torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-5)


def test_what_it_cannot_do_is_left_alone(monkeypatch):
    out = torch.ones(M, N)
    a, b = torch.randn(M, K).bfloat16(), torch.randn(K, N).bfloat16()
    assert not product_into(out, a.float(), b)
    assert not product_into(out.bfloat16(), a, b)
    assert not product_into(out, a, torch.randn(2 * K, 2 * N).bfloat16()[::2, ::2])
    assert not product_into(torch.ones(N, M).t(), a, b)
    monkeypatch.setattr(bf16_products, "_library", lambda: None)
    assert not product_into(out, a, b)
    assert out.eq(1).all()


@needs_amx
def test_the_output_layer_gives_the_same_with_and_without(monkeypatch):
    torch.manual_seed(0)
    weight, hidden, dz = (
        torch.randn(300, 24).bfloat16(),
        torch.randn(9, 24).bfloat16(),
        torch.randn(9, 300).bfloat16().float(),
    )
    layer, found = OutputHead(weight, VocabularyShard.of_local_rows(290, 300, None)), []
    for there in (True, False):
        if not there:
            monkeypatch.setattr(head, "product_into", lambda *_, **__: False)
        sums = torch.ones(300, 24)
        found.append([layer.logits(hidden), layer.backward(dz, hidden, sums), sums, layer.backward(dz, hidden, None)])
    for one, other in zip(*found, strict=True):
        assert one.dtype == torch.float32
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-4)

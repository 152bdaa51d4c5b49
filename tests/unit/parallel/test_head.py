"""Logits of an output layer and the way back, with scaling and soft-capping, in every precision."""

import pytest
import torch

from nemo_xtoken.errors import InputError
from nemo_xtoken.losses.base import ModelOutput
from nemo_xtoken.objective import tiles
from nemo_xtoken.objective.terms import cross_tokenizer_loss
from nemo_xtoken.parallel import head as module
from nemo_xtoken.parallel.head import FreeLogits, OutputHead, bf16_factors
from nemo_xtoken.parallel.vocabulary_shard import VocabularyShard

KINDS = [{}, {"scale": 0.3}, {"softcap": 2.0}, {"scale": 1.7, "softcap": 3.0}]


def tensors(dtype=torch.float64):
    random = torch.Generator().manual_seed(0)
    return [torch.randn(*shape, generator=random, dtype=torch.float64).to(dtype) for shape in ((5, 4), (12, 4))]


def plain(hidden, weight, scale=1.0, softcap=None):
    z = scale * (hidden @ weight.t())
    return z if softcap is None else softcap * torch.tanh(z / softcap)


@pytest.mark.parametrize("kind", KINDS)
def test_logits_and_their_derivative(kind):
    hidden, weight = tensors()
    shard = VocabularyShard(10, 12)
    head = OutputHead(weight, shard, **kind)
    z = head.logits(hidden)
    assert (z[:, 10:] == -torch.inf).all()
    leaves = [x.clone().requires_grad_() for x in (hidden, weight)]
    want = plain(*leaves, **kind)[:, :10]
    torch.testing.assert_close(z[:, :10], want.detach())
    dz = torch.zeros(5, 12, dtype=torch.float64)
    dz[:, :10] = torch.randn(5, 10, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    want.backward(dz[:, :10])
    g_weight = torch.ones_like(weight)  # it adds up
    g_hidden = head.backward(head.by_product(dz.clone(), head.slope(z)), hidden, g_weight)
    torch.testing.assert_close(g_hidden, leaves[0].grad)
    torch.testing.assert_close(g_weight - 1, leaves[1].grad)
    assert (g_weight[10:] == 1).all()


@pytest.mark.parametrize("kind", KINDS)
def test_gradcheck_through_the_loss(kind):
    hidden, weight = tensors()
    labels = torch.tensor([[3, -100, 9, 0, 3]])

    def f(h, w):
        student = ModelOutput(h, OutputHead(w, VocabularyShard(10, 12), **kind))
        return cross_tokenizer_loss(student, labels, tile_rows=2).objective

    assert torch.autograd.gradcheck(f, (hidden.requires_grad_(), weight.requires_grad_()))


def test_bf16_is_summed_in_float32(monkeypatch):
    """The products of bf16 numbers are exact in float32; nothing is rounded to bf16 on the way."""
    monkeypatch.setattr(module, "WIDENED_ROWS", 5)
    hidden, weight = tensors(torch.bfloat16)
    head = OutputHead(weight, VocabularyShard(12, 12))
    z = head.logits(hidden)
    assert z.dtype == torch.float32
    torch.testing.assert_close(z, hidden.float() @ weight.float().t(), rtol=1e-6, atol=1e-6)
    dz = torch.randn(5, 12, generator=torch.Generator().manual_seed(1)).bfloat16().float()  # fast units round it so
    g_weight = torch.zeros(12, 4)
    g_hidden = head.backward(head.by_product(dz.clone(), None), hidden, g_weight)
    assert g_hidden.dtype == torch.float32
    torch.testing.assert_close(g_hidden, dz @ weight.float(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(g_weight, dz.t() @ hidden.float(), rtol=1e-5, atol=1e-5)


def products_may_take(dtype):
    """Whether oneDNN may take the factors of float32's products as that type."""
    return getattr(torch.backends.mkldnn, "fp32_precision", None) == dtype


def test_only_products_of_bf16_may_take_bf16_and_only_meanwhile(monkeypatch):
    """Float32's own stay float32's; what PyTorch was set to comes back, also after an error."""
    if not hasattr(torch.backends.mkldnn, "matmul"):
        pytest.skip("before PyTorch 2.9 there is no such setting")
    asked, mm = [], torch.mm

    def watched(*arguments, **more):
        asked.append(products_may_take("bf16"))
        return mm(*arguments, **more)

    monkeypatch.setattr(torch, "mm", watched)
    monkeypatch.setattr(module, "product_into", lambda *_, **__: False)  # as where there is no AMX
    before = torch.backends.mkldnn.fp32_precision
    for dtype, may in ((torch.bfloat16, True), (torch.float32, False), (torch.float64, False)):
        hidden, weight = tensors(dtype)
        asked.clear()
        OutputHead(weight, VocabularyShard(12, 12)).logits(hidden)
        assert asked == [may]
    with pytest.raises(RuntimeError), bf16_factors(torch.bfloat16):
        raise RuntimeError
    assert torch.backends.mkldnn.fp32_precision == before


@pytest.mark.parametrize("tile_rows", [1, 2, 256])
@pytest.mark.parametrize("block", [2**20, 4 * 12])
def test_gradients_come_back_in_the_types_of_their_tensors(tile_rows, block, monkeypatch):
    """From one product or several, of tiles that are compared at once or row by row."""
    monkeypatch.setattr(tiles, "BLOCK_BYTES", block)
    hidden, weight = (x.requires_grad_() for x in tensors(torch.bfloat16))
    student = ModelOutput(hidden, OutputHead(weight, VocabularyShard(12, 12)))
    cross_tokenizer_loss(student, torch.tensor([[3, 1, 9, 0, 3]]), tile_rows=tile_rows).objective.backward()
    assert hidden.grad.dtype == weight.grad.dtype == torch.bfloat16
    whole = [x.detach().float().requires_grad_() for x in (hidden, weight)]
    z = whole[0] @ whole[1].t()
    torch.nn.functional.cross_entropy(z, torch.tensor([3, 1, 9, 0, 3]), reduction="sum").backward()
    for got, want in zip((hidden.grad, weight.grad), (x.grad for x in whole), strict=True):
        torch.testing.assert_close(got.float(), want, rtol=1e-2, atol=1e-2)


def test_a_frozen_output_layer_gets_no_gradient():
    hidden, weight = tensors()
    student = ModelOutput(hidden.requires_grad_(), OutputHead(weight, VocabularyShard(12, 12)))
    cross_tokenizer_loss(student, torch.tensor([[3, 1, 9, 0, 3]])).objective.backward()
    assert weight.grad is None
    assert float(hidden.grad.abs().sum()) > 0


def test_free_logits_are_their_own_hidden_states():
    z = torch.randn(5, 10, dtype=torch.float64, requires_grad=True)
    student = ModelOutput(z, FreeLogits(VocabularyShard(10, 10)))
    labels = torch.tensor([[3, 1, 9, 0, 3]])
    cross_tokenizer_loss(student, labels, tile_rows=2).objective.backward()
    onehot = torch.nn.functional.one_hot(labels[0], 10)
    torch.testing.assert_close(z.grad, z.detach().softmax(1) - onehot)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_free_logits_take_the_gradient_in_their_own_type_too(dtype):
    """As kernels for a GPU write it."""
    dz = torch.randn(5, 10, dtype=dtype)
    by_hidden = FreeLogits(VocabularyShard(10, 10)).backward(dz, torch.zeros(5, 10, dtype=dtype), None)
    assert by_hidden.dtype == torch.float32
    assert by_hidden.equal(dz.float())


def test_bad_layers_are_refused():
    with pytest.raises(InputError, match=r"output weight of shape \[12, 4\]"):
        OutputHead(torch.zeros(12, 4), VocabularyShard(10, 13))
    with pytest.raises(InputError, match="softcap=0"):
        OutputHead(torch.zeros(12, 4), VocabularyShard(12, 12), softcap=0.0)

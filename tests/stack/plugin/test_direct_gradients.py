"""In bfloat16 on a CPU gradients of weights go to float32 sums unrounded, and attention is one operation."""

import pytest
import torch
from launcher import launch

pytestmark = pytest.mark.usefixtures("nemo")


def _weight(rows, width, **attributes):
    weight = torch.nn.Parameter(torch.randn(rows, width).bfloat16())
    weight.main_grad = torch.randn(rows, width)
    for name, value in attributes.items():
        setattr(weight, name, value)
    return weight


def _as_megatron(weight):
    """What its data-parallel wrapper does with what autograd has brought."""
    if weight.grad is not None and (not weight.grad_added_to_main_grad or getattr(weight, "zero_out_wgrad", False)):
        weight.main_grad.add_(weight.grad)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("head_adds", [False, True])
def test_an_embedding_adds_the_rows_that_were_read(nemo, tied, head_adds):
    """Beside an output layer that is tied to it, whose gradient is in the sums already or comes by autograd."""
    from nemo_xtoken.training.cpu.direct_gradients import embedding

    torch.manual_seed(0)
    weight = _weight(50, 8, grad_added_to_main_grad=False, **({"zero_out_wgrad": True} if tied else {}))
    before, ids = weight.main_grad.double(), torch.tensor([[3, 4, 3], [49, 0, 3]])
    slope, of_head = torch.randn(2, 3, 8).bfloat16(), torch.randn(50, 8).bfloat16()
    expected = before.index_add(0, ids.reshape(-1), slope.reshape(-1, 8).double())
    value = (embedding(ids, weight) * slope).float().sum()
    if tied and head_adds:

        class Head(torch.autograd.Function):
            @staticmethod
            def forward(ctx, weight):
                weight.main_grad += of_head
                weight.grad_added_to_main_grad = True
                return weight.new_zeros(())

            @staticmethod
            def backward(ctx, _):
                assert not weight.zero_out_wgrad  # so that nobody reads this
                return torch.full_like(weight, float("nan"))

        value = value + Head.apply(weight)
    elif tied:
        value = value + (weight * of_head).float().sum()
    value.backward()
    _as_megatron(weight)
    if tied:
        expected += of_head.double()
    torch.testing.assert_close(weight.main_grad.double(), expected, rtol=1e-6, atol=1e-6)


def test_in_float32_or_without_sums_it_is_pytorchs(nemo):
    from nemo_xtoken.training.cpu.direct_gradients import embedding

    for dtype, has in ((torch.float32, True), (torch.bfloat16, False)):
        weight = torch.nn.Parameter(torch.randn(5, 2).to(dtype))
        if has:
            weight.main_grad = torch.zeros(5, 2)
        embedding(torch.tensor([1, 1]), weight).sum().backward()
        assert weight.grad.tolist() == [[0, 0], [2, 2], [0, 0], [0, 0], [0, 0]]
        assert not has or not weight.main_grad.any()


def test_a_linear_layers_gradient_is_that_of_float64(nemo):
    from nemo_xtoken.training.cpu.direct_gradients import add_weight_gradient

    torch.manual_seed(0)
    inputs, by_output, sums = torch.randn(64, 24).bfloat16(), torch.randn(64, 40).bfloat16(), torch.randn(40, 24)
    expected = sums.double() + by_output.double().t() @ inputs.double()
    add_weight_gradient(inputs, by_output, sums)
    torch.testing.assert_close(sums.double(), expected, rtol=1e-5, atol=1e-5)  # bfloat16 alone: 1e-1


def _attention(groups, window):
    """Output and gradients of the layer in bfloat16, in float32 by Megatron's operations, and the dense reference."""
    import torch.distributed as dist
    from megatron.core import parallel_state
    from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed
    from megatron.core.transformer.enums import AttnMaskType
    from megatron.core.transformer.transformer_config import TransformerConfig

    from nemo_xtoken.training.cpu import runtime as cpu_runtime
    from nemo_xtoken.training.cpu.layers import CPDotProductAttention
    from nemo_xtoken.training.inputs import document_mask

    torch.set_num_threads(1)
    torch.manual_seed(0)
    cpu_runtime.enable()
    dist.init_process_group("gloo")
    parallel_state.initialize_model_parallel()
    model_parallel_cuda_manual_seed(1)
    config = TransformerConfig(
        num_layers=1, hidden_size=64, num_attention_heads=4, num_query_groups=groups, attention_dropout=0.0,
        masked_softmax_fusion=False, window_size=(3, 0) if window else None,
    )  # fmt: skip
    layer = CPDotProductAttention(config, 1, AttnMaskType.causal, "self")
    documents = torch.tensor([[0] * 9 + [1] * 7, [0] * 16])
    mask = document_mask(documents)
    given = [torch.randn(16, 2, heads, 16).bfloat16() for heads in (4, groups, groups)]
    slope, found = torch.randn(16, 2, 64).bfloat16(), []
    for dtype in (torch.bfloat16, torch.float32):
        inputs = [x.to(dtype, copy=True).requires_grad_() for x in given]
        out = layer(*inputs, mask)
        (out * slope.to(dtype)).sum().backward()
        found.append([out.detach().double(), *(x.grad.double() for x in inputs)])
    return found, [x.double() for x in given], mask, slope.double()


@pytest.mark.parametrize(("groups", "window"), [(4, False), (2, False), (2, True)])
def test_attention_is_megatrons(tmp_path, groups, window):
    [(found, given, mask, slope)] = launch(_attention, groups, window, folder=tmp_path)
    query, key, value = (x.clone().requires_grad_() for x in given)
    rows = torch.arange(16)
    if window:
        mask = mask | (rows[None, :] < rows[:, None] - 3)
    wide_key, wide_value = (x.repeat_interleave(4 // groups, dim=2) for x in (key, value))
    scores = torch.einsum("qbhd,kbhd->bhqk", query, wide_key) / 4
    weights = torch.softmax(scores.masked_fill(mask, float("-inf")), -1)
    out = torch.einsum("bhqk,kbhd->qbhd", weights, wide_value).flatten(2)
    (out * slope).sum().backward()
    expected = [out.detach(), query.grad, key.grad, value.grad]
    for half, full, reference in zip(*found, expected, strict=True):
        torch.testing.assert_close(full, reference, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(half, reference, rtol=2e-2, atol=2e-2)
        assert (half - reference).norm() < 1e-2 * reference.norm()


def test_the_way_back_through_swiglu_is_that_of_float64(nemo):
    from megatron.core.fusions.fused_bias_swiglu import swiglu_back as megatrons

    from nemo_xtoken.training.cpu.layers import swiglu_back

    torch.manual_seed(0)
    y, g = torch.randn(9, 2, 32).bfloat16(), torch.randn(9, 2, 16).bfloat16()
    wide = y.double().requires_grad_()
    gate, up = wide.chunk(2, -1)
    (torch.nn.functional.silu(gate) * up * g.double()).sum().backward()
    with torch.compiler.set_stance("force_eager"):  # as the CPU runtime has it
        found, theirs = swiglu_back(g, y), megatrons(g, y)
        assert torch.equal(swiglu_back(g.float(), y.float()), megatrons(g.float(), y.float()))
    error, other = ((x.double() - wide.grad).norm() / wide.grad.norm() for x in (found, theirs))
    assert error < other < 1e-2

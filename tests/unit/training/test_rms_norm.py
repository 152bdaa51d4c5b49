"""RMSNorm of bfloat16 on a CPU against the reference in float64."""

import pytest
import torch

from nemo_xtoken.training.cpu.rms_norm import rms_norm


def close(found, expected):
    """As close as what is rounded to bfloat16 on the way can be."""
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.double(), expected, rtol=2e-2, atol=2e-2)
    assert (found.double() - expected).norm() < 1e-2 * expected.norm()


@pytest.mark.parametrize("offset", [0.0, 1.0])
@pytest.mark.parametrize("shape", [(7, 3, 40), (5, 16)])
def test_rms_norm_is_that_of_float64(offset, shape):
    torch.manual_seed(0)
    given, weight = torch.randn(shape).mul_(3).bfloat16(), torch.randn(shape[-1]).bfloat16()
    slope, eps = torch.randn(shape).bfloat16(), 0.5
    inputs = [x.clone().requires_grad_() for x in (given, weight)]
    out = rms_norm(*inputs, eps, offset)
    out.backward(slope)
    x, w = (x.double().requires_grad_() for x in (given, weight))
    expected = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * (w + offset)
    expected.backward(slope.double())
    for found, want in zip([out, *(x.grad for x in inputs)], [expected, x.grad, w.grad], strict=True):
        close(found.detach(), want.detach())


def test_rms_norm_of_a_frozen_weight_or_input():
    x, weight = torch.randn(3, 8).bfloat16(), torch.randn(8).bfloat16()
    for wanted in ((True, False), (False, True)):
        inputs = [t.clone().requires_grad_(on) for t, on in zip((x, weight), wanted, strict=True)]
        rms_norm(*inputs, 1e-5).sum().backward()
        assert [t.grad is not None for t in inputs] == list(wanted)

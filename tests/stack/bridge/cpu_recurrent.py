"""What the layers that carry a state call on a GPU, in torch: ``mamba_ssm``'s scan and ``fla``'s gated delta rule.

Both keep documents apart as the kernels do, by the index of each position's document or by bounds.  Megatron-core looks
for these packages while it is imported: `stood_in`.
"""

import itertools
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional


class RMSNorm(torch.nn.Module):
    """``mamba_ssm``'s gated norm without its gate: each group of channels by itself."""

    def __init__(
        self, hidden_size: int, eps: float = 1e-5, group_size: int | None = None, norm_before_gate: bool = True,
        device: Any = None, dtype: Any = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.eps, self.group = eps, group_size or hidden_size
        self.weight = torch.nn.Parameter(torch.ones(hidden_size, device=device, dtype=dtype))

    def forward(self, x: Tensor, z: None = None) -> Tensor:
        """The same shape."""
        groups = x.float().unflatten(-1, (-1, self.group))
        groups = groups * torch.rsqrt(groups.square().mean(-1, keepdim=True) + self.eps)
        return (groups.flatten(-2) * self.weight.float()).to(x.dtype)


def mamba_split_conv1d_scan_combined(
    zxbcdt: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor,
    dt_bias: Tensor,
    A: Tensor,
    D: Tensor,
    chunk_size: int,
    seq_idx: Tensor | None = None,
    activation: str = "silu",
    headdim: int | None = None,
    ngroups: int = 1,
    norm_before_gate: bool = True,
) -> Tensor:
    """Mamba 2 (arXiv 2405.21060) position by position: ``[b, T, z x B C dt]`` to ``[b, T, heads * headdim]``.

    Args:
        seq_idx: int ``[b, T]``, the document of each position; the state of one does not reach the next.
    """
    batch, length, width = zxbcdt.shape
    heads = A.numel()
    inner = D.numel() if headdim is None else heads * headdim
    states = (width - 2 * inner - heads) // (2 * ngroups)
    z, mixed, dt = zxbcdt.split([inner, inner + 2 * ngroups * states, heads], dim=-1)
    document = torch.zeros(batch, length, dtype=torch.int32) if seq_idx is None else seq_idx
    mixed = functional.silu(_causal_conv(mixed, conv1d_weight, conv1d_bias, document))
    x, b, c = mixed.split([inner, ngroups * states, ngroups * states], dim=-1)
    x = x.unflatten(-1, (heads, -1))
    b, c = (part.unflatten(-1, (ngroups, -1)).repeat_interleave(heads // ngroups, dim=2) for part in (b, c))
    dt = functional.softplus(dt + dt_bias)
    decay = torch.exp(dt * A)
    state = x.new_zeros(batch, heads, x.shape[-1], states)
    out = []
    for t in range(length):
        goes_on = (document[:, t] == document[:, max(t - 1, 0)]).view(-1, 1, 1, 1)
        added = (dt[:, t, :, None] * x[:, t])[..., None] * b[:, t, :, None]
        state = torch.where(goes_on, state, 0.0) * decay[:, t, :, None, None] + added
        out.append((state @ c[:, t, :, :, None]).squeeze(-1) + D.view(heads, -1) * x[:, t])
    return torch.stack(out, dim=1).flatten(-2) * functional.silu(z)


def _causal_conv(x: Tensor, weight: Tensor, bias: Tensor | None, document: Tensor) -> Tensor:
    """Each channel by itself, ``[b, T, d]`` with weights ``[d, w]``, within documents."""
    out = torch.zeros_like(x) if bias is None else bias.expand_as(x)
    length, taps = x.shape[1], weight.shape[1]
    for back in range(min(taps, length)):
        moved = functional.pad(x[:, : length - back], (0, 0, back, 0))
        same = functional.pad(document[:, : length - back], (back, 0), value=-1) == document
        out = out + moved * weight[:, taps - 1 - back] * same[..., None]
    return out


def causal_conv1d(x: Tensor, weight: Tensor, bias: Tensor | None, cu_seqlens: Tensor | None, **_: Any) -> Any:
    """``fla``'s, with silu."""
    document = torch.zeros(x.shape[:2], dtype=torch.int64)
    if cu_seqlens is not None:
        document = torch.searchsorted(cu_seqlens.long(), torch.arange(x.shape[1]), right=True).expand(x.shape[:2])
    return functional.silu(_causal_conv(x, weight, bias, document)), None


def l2norm(x: Tensor) -> Tensor:
    """``fla``'s."""
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + 1e-6)


def chunk_gated_delta_rule(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, cu_seqlens: Tensor | None = None, **_: Any
) -> Any:
    """``fla``'s, by Megatron's own in torch, document by document; ``[b, T, heads, size]``."""
    from megatron.core.ssm.gated_delta_net import torch_chunk_gated_delta_rule

    bounds = [0, q.shape[1]] if cu_seqlens is None else cu_seqlens.tolist()
    parts = [slice(*pair) for pair in itertools.pairwise(bounds)]
    out = [torch_chunk_gated_delta_rule(*(one[:, part] for one in (q, k, v, g, beta)))[0] for part in parts]
    return torch.cat(out, dim=1), None


MODULES = {
    "mamba_ssm.ops.triton.layernorm_gated": {"RMSNorm": RMSNorm},
    "mamba_ssm.ops.triton.ssd_combined": {
        "mamba_split_conv1d_scan_combined": mamba_split_conv1d_scan_combined,
        "mamba_chunk_scan_combined": mamba_split_conv1d_scan_combined,  # of inference
    },
    "fla.modules.convolution": {"causal_conv1d": causal_conv1d},
    "fla.modules.l2norm": {"l2norm": l2norm},
    "fla.ops.gated_delta_rule": {"chunk_gated_delta_rule": chunk_gated_delta_rule},
}


@contextmanager
def stood_in() -> Iterator[None]:
    """Inside, these modules can be imported; afterwards, as before, they cannot: transformers looks for them too."""
    before = set(sys.modules)
    for name, content in MODULES.items():
        parts = name.split(".")
        for length in range(1, len(parts) + 1):
            sys.modules.setdefault(".".join(parts[:length]), types.ModuleType(".".join(parts[:length])))
        vars(sys.modules[name]).update(content)
    try:
        yield
    finally:
        for name in set(sys.modules) - before:
            if name.split(".")[0] in ("mamba_ssm", "fla"):
                del sys.modules[name]

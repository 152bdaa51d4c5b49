"""Torch's layers under the names of Transformer Engine's, so that Megatron and Bridge build their own layers of them.

Megatron-core 0.19 and Bridge choose the parts of a layer (attention, latent attention, experts, gated delta nets,
Mamba) by what they import from ``megatron.core.extensions.transformer_engine``.  `take_their_place` puts these classes
there before any layer is described.  Bridge tells by a class's name how its weights are spread.
"""

import importlib
from typing import Any

import torch
from megatron.core.tensor_parallel.layers import ColumnParallelLinear

from nemo_xtoken.training.cpu.layers import (
    CPDotProductAttention,
    ExpertRowParallelLinear,
    Norm,
    NormColumnParallelLinear,
)

EXTENSION = "megatron.core.extensions.transformer_engine"
#: Modules that ask while they are imported whether there is a Transformer Engine, and what they then lack.
LATE = {
    "megatron.core.transformer.multi_latent_attention": (
        "TEColumnParallelLinear", "TELayerNormColumnParallelLinear", "TELinear",
    ),
    "megatron.core.models.gpt.gpt_layer_specs": ("TENorm",),
}  # fmt: skip


class TENorm(Norm):
    """See `Norm`."""


class TELayerNormColumnParallelLinear(NormColumnParallelLinear):
    """See `NormColumnParallelLinear`."""


class TEColumnParallelLinear(ColumnParallelLinear):
    """Megatron's."""


class TERowParallelLinear(ExpertRowParallelLinear):
    """See `ExpertRowParallelLinear`."""


class TELinear(torch.nn.Linear):
    """A linear layer that every tensor-parallel rank has whole."""

    def __init__(self, input_size: int, output_size: int, *, config: Any, init_method: Any, bias: bool, **named: Any):
        assert named.get("parallel_mode") in (None, "duplicated")
        super().__init__(input_size, output_size, bias=bias, dtype=config.params_dtype)
        self.parallel_mode = "duplicated"
        init_method(self.weight)
        for parameter in self.parameters():
            parameter.sequence_parallel = config.sequence_parallel

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, None]:
        """The output, and no bias left to add."""
        return super().forward(x), None

    def sharded_state_dict(self, prefix: str = "", sharded_offsets: Any = (), metadata: Any = None) -> Any:
        """The same on every rank."""
        from megatron.core.transformer.utils import make_sharded_tensors_for_checkpoint

        state = self.state_dict(prefix="", keep_vars=True)
        return make_sharded_tensors_for_checkpoint(state, prefix, {}, sharded_offsets)


class TEDotProductAttention(CPDotProductAttention):
    """See `CPDotProductAttention`; values may be of another width than queries and keys."""

    def __init__(self, config: Any, *args: Any, k_channels: Any = None, v_channels: Any = None, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)
        if v_channels is not None:
            self.hidden_size_per_partition = v_channels * self.num_attention_heads_per_partition


LAYERS = (
    TENorm, TELayerNormColumnParallelLinear, TEColumnParallelLinear, TERowParallelLinear, TELinear,
    TEDotProductAttention,
)  # fmt: skip


def take_their_place() -> None:
    """Once, after the classes above can be made, and before layers are described."""
    extension = importlib.import_module(EXTENSION)
    for layer in LAYERS:
        setattr(extension, layer.__name__, layer)
    provider = importlib.import_module(f"{EXTENSION}_spec_provider")
    provider.is_te_min_version = lambda *_, **__: True
    for name, parts in LATE.items():
        module = importlib.import_module(name)
        for part in parts:
            setattr(module, part, getattr(extension, part))
    importlib.import_module("megatron.core.models.gpt.gpt_layer_specs").TESpecProvider = provider.TESpecProvider

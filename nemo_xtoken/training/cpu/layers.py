"""Plain-torch stand-ins for the Transformer Engine layers that NeMo's model configs expect, for machines without it.

They carry Transformer Engine's parameter names (``linear_qkv.layer_norm_weight``, ...), so that configs need no change,
checkpoints are named as on a GPU, and Hugging Face import and export find every weight.  Sequence and context
parallelism work, packed documents by mask or by their lengths, sliding windows, sinks (a learned softmax offset) and
experts, one after the other.  ``cpu_runtime`` makes them the default layers.
"""

from typing import Any

import torch
from megatron.core import parallel_state as ps
from megatron.core.fusions.fused_bias_dropout import get_bias_dropout_add
from megatron.core.fusions.fused_bias_swiglu import swiglu_back as megatron_swiglu_back
from megatron.core.models.common.embeddings import rope_utils
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
from megatron.core.tensor_parallel.mappings import gather_from_sequence_parallel_region
from megatron.core.transformer.attention import SelfAttention, SelfAttentionSubmodules
from megatron.core.transformer.dot_product_attention import DotProductAttention
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.mlp import MLP, MLPSubmodules
from megatron.core.transformer.moe.experts import SequentialMLP
from megatron.core.transformer.moe.moe_layer import MoELayer, MoESubmodules
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_layer import TransformerLayer, TransformerLayerSubmodules

from nemo_xtoken.parallel.context_parallel import ContextLayout
from nemo_xtoken.training.cpu.extra_state import NoExtraState
from nemo_xtoken.training.cpu.rms_norm import rms_norm


def _add_norm(module, config, size, prefix):
    """Registers <prefix>weight (and bias) on ``module``; grads are summed over TP under sequence parallel."""
    rms = config.normalization == "RMSNorm"
    for name, fill in (("weight", 0.0 if config.layernorm_zero_centered_gamma and rms else 1.0), ("bias", 0.0)):
        p = None if rms and name == "bias" else torch.nn.Parameter(torch.full((size,), fill, dtype=config.params_dtype))
        if p is not None:
            p.sequence_parallel = config.sequence_parallel
        module.register_parameter(prefix + name, p)


def _norm(x, config, weight, bias, eps):
    if config.normalization == "RMSNorm":
        if x.dtype == weight.dtype == torch.bfloat16:
            return rms_norm(x, weight, eps, 1.0 if config.layernorm_zero_centered_gamma else 0.0)
        wide = torch.promote_types(x.dtype, torch.float32)  # float64 stays what it is
        y = x.to(wide)
        y = y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + eps)
        return (y * (weight.to(wide) + (1 if config.layernorm_zero_centered_gamma else 0))).to(x.dtype)
    return torch.nn.functional.layer_norm(x, x.shape[-1:], weight, bias, eps)


class Norm(NoExtraState):
    """LayerNorm or RMSNorm, as the config says."""

    def __init__(self, config, hidden_size, eps=1e-5, **_):
        super().__init__()
        self.config, self.eps = config, eps
        _add_norm(self, config, hidden_size, "")

    def forward(self, x):
        return _norm(x, self.config, self.weight, self.bias, self.eps)


class NormColumnParallelLinear(ColumnParallelLinear):
    """TELayerNormColumnParallelLinear: the norm's parameters are the linear layer's.

    With ``return_layernorm_output`` it gives what comes out of the norm beside its output, for a LoRA adapter.
    """

    return_layernorm_output = False

    def __init__(self, input_size, output_size, *, config, **kwargs):
        super().__init__(input_size, output_size, config=config, **kwargs)
        _add_norm(self, config, input_size, "layer_norm_")

    def forward(self, x, *args, **kwargs):
        x = _norm(x, self.config, self.layer_norm_weight, self.layer_norm_bias, self.config.layernorm_epsilon)
        output, bias = super().forward(x, *args, **kwargs)
        return ((output, x), bias) if self.return_layernorm_output else (output, bias)


class ExpertRowParallelLinear(RowParallelLinear):
    """Gives out what may be changed in place: Megatron's MLP adds an expert's bias so, and on one rank the output is
    a view that autograd does not let it change."""

    def forward(self, x):
        output, bias = super().forward(x)
        return output.clone(), bias


class NormedRowParallelLinear(RowParallelLinear):
    """NeMo's TERowParallelLinearLayerNorm: a norm over the output."""

    def __init__(self, input_size, output_size, *, config, **kwargs):
        super().__init__(input_size, output_size, config=config, **kwargs)
        self.post_layernorm = Norm(config, output_size, config.layernorm_epsilon)

    def forward(self, x):
        output, bias = super().forward(x)
        return self.post_layernorm(output), bias


class CPDotProductAttention(NoExtraState, DotProductAttention):
    """Attention over a context-parallel group: K and V are all-gathered, each rank's queries see their past.

    Of 2*cp equal parts of the sequence, rank r holds parts r and 2*cp-1-r (Transformer Engine's layout); with sequence
    lengths (``thd``) of every document in it.  A mask, ``[b, 1, n, T]``, has this rank's rows and all columns in order.
    """

    def __init__(self, config, *args, **kwargs):
        cp, config.context_parallel_size = config.context_parallel_size, 1
        try:
            super().__init__(config, *args, **kwargs)
        finally:
            config.context_parallel_size = cp
        softmax: Any = self.scale_mask_softmax
        softmax.scaled_masked_softmax_fusion = False  # a CUDA kernel
        # With a window it would make a mask of its own instead of the one given, which tells documents apart.
        self.window: Any = softmax.window_size
        softmax.window_size = None

    def forward(self, query, key, value, attention_mask, *args, packed_seq_params=None, **kwargs):
        group, bounds = ps.get_context_parallel_group(), None
        if packed_seq_params is None:
            layout = ContextLayout.zigzag(1, query.size(0) * group.size(), group, query.device)
        else:  # [t, heads, size]: one sequence of all documents
            query, key, value = (x.unsqueeze(1) for x in (query, key, value))
            bounds = packed_seq_params.cu_seqlens_q.long()
            layout = ContextLayout.by_document(bounds[:-1], int(bounds[-1]), group)
        own, seen = layout.local, torch.arange(layout.positions.numel(), device=query.device)
        if group.size() > 1:
            order = layout.rows()
            key, value = (gather_from_sequence_parallel_region(x.contiguous(), group=group) for x in (key, value))
            key, value = key[order], value[order]
        if attention_mask is None:
            attention_mask = (seen[None, :] > own[:, None])[None, None]
        if bounds is not None:
            document = torch.searchsorted(bounds, seen, right=True)
            attention_mask = attention_mask | (document[None, :] != document[own][:, None])
        if self.window is not None:
            attention_mask = attention_mask | (seen[None, :] < own[:, None] - self.window[0])
        dropout: Any = self.attention_dropout
        drops = self.training and dropout.p > 0
        if query.dtype == torch.bfloat16 and self.softmax_offset is None and not drops:
            return self._in_one(query, key, value, attention_mask)
        return super().forward(query, key, value, attention_mask, *args, **kwargs)

    def _in_one(self, query, key, value, mask):
        """PyTorch's attention, which keeps no scores; in float32, where runs repeat to the bit, Megatron's is left."""
        groups = query.shape[2] // key.shape[2]
        if groups > 1:
            key, value = (x.repeat_interleave(groups, dim=2) for x in (key, value))
        query, key, value = (x.permute(1, 2, 0, 3) for x in (query, key, value))
        own: Any = self.softmax_scale
        within: Any = self.scale_mask_softmax
        scale = own * (within.scale or 1.0)
        out = torch.nn.functional.scaled_dot_product_attention(query, key, value, ~mask, scale=scale)
        return out.permute(2, 0, 1, 3).flatten(2)


def layer_spec(
    config: Any,
    self_attention: type = SelfAttention,
    row_parallel: type = RowParallelLinear,
) -> ModuleSpec:
    """The transformer layer of a dense model, or of one whose layers all have experts.

    Args:
        self_attention: the attention around the core.
        row_parallel: the linear layer at the end of attention and of the feed-forward network.
    """
    qk = Norm if config.qk_layernorm else IdentityOp
    attention = SelfAttentionSubmodules(
        linear_qkv=NormColumnParallelLinear, core_attention=CPDotProductAttention, linear_proj=row_parallel,
        q_layernorm=qk, k_layernorm=qk,
    )  # fmt: skip
    pre_mlp: type = IdentityOp
    if config.num_moe_experts:
        config.moe_token_dispatcher_type = "allgather"  # the others wait for CUDA's streams
        config.bias_activation_fusion = False  # mcore 0.15.3 clamps before it adds the bias that such experts give it
        expert = MLPSubmodules(linear_fc1=ColumnParallelLinear, linear_fc2=ExpertRowParallelLinear)
        experts = ModuleSpec(module=SequentialMLP, submodules=expert)
        mlp, pre_mlp = ModuleSpec(module=MoELayer, submodules=MoESubmodules(experts=experts)), Norm
    else:
        fc = MLPSubmodules(linear_fc1=NormColumnParallelLinear, linear_fc2=row_parallel)
        mlp = ModuleSpec(module=MLP, submodules=fc)
    return ModuleSpec(
        module=TransformerLayer,
        submodules=TransformerLayerSubmodules(
            self_attention=ModuleSpec(
                module=self_attention, params={"attn_mask_type": AttnMaskType.causal}, submodules=attention
            ),
            self_attn_bda=get_bias_dropout_add,
            pre_mlp_layernorm=pre_mlp,
            mlp=mlp,
            mlp_bda=get_bias_dropout_add,
        ),
    )


def swiglu_back(g: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """The way back through SwiGLU; of bfloat16 in half as many operations.

    Args:
        g: ``[.., n]``, the derivative with respect to its output.
        y: ``[.., 2 n]``, its input.
    """
    if y.dtype != torch.bfloat16:
        return megatron_swiglu_back(g, y)
    gate, up = y.chunk(2, -1)
    return torch.cat((torch.ops.aten.silu_backward(g * up, gate), g * torch.nn.functional.silu(gate)), -1)


def rotary(t: torch.Tensor, freqs: torch.Tensor, interleaved: bool = False, **_: Any) -> torch.Tensor:
    """The rotary embedding, unfused, with the fused one's signature."""
    return rope_utils._apply_rotary_pos_emb_bshd(t, freqs, rotary_interleaved=interleaved)

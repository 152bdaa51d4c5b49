"""gpt-oss: experts in every layer, windows in every other one, a learned sink in each head, YaRN.

NeMo 2's own connector takes the two published sizes, rounds to bfloat16, and reads the experts as they are quantised;
a checkpoint that transformers has saved has them transposed.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from megatron.core.fusions.fused_bias_geglu import quick_gelu
from nemo.collections import llm
from nemo.collections.llm.gpt.model.base import HAVE_TE
from torch import Tensor

from nemo_xtoken.plugin.nemo2.hf.dense import HF, NEMO, NORMS, OUTPUT, QKV, QKV_BIAS
from nemo_xtoken.plugin.nemo2.hf.family import Family, Weights, hf_windows, nemo_windows, refuse

__all__ = ["GPT_OSS"]


def _to_nemo(hf: Any) -> dict[str, Any]:
    scaling = hf.rope_scaling or {}
    if scaling.get("rope_type") != "yarn":
        raise refuse(hf, f"rope_scaling of type {scaling.get('rope_type')}")
    return {
        **nemo_windows(hf),
        "num_moe_experts": hf.num_local_experts,
        # The one that Megatron compares with; NeMo's default is another of the same name, which is refused as unknown.
        "activation_func": quick_gelu,
        "moe_permute_fusion": HAVE_TE,  # its kernel
        "moe_ffn_hidden_size": hf.intermediate_size,
        "moe_router_topk": hf.num_experts_per_tok,
        "yarn_rotary_scaling_factor": scaling["factor"],
        "yarn_original_max_position_embeddings": scaling["original_max_position_embeddings"],
        "yarn_beta_fast": scaling.get("beta_fast", 32.0),
        "yarn_beta_slow": scaling.get("beta_slow", 1.0),
        "yarn_correction_range_round_to_int": scaling.get("truncate", True),
        "yarn_mscale": 1.0,
        "yarn_mscale_all_dim": 0.0,  # transformers' factor is 0.1 ln(scale) + 1, with nothing to divide it by
    }


def _to_hf(config: Any) -> dict[str, Any]:
    width, types = hf_windows(config)
    return {
        "num_local_experts": config.num_moe_experts,
        "intermediate_size": config.moe_ffn_hidden_size,
        "num_experts_per_tok": config.moe_router_topk,
        "sliding_window": width or config.seq_length,
        "layer_types": types,
        "attention_bias": True,
        "rope_scaling": {
            "rope_type": "yarn",
            "factor": config.yarn_rotary_scaling_factor,
            "beta_fast": config.yarn_beta_fast,
            "beta_slow": config.yarn_beta_slow,
            "truncate": config.yarn_correction_range_round_to_int,
            "original_max_position_embeddings": config.yarn_original_max_position_embeddings,
        },
    }


def _halves(x: Tensor) -> Tensor:
    """Rows gate, up, gate, up, .. into all gates, then all ups."""
    return torch.cat([x[::2], x[1::2]])


def _pairs(x: Tensor) -> Tensor:
    """The inverse."""
    gate, up = x.chunk(2)
    return torch.stack([gate, up], dim=1).flatten(0, 1)


def _experts(hf: str, nemo: str, to_nemo: Callable[[Tensor], Tensor], to_hf: Callable[[Tensor], Tensor]) -> Weights:
    """One tensor ``[experts, ..]`` there, one tensor an expert here."""
    return Weights(
        f"{HF}mlp.experts.{hf}",
        nemo,
        lambda x: [to_nemo(expert) for expert in x],
        lambda *experts: torch.stack([to_hf(expert) for expert in experts]),
    )


def _weights(config: Any, names: Sequence[str]) -> Sequence[Weights]:
    one_by_one = any(".local_experts." in name for name in names)  # without Transformer Engine's grouped layers

    def expert(layer: str, kind: str) -> str:
        part = f"local_experts.*.{layer}.{kind}" if one_by_one else f"{layer}.{kind}*"
        return f"{NEMO}mlp.experts.{part}"

    return (
        QKV,
        QKV_BIAS,
        OUTPUT,
        Weights(f"{HF}self_attn.o_proj.bias", f"{NEMO}self_attention.linear_proj.bias"),
        Weights(f"{HF}self_attn.sinks", f"{NEMO}self_attention.core_attention.softmax_offset"),
        *NORMS,
        Weights(f"{HF}post_attention_layernorm.weight", f"{NEMO}pre_mlp_layernorm.weight"),
        Weights(f"{HF}mlp.router.weight", f"{NEMO}mlp.router.weight"),
        Weights(f"{HF}mlp.router.bias", f"{NEMO}mlp.router.bias"),
        _experts("gate_up_proj", expert("linear_fc1", "weight"), lambda x: _halves(x.T), lambda x: _pairs(x).T),
        _experts("gate_up_proj_bias", expert("linear_fc1", "bias"), _halves, _pairs),
        _experts("down_proj", expert("linear_fc2", "weight"), lambda x: x.T.contiguous(), lambda x: x.T),
        _experts("down_proj_bias", expert("linear_fc2", "bias"), lambda x: x, lambda x: x),
    )


GPT_OSS = Family("gpt_oss", "GptOssForCausalLM", llm.GPTOSSConfig, _to_nemo, _to_hf, _weights)

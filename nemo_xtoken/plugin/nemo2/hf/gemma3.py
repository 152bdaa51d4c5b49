"""Gemma 3's language model, of any size, also the one inside a model that sees images.

NeMo 2's own connector takes four published sizes by their number of layers, and its layers are Transformer Engine's.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Optional

from megatron.core.transformer.attention import SelfAttention
from megatron.core.transformer.spec_utils import ModuleSpec
from nemo.collections.llm.gpt.model.gemma3 import Gemma3Config, gemma3_layer_spec

from nemo_xtoken.plugin.nemo2.hf.dense import FEED_FORWARD, HF, NEMO, NORMS, OUTPUT, QK_NORMS, QKV, check_activation
from nemo_xtoken.plugin.nemo2.hf.family import Family, Weights, hf_windows, nemo_windows, refuse

__all__ = ["GEMMA3", "Gemma3TextConfig", "layer_spec"]


class LocalGlobalAttention(SelfAttention):
    """Attention that takes its rotary embedding by the kind of its layer, local or global.

    NeMo 2.7's own does not take an argument that Megatron 0.15 passes.
    """

    def forward(self, *args: Any, rotary_pos_emb: Any, **kwargs: Any) -> Any:
        """``rotary_pos_emb``: of local layers, of global ones."""
        is_global = self.layer_number % sum(self.config.interleaved_attn_pattern) == 0
        return super().forward(*args, rotary_pos_emb=rotary_pos_emb[int(is_global)], **kwargs)


def layer_spec(config: Any) -> ModuleSpec:
    """Gemma 3's layer: NeMo's with Transformer Engine, one of torch's modules without it.

    NeMo's core attention takes a width and a pattern of layers; Megatron's own takes ``window_size`` and
    ``window_attn_skip_freq``, which say the same and any other pattern.
    """
    from nemo.collections.llm.gpt.model.base import HAVE_TE

    from nemo_xtoken.training.cpu import layers as cpu_layers

    if not HAVE_TE:
        config.qk_layernorm = True
        return cpu_layers.layer_spec(config, LocalGlobalAttention, cpu_layers.NormedRowParallelLinear)
    from megatron.core.extensions.transformer_engine import TEDotProductAttention

    spec = gemma3_layer_spec(config)
    spec.submodules.self_attention.module = LocalGlobalAttention
    spec.submodules.self_attention.submodules.core_attention = TEDotProductAttention
    return spec


@dataclass
class Gemma3TextConfig(Gemma3Config):
    """Gemma 3's configuration with windows in Megatron's form."""

    window_size: Optional[tuple[int, int]] = None
    rope_scaling_factor: float = 1.0
    transformer_layer_spec: Any = layer_spec


def _to_nemo(hf: Any) -> dict[str, Any]:
    check_activation(hf, "gelu_pytorch_tanh")
    for name in ("final_logit_softcapping", "attn_logit_softcapping", "use_bidirectional_attention"):
        if getattr(hf, name, None):
            raise refuse(hf, f"{name}={getattr(hf, name)}")
    scaling = hf.rope_scaling or {}
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind not in ("default", "linear"):
        raise refuse(hf, f"rope_scaling of type {kind}")
    full = [i + 1 for i, kind in enumerate(hf.layer_types) if kind == "full_attention"]
    period = full[0] if full else hf.num_hidden_layers + 1
    if full != list(range(period, hf.num_hidden_layers + 1, period)):
        raise refuse(hf, f"layer_types {hf.layer_types}")
    return {
        **nemo_windows(hf),
        "interleaved_attn_pattern": (period - 1, 1),
        "rotary_base": (hf.rope_local_base_freq, hf.rope_theta),
        "rope_scaling_factor": scaling.get("factor", 1.0),
        "softmax_scale": hf.query_pre_attn_scalar**-0.5,
    }


def _to_hf(config: Any) -> dict[str, Any]:
    width = hf_windows(config)[0] or config.seq_length
    period = sum(config.interleaved_attn_pattern)
    factor = config.rope_scaling_factor
    types = ["full_attention" if (i + 1) % period == 0 else "sliding_attention" for i in range(config.num_layers)]
    return {
        "hidden_activation": "gelu_pytorch_tanh",
        "sliding_window": width,
        "layer_types": types,
        "rope_local_base_freq": float(config.rotary_base[0]),
        "rope_theta": float(config.rotary_base[1]),
        "rope_scaling": {"rope_type": "linear", "factor": factor} if factor != 1.0 else None,
        "query_pre_attn_scalar": round((config.softmax_scale or config.kv_channels**-0.5) ** -2, 6),
        "attention_bias": False,
    }


def _post_norm(hf: str, nemo: str) -> Weights:
    return Weights(f"{HF}{hf}.weight", f"{NEMO}{nemo}.post_layernorm.weight")


WEIGHTS: Sequence[Weights] = (
    QKV,
    OUTPUT,
    *NORMS,
    *QK_NORMS,
    *FEED_FORWARD,
    Weights(f"{HF}pre_feedforward_layernorm.weight", f"{NEMO}mlp.linear_fc1.layer_norm_weight"),
    _post_norm("post_attention_layernorm", "self_attention.linear_proj"),
    _post_norm("post_feedforward_layernorm", "mlp.linear_fc2"),
)
GEMMA3 = Family("gemma3_text", "Gemma3ForCausalLM", Gemma3TextConfig, _to_nemo, _to_hf, lambda config, names: WEIGHTS)

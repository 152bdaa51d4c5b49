"""Llama 2 to 3.3 (and SmolLM2, which is one), Mistral, Qwen 2 and 2.5, Qwen 3: dense models of one make."""

from collections.abc import Sequence
from typing import Any

from nemo.collections import llm
from nemo.collections.llm.gpt.model.llama import Llama31Config
from nemo.lightning.io.state import TransformFns

from nemo_xtoken.plugin.nemo2.hf.family import Family, Weights, hf_windows, nemo_windows, refuse

__all__ = ["FEED_FORWARD", "LLAMA", "MISTRAL", "NORMS", "QKV", "QWEN2", "QWEN3", "check_activation"]

HF, NEMO = "model.layers.*.", "decoder.layers.*."
QKV = Weights(
    tuple(f"{HF}self_attn.{x}_proj.weight" for x in "qkv"),
    f"{NEMO}self_attention.linear_qkv.weight",
    TransformFns.merge_qkv,
    TransformFns.split_qkv,
)
QKV_BIAS = Weights(
    tuple(f"{HF}self_attn.{x}_proj.bias" for x in "qkv"),
    f"{NEMO}self_attention.linear_qkv.bias",
    TransformFns.merge_qkv_bias,
    TransformFns.split_qkv_bias,
)
OUTPUT = Weights(f"{HF}self_attn.o_proj.weight", f"{NEMO}self_attention.linear_proj.weight")
NORMS = (
    Weights(f"{HF}input_layernorm.weight", f"{NEMO}self_attention.linear_qkv.layer_norm_weight"),
    Weights("model.norm.weight", "decoder.final_layernorm.weight"),
)
FEED_FORWARD = (
    Weights(
        (f"{HF}mlp.gate_proj.weight", f"{HF}mlp.up_proj.weight"),
        f"{NEMO}mlp.linear_fc1.weight",
        TransformFns.merge_fc1,
        TransformFns.split_fc1,
    ),
    Weights(f"{HF}mlp.down_proj.weight", f"{NEMO}mlp.linear_fc2.weight"),
)
MLP_NORM = Weights(f"{HF}post_attention_layernorm.weight", f"{NEMO}mlp.linear_fc1.layer_norm_weight")
QK_NORMS = tuple(Weights(f"{HF}self_attn.{x}_norm.weight", f"{NEMO}self_attention.{x}_layernorm.weight") for x in "qk")
DENSE = (QKV, OUTPUT, *NORMS, *FEED_FORWARD, MLP_NORM)


def check_activation(hf: Any, name: str = "silu") -> None:
    """
    Raises:
        InputError: another activation function.
    """
    found = getattr(hf, "hidden_activation", None) or getattr(hf, "hidden_act", name)
    if found != name:
        raise refuse(hf, f"the activation function {found}")


def _rope(hf: Any) -> dict[str, Any]:
    """No scaling of the rotary frequencies, or the linear one."""
    scaling = getattr(hf, "rope_scaling", None) or {}
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind == "linear":
        return {"seq_len_interpolation_factor": scaling["factor"]}
    if kind != "default":
        raise refuse(hf, f"rope_scaling of type {kind}")
    return {}


def _hf_rope(config: Any) -> dict[str, Any]:
    factor = config.seq_len_interpolation_factor
    return {"rope_scaling": {"rope_type": "linear", "factor": factor} if factor else None}


def _llama(hf: Any) -> dict[str, Any]:
    check_activation(hf)
    scaling = hf.rope_scaling or {}
    if scaling.get("rope_type", scaling.get("type")) != "llama3":
        return _rope(hf)
    return {
        "cls": Llama31Config,
        "scale_factor": scaling["factor"],
        "low_freq_factor": scaling["low_freq_factor"],
        "high_freq_factor": scaling["high_freq_factor"],
        "old_context_len": scaling["original_max_position_embeddings"],
    }


def _hf_llama(config: Any) -> dict[str, Any]:
    common = {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False}
    if not isinstance(config, Llama31Config):
        return common | _hf_rope(config)
    scaling = {
        "rope_type": "llama3",
        "factor": float(config.scale_factor),
        "low_freq_factor": float(config.low_freq_factor),
        "high_freq_factor": float(config.high_freq_factor),
        "original_max_position_embeddings": config.old_context_len,
    }
    return common | {"rope_scaling": scaling}


def _mistral(hf: Any) -> dict[str, Any]:
    check_activation(hf)
    windows = nemo_windows(hf)
    return {**windows, "cp_comm_type": "a2a" if windows["window_size"] else None, **_rope(hf)}


def _hf_mistral(config: Any) -> dict[str, Any]:
    return {"hidden_act": "silu", "sliding_window": hf_windows(config)[0], **_hf_rope(config)}


def _qwen(hf: Any) -> dict[str, Any]:
    check_activation(hf)
    return {**nemo_windows(hf), **_rope(hf)}


def _qwen3(hf: Any) -> dict[str, Any]:
    return {**_qwen(hf), "max_position_embeddings": hf.max_position_embeddings}


def _hf_qwen(config: Any) -> dict[str, Any]:
    width, types = hf_windows(config)
    return {
        "hidden_act": "silu",
        "use_sliding_window": width is not None,
        "sliding_window": width,
        "layer_types": types,
        **_hf_rope(config),
    }


def _hf_qwen3(config: Any) -> dict[str, Any]:
    return {
        **_hf_qwen(config),
        "attention_bias": False,
        "max_position_embeddings": max(config.max_position_embeddings, config.seq_length),
    }


def _qwen2_weights(config: Any, names: Sequence[str]) -> Sequence[Weights]:
    return (*DENSE, QKV_BIAS)


LLAMA = Family("llama", "LlamaForCausalLM", llm.LlamaConfig, _llama, _hf_llama, lambda config, names: DENSE)
MISTRAL = Family("mistral", "MistralForCausalLM", llm.MistralConfig7B, _mistral, _hf_mistral, lambda c, names: DENSE)
QWEN2 = Family("qwen2", "Qwen2ForCausalLM", llm.Qwen2Config, _qwen, _hf_qwen, _qwen2_weights, False)
QWEN3 = Family(
    "qwen3", "Qwen3ForCausalLM", llm.Qwen3Config, _qwen3, _hf_qwen3, lambda config, names: (*DENSE, *QK_NORMS)
)

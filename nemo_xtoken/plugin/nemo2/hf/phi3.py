"""Phi-3 and Phi-4-mini: one tensor for queries, keys and values, and LongRoPE on a part of each head.

NeMo 2's own connector knows neither grouped queries nor the partial rotation nor LongRoPE nor tied embeddings.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Optional

import torch
from megatron.core.models.common.embeddings.rotary_pos_embedding import RotaryEmbedding
from nemo.collections import llm
from nemo.lightning.io.state import TransformCTX, TransformFns
from torch import Tensor

from nemo_xtoken.plugin.nemo2.hf.dense import HF, MLP_NORM, NEMO, NORMS, OUTPUT, check_activation
from nemo_xtoken.plugin.nemo2.hf.family import Family, Weights, hf_windows, nemo_windows, refuse

__all__ = ["PHI3", "LongRopeConfig"]


class LongRope(RotaryEmbedding):
    """Rotary embeddings whose frequencies are divided by one list of factors up to a length, by another beyond it.

    As in transformers, the longest sequence of a batch decides for all of it.

    Args:
        short, long: factors, one per frequency.
        original: the length up to which the short ones hold.
        The others are those of `RotaryEmbedding`.
    """

    def __init__(self, short: Sequence[float], long: Sequence[float], original: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        base, self.original = self.inv_freq, original
        self.by_length = [base / torch.tensor(f, dtype=base.dtype, device=base.device) for f in (short, long)]

    def get_freqs_non_repeated(self, max_seq_len: int, offset: int = 0) -> Tensor:
        """float32 ``[max_seq_len, frequencies]``: the angle of each position."""
        frequencies = self.by_length[int(max_seq_len + offset > self.original)].to(self.inv_freq.device)
        positions = torch.arange(max_seq_len, device=frequencies.device, dtype=frequencies.dtype) + offset
        return torch.outer(positions, frequencies)


@dataclass
class LongRopeConfig(llm.Phi3Config):
    """Phi-3's configuration with LongRoPE.

    Megatron multiplies cosine and sine by YaRN's concentration factor, which it takes from the fields ``yarn_*``: with
    a scale of e and no second term it is ``1 + 0.1 * yarn_mscale``, and so any factor that LongRoPE wants.
    """

    short_factor: list[float] = field(default_factory=list)
    long_factor: list[float] = field(default_factory=list)
    original_length: int = 4096
    longest: int = 131072
    yarn_rotary_scaling_factor: float = 2.718281828459045
    yarn_mscale: float = 0.0
    yarn_mscale_all_dim: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.yarn_mscale = 10.0 * (_attention_factor(self.longest, self.original_length) - 1.0)

    def configure_model(
        self,
        tokenizer: Any,
        pre_process: Optional[bool] = None,
        post_process: Optional[bool] = None,
        vp_stage: Optional[int] = None,
    ) -> Any:
        """NeMo's model, its rotary embedding exchanged."""
        model = super().configure_model(tokenizer, pre_process, post_process, vp_stage)
        model.rotary_pos_emb = LongRope(
            self.short_factor,
            self.long_factor,
            self.original_length,
            kv_channels=self.kv_channels,
            rotary_percent=self.rotary_percent,
            rotary_interleaved=self.rotary_interleaved,
            rotary_base=self.rotary_base,
            use_cpu_initialization=self.use_cpu_initialization,
        )
        return model


def _attention_factor(longest: int, original: int) -> float:
    """What LongRoPE multiplies cosine and sine with (arXiv 2402.13753, equation 5): sqrt(1 + ln s / ln L)."""
    return math.sqrt(1 + math.log(longest / original) / math.log(original)) if longest > original else 1.0


def _to_nemo(hf: Any) -> dict[str, Any]:
    check_activation(hf)
    arguments = {**nemo_windows(hf), "rotary_percent": getattr(hf, "partial_rotary_factor", 1.0)}
    scaling = hf.rope_scaling
    if scaling is None:
        return arguments
    if scaling.get("type", scaling.get("rope_type")) != "longrope":
        raise refuse(hf, f"rope_scaling {scaling}")
    return arguments | {
        "cls": LongRopeConfig,
        "short_factor": list(scaling["short_factor"]),
        "long_factor": list(scaling["long_factor"]),
        "original_length": hf.original_max_position_embeddings,
        "longest": hf.max_position_embeddings,
    }


def _to_hf(config: Any) -> dict[str, Any]:
    width = hf_windows(config)[0]
    out = {
        "hidden_act": "silu",
        **({"sliding_window": width} if width else {}),  # published ones may be wider than the longest text
        "partial_rotary_factor": config.rotary_percent,
        "rope_scaling": None,
    }
    if isinstance(config, LongRopeConfig):
        out["rope_scaling"] = {
            "type": "longrope",
            "short_factor": list(config.short_factor),
            "long_factor": list(config.long_factor),
        }
        out |= {"original_max_position_embeddings": config.original_length, "max_position_embeddings": config.longest}
    return out


def _split_qkv(ctx: TransformCTX, linear_qkv: Tensor) -> Tensor:
    return torch.cat(TransformFns.split_qkv(ctx, linear_qkv))


WEIGHTS = (
    Weights(
        f"{HF}self_attn.qkv_proj.weight",
        f"{NEMO}self_attention.linear_qkv.weight",
        TransformFns.merge_qkv_concat,
        _split_qkv,
    ),
    OUTPUT,
    *NORMS,
    Weights(f"{HF}mlp.gate_up_proj.weight", f"{NEMO}mlp.linear_fc1.weight"),
    Weights(f"{HF}mlp.down_proj.weight", f"{NEMO}mlp.linear_fc2.weight"),
    MLP_NORM,
)
PHI3 = Family("phi3", "Phi3ForCausalLM", llm.Phi3Config, _to_nemo, _to_hf, lambda config, names: WEIGHTS, False)

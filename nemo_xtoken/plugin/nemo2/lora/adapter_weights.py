"""A student's adapters on their way out: merged into its layers, or under the names that PEFT has for them."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from nemo.collections.llm.peft.lora import LoRAMerge
from torch import Tensor

from nemo_xtoken.errors import InputError
from nemo_xtoken.run.lora.lora_settings import LoraConfig

__all__ = ["merge_adapters", "peft_config", "peft_weights", "without_adapters"]

INTO, OUT = ".adapter.linear_in.weight", ".adapter.linear_out.weight"
#: What PEFT writes before the names of the model's own modules.
PREFIX = "base_model.model."


def merge_adapters(model: Any) -> None:
    """Adds NeMo's adapters to the layers' own weights, in float32, which the weights are from then on.

    Args:
        model: NeMo's.
    """
    model.module.float()
    LoRAMerge()(model)


def without_adapters(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of the model alone."""
    return {name: tensor for name, tensor in state.items() if not name.endswith((INTO, OUT))}


def peft_weights(
    weights: Sequence[Any],
    state: Mapping[str, Tensor],
    convert: Callable[[dict[str, Tensor]], dict[str, Tensor]],
    hf: Any,
) -> dict[str, Tensor]:
    """The adapters under PEFT's names.

    What one of Megatron's layers is to several of transformers' (queries, keys and values) is a matter of its rows, so
    that the adapter's first matrix ``[r, in]`` is the same for each of them, and the second, ``[out, r]``, is cut as
    the layer's weight is.

    Args:
        weights: which of Megatron's weights are which of transformers': `Weights` of a family.
        state: of the model, adapters included.
        convert: from Megatron's weights to transformers'.
        hf: transformers' configuration.

    Raises:
        InputError: a layer whose weight is not one of transformers' weights, or several, by its rows.
    """
    layers = [name.removesuffix(INTO) for name in state if name.endswith(INTO)]
    stand_ins = without_adapters(state)
    for layer in layers:
        second = state[layer + OUT]
        stand_ins[f"{layer}.weight"] = wide = torch.zeros_like(stand_ins[f"{layer}.weight"])
        wide[:, : second.shape[1]] = second
    converted = convert(stand_ins)
    found: dict[str, Tensor] = {}
    for layer in layers:
        first = state[layer + INTO]
        names = _names(weights, f"{layer}.weight")
        if not names or any(converted[name].shape[-1] != stand_ins[f"{layer}.weight"].shape[-1] for name in names):
            raise InputError(
                f"adapters of {layer} in a {hf.model_type} model",
                "layers that are one of transformers', or several, by their rows",
                "leave adapter out: the export merges them",
            )
        for name in names:
            place = PREFIX + name.removesuffix(".weight")
            found[f"{place}.lora_A.weight"] = first
            found[f"{place}.lora_B.weight"] = converted[name][:, : first.shape[0]]
    return found


def _names(weights: Sequence[Any], own: str) -> list[str]:
    """Transformers' names of one of Megatron's weights."""
    for one in weights:
        if isinstance(one.nemo, str):
            match = re.fullmatch(re.escape(one.nemo).replace(r"\*", r"(\d+)"), own)
            if match is not None:
                theirs = (one.hf,) if isinstance(one.hf, str) else one.hf
                return [name.replace("*", match[1]) for name in theirs]
    return []


def peft_config(lora: LoraConfig, base: str, names: Sequence[str]) -> dict[str, Any]:
    """``adapter_config.json``.

    Args:
        base: the model that the adapters belong to.
        names: of `peft_weights`.
    """
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "modules_to_save": None,
        "target_modules": sorted({name.split(".")[-3] for name in names}),
    }

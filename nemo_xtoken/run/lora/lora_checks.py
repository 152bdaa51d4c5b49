"""What of a run's LoRA cannot be, read from its settings; and what it trains, in numbers."""

from collections.abc import Iterator, Mapping
from typing import Any

from nemo_xtoken.errors import InputError
from nemo_xtoken.run.layout import ParallelSizes
from nemo_xtoken.run.lora.lora_settings import ATTENTION, FEED_FORWARD, TARGETS, LoraConfig

__all__ = ["lora_parameters", "lora_problems"]

#: The layers behind which Gemma 2 and 3 have a norm, inside of the same module.
NORMED = ("linear_proj", "linear_fc2")


def lora_problems(
    lora: LoraConfig | None, config: Mapping[str, Any], sizes: ParallelSizes, starts: bool
) -> Iterator[InputError]:
    """What of a run's LoRA cannot be.

    Args:
        config: the student's, by Megatron's names, as far as known.
        sizes: its layout.
        starts: whether it starts from a model.
    """
    if lora is None or not lora.on:
        return
    if not starts:
        yield InputError(
            f"lora.rank={lora.rank} for a student that starts from no model",
            "a trained student: what has no adapter stays as it is",
            "name the model that it starts from, or set lora.rank=0",
        )
    if lora.rank % sizes.tensor:
        yield InputError(
            f"lora.rank={lora.rank} with tensor_model_parallel_size={sizes.tensor}",
            "a rank that the tensor-parallel size divides: the adapters are cut along it",
            "change lora.rank, or trainer.strategy.tensor_model_parallel_size",
        )
    hidden = config.get("hidden_size")
    if hidden and lora.rank > int(hidden):
        yield InputError(
            f"lora.rank={lora.rank} in a student whose hidden size is {hidden}",
            "a rank below the hidden size: such adapters would be larger than the layers",
            "lower lora.rank, or leave lora out to train the whole student",
        )
    if config.get("num_moe_experts") and (found := [name for name in lora.layers if name in FEED_FORWARD]):
        yield InputError(
            f"lora.targets with {', '.join(found)} in a student with {config['num_moe_experts']} experts",
            f"targets in attention alone ({', '.join(ATTENTION)}): adapters of experts are not summed over the ranks "
            "that experts are spread over",
            f"set lora.targets={','.join(ATTENTION)}",
        )
    kind = str(config.get("_target_", "")).lower()
    if ("gemma2" in kind or "gemma3" in kind) and (found := [name for name in lora.layers if name in NORMED]):
        rest = ",".join(name for name in TARGETS if name not in NORMED)
        yield InputError(
            f"lora.targets with {', '.join(found)} in a Gemma model",
            f"targets without a norm behind them ({rest}): an adapter beside that norm cannot be merged",
            f"set lora.targets={rest}",
        )


def lora_parameters(lora: LoraConfig, config: Mapping[str, Any], rows: int) -> int:
    """How many numbers of the student are trained, on all ranks together.

    Args:
        config: of the student, by Megatron's names; without experts, or with adapters in attention alone.
        rows: of its output layer.
    """
    heads, hidden = int(config["num_attention_heads"]), int(config["hidden_size"])
    groups = int(config.get("num_query_groups") or heads)
    size = int(config.get("kv_channels") or hidden // heads)
    ffn = int(config.get("ffn_hidden_size") or 4 * hidden)
    gate = 2 if config.get("gated_linear_unit") else 1
    widths = {
        "linear_qkv": hidden + size * (heads + 2 * groups),
        "linear_proj": size * heads + hidden,
        "linear_fc1": hidden + gate * ffn,
        "linear_fc2": ffn + hidden,
    }
    matrices = 1 if config.get("share_embeddings_and_output_weights", True) else 2
    ends = matrices * rows * hidden if lora.embeddings else 0
    return int(config["num_layers"]) * lora.rank * sum(widths[name] for name in lora.layers) + ends

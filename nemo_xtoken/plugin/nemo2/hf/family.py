"""What an architecture is here: two configurations of one model, and which weights of one are which of the other."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Optional

import torch
from megatron.core.transformer.utils import is_layer_window_attention
from nemo.collections import llm
from nemo.lightning import io
from nemo.lightning.io.state import StateDictTransform, TransformCTX, TransformFns
from torch import Tensor

from nemo_xtoken.errors import InputError

__all__ = ["Family", "Holder", "Weights", "convert", "hf_windows", "nemo_windows", "refuse"]

#: Output layers are cut into tensor-parallel parts; this many rows divide evenly by every usual number of them.
ROWS_MULTIPLE = 128


@dataclass(frozen=True)
class Weights:
    """Some tensors of Hugging Face's model that are some of Megatron's.

    Attributes:
        hf, nemo: name, or names; ``*`` stands for the number of a layer or an expert.
        to_nemo, to_hf: functions of the tensors, as `nemo.lightning.io.state_transform` takes them; None: unchanged.
    """

    hf: str | tuple[str, ...]
    nemo: str | tuple[str, ...]
    to_nemo: Optional[Callable[..., Any]] = None
    to_hf: Optional[Callable[..., Any]] = None

    def importing(self) -> StateDictTransform:
        """NeMo's transform from Hugging Face."""
        return io.state_transform(self.hf, self.nemo, self.to_nemo or _same)

    def exporting(self) -> StateDictTransform:
        """NeMo's transform to Hugging Face."""
        return io.state_transform(self.nemo, self.hf, self.to_hf or _same)


@dataclass(frozen=True)
class Family:
    """An architecture.

    Attributes:
        model_type: as ``config.json`` names it.
        architecture: transformers' class.
        config: NeMo's configuration; of several families the first whose class fits is taken.
        to_nemo: a transformers configuration -> arguments of ``config`` (or another class under the key ``cls``).
        to_hf: NeMo's configuration -> what it says of ``config.json``.
        weights: NeMo's configuration, names of Megatron's weights -> the correspondence, without embeddings and output.
        has_head_dim: whether ``config.json`` has ``head_dim`` also where it is hidden size / heads.
    """

    model_type: str
    architecture: str
    config: type[llm.GPTConfig]
    to_nemo: Callable[[Any], dict[str, Any]]
    to_hf: Callable[[Any], dict[str, Any]]
    weights: Callable[[Any, Sequence[str]], Sequence[Weights]]
    has_head_dim: bool = True

    def nemo_config(self, hf: Any, rows: int, dtype: torch.dtype) -> llm.GPTConfig:
        """NeMo's configuration of a model in transformers.

        Args:
            hf: its text configuration.
            rows: V of embeddings and tokenizer; rounded up for the layout.
            dtype: of the weights.

        Raises:
            InputError: something in ``hf`` that NeMo's model cannot do.
        """
        arguments = {**_shape(hf), **self.to_nemo(hf)}
        cls = arguments.pop("cls", self.config)
        return cls(
            **arguments,
            vocab_size=-(-rows // ROWS_MULTIPLE) * ROWS_MULTIPLE,
            make_vocab_size_divisible_by=ROWS_MULTIPLE,
            fp16=dtype == torch.float16,
            bf16=dtype == torch.bfloat16,
            params_dtype=dtype,
        )

    def hf_config(self, config: llm.GPTConfig, vocab_size: int) -> dict[str, Any]:
        """What NeMo's configuration says of ``config.json``."""
        usual = config.kv_channels == config.hidden_size // config.num_attention_heads
        return {
            "architectures": [self.architecture],
            "model_type": self.model_type,
            "vocab_size": vocab_size,
            "num_hidden_layers": config.num_layers,
            "hidden_size": config.hidden_size,
            "intermediate_size": config.ffn_hidden_size,
            "num_attention_heads": config.num_attention_heads,
            "num_key_value_heads": config.num_query_groups,
            **({} if usual and not self.has_head_dim else {"head_dim": config.kv_channels}),
            "rms_norm_eps": config.layernorm_epsilon,
            "initializer_range": config.init_method_std,
            "tie_word_embeddings": config.share_embeddings_and_output_weights,
            "rope_theta": float(config.rotary_base) if not isinstance(config.rotary_base, tuple) else None,
            "max_position_embeddings": config.seq_length,
            **self.to_hf(config),
        }

    def transforms(self, config: llm.GPTConfig, names: Sequence[str]) -> list[Weights]:
        """The whole correspondence.

        Args:
            names: of Megatron's weights.
        """
        vocabulary = [("model.embed_tokens.weight", "embedding.word_embeddings.weight")]
        if not config.share_embeddings_and_output_weights:
            vocabulary.append(("lm_head.weight", "output_layer.weight"))
        return [
            *(Weights(hf, nemo, _pad_rows, TransformFns.prune_padding) for hf, nemo in vocabulary),
            *self.weights(config, names),
        ]


def refuse(hf: Any, what: str) -> InputError:
    """The error about a configuration that NeMo's model cannot follow."""
    return InputError(
        f"a {hf.model_type} model with {what}",
        "an architecture as published: docs/models.md lists what can be imported",
        "use another checkpoint, or NeMo's own `nemo llm import` where it has a connector for this one",
    )


def _shape(hf: Any) -> dict[str, Any]:
    """What all families have in common."""
    for name in ("attention_bias", "mlp_bias"):
        if getattr(hf, name, False) and hf.model_type != "gpt_oss":
            raise refuse(hf, f"{name}=true")
    return {
        "num_layers": hf.num_hidden_layers,
        "hidden_size": hf.hidden_size,
        "ffn_hidden_size": hf.intermediate_size,
        "num_attention_heads": hf.num_attention_heads,
        "num_query_groups": hf.num_key_value_heads,
        "kv_channels": getattr(hf, "head_dim", None) or hf.hidden_size // hf.num_attention_heads,
        "layernorm_epsilon": hf.rms_norm_eps,
        "init_method_std": hf.initializer_range,
        "share_embeddings_and_output_weights": bool(hf.tie_word_embeddings),
        "rotary_base": hf.rope_theta,
        "seq_length": hf.max_position_embeddings,
    }


def nemo_windows(hf: Any) -> dict[str, Any]:
    """Sliding windows as Megatron takes them.

    A window of W in transformers is W positions with the own one; ``(left, right)`` in Megatron and Transformer Engine
    counts those beside it, so that left is W - 1.
    """
    width, layers = getattr(hf, "sliding_window", None), hf.num_hidden_layers
    types = getattr(hf, "layer_types", None) or ["sliding_attention"] * layers
    flags = [int(kind == "sliding_attention") for kind in types]
    if not width or width >= hf.max_position_embeddings or not any(flags):
        return {"window_size": None, "window_attn_skip_freq": None}
    return {"window_size": (width - 1, 0), "window_attn_skip_freq": None if all(flags) else flags}


def hf_windows(config: Any) -> tuple[Optional[int], list[str]]:
    """``sliding_window`` and ``layer_types``."""
    windowed = [
        is_layer_window_attention(config.window_size, config.window_attn_skip_freq, layer + 1)
        for layer in range(config.num_layers)
    ]
    width = config.window_size[0] + 1 if config.window_size else None
    return width, ["sliding_attention" if w else "full_attention" for w in windowed]


def _same(x: Tensor) -> Tensor:
    return x


def _pad_rows(ctx: TransformCTX, rows: Tensor) -> Tensor:
    """Rows added for the layout are the mean of the others: no token uses them."""
    missing = ctx.target.config.vocab_size - rows.shape[0]
    if not missing:
        return rows
    mean = rows.mean(dim=0, keepdim=True, dtype=torch.float32).to(rows.dtype)
    return torch.cat([rows, mean.expand(missing, -1)])


@dataclass(frozen=True)
class Holder:
    """A model of which only the configuration is there: NeMo's transforms ask for it."""

    config: Any


class _Recorded(Mapping[str, Tensor]):
    """A state dict that knows what was read of it."""

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        self.state, self.read = state, set[str]()

    def __getitem__(self, name: str) -> Tensor:
        self.read.add(name)
        return self.state[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.state)

    def __len__(self) -> int:
        return len(self.state)


def convert(
    transforms: Sequence[StateDictTransform],
    source: Holder,
    source_state: Mapping[str, Tensor],
    target: Holder,
    target_state: Mapping[str, Tensor],
    ignored: Callable[[str], bool] = lambda name: False,
) -> dict[str, Tensor]:
    """The target's weights, each of them made from the source's, all of which are used.

    Args:
        source_state: may be lazy.
        target_state: names and shapes; the values are not looked at.
        ignored: tensors of the source that are not weights.

    Raises:
        InputError: a weight of either side that has no counterpart, or of another shape.
    """
    recorded = _Recorded(source_state)
    placeholders = dict(target_state)
    context = TransformCTX(source=source, source_state=recorded, target=target, target_state=dict(target_state))
    for transform in transforms:
        context = transform(context)
    made = context.target_state
    missing = sorted(name for name in placeholders if made[name] is placeholders[name])
    unused = sorted(name for name in source_state if name not in recorded.read and not ignored(name))
    if missing or unused:
        raise InputError(
            "weights without a counterpart: " + ", ".join((unused + missing)[:6]),
            "the weights of this architecture as it was published",
            "the checkpoint is of a variant that cannot be converted; docs/models.md lists what can",
        )
    for name, tensor in placeholders.items():
        if made[name].shape != tensor.shape:
            raise InputError(
                f"{name} of shape {list(made[name].shape)}",
                f"{list(tensor.shape)}, as the configuration says",
                "take configuration and weights from one model",
            )
    return {name: made[name] for name in placeholders}

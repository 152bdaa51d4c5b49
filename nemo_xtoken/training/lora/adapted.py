"""A linear layer with a framework's LoRA adapter, in checkpoints that may not have the adapter yet."""

from collections.abc import Iterable
from typing import Any

import torch

from nemo_xtoken.errors import InputError
from nemo_xtoken.run.lora.lora_settings import LoraConfig

__all__ = [
    "Adapted",
    "adapted",
    "check_same_lora",
    "has_adapters",
    "nothing_alone",
    "train_vocabulary",
]

#: Between the names of a layer and of its adapter's weights, in NeMo 2 and Megatron-Bridge alike.
ADAPTER_MARK = ".adapter."
#: What a student's vocabulary has weights in, by Megatron's names.
VOCABULARY = ("embedding.word_embeddings.weight", "output_layer.weight")


class Adapted:
    """What such a layer does more: see `adapted`, which puts it before the framework's class.

    A student starts from a checkpoint without adapters, and goes on from one with them.  In either the layer's own
    weights have the names that they have without an adapter, which the framework sees to when it saves.
    """

    to_wrap: torch.nn.Module
    adapter: torch.nn.Module
    in_checkpoints: bool

    def sharded_state_dict(
        self, prefix: str = "", sharded_offsets: tuple[Any, ...] = (), metadata: Any = None
    ) -> dict[str, Any]:
        """For Megatron's checkpoints; without the adapter as long as the student starts from another's."""
        if self.in_checkpoints:
            return super().sharded_state_dict(prefix, sharded_offsets, metadata)  # type: ignore[misc]
        layer: Any = self.to_wrap
        return layer.sharded_state_dict(prefix, sharded_offsets, metadata)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        """The layer's weights under their names without an adapter; an adapter that is not there stays as it is."""
        inside, beside = f"{prefix}to_wrap.", f"{prefix}adapter."
        own = [name for name in state_dict if name.startswith(prefix) and not name.startswith((inside, beside))]
        for name in own:
            state_dict[inside + name.removeprefix(prefix)] = state_dict.pop(name)
        if not self.in_checkpoints:
            for name, value in self.adapter.state_dict().items():
                state_dict.setdefault(beside + name, value)
        super()._load_from_state_dict(state_dict, prefix, *rest)  # type: ignore[misc]


def adapted(model: torch.nn.Module, kind: type, resumed: bool) -> list[Adapted]:
    """The layers of a model that a framework has given adapters, each made an `Adapted`.

    Args:
        kind: the framework's class of them, with ``to_wrap`` and ``adapter``.
        resumed: the checkpoint that is to be loaded holds the adapters.
    """
    from nemo_xtoken.training.cpu.layers import NormColumnParallelLinear  # loads Megatron

    found: list[Adapted] = []
    for layer in model.modules():
        if isinstance(layer, kind):
            made: Any = layer
            made.__class__ = type(type(layer).__name__, (Adapted, type(layer)), {})
            made.in_checkpoints = resumed
            if isinstance(made.to_wrap, NormColumnParallelLinear):  # on a GPU the framework asks the layer for it
                made.to_wrap.return_layernorm_output = True
            found.append(made)
    return found


def train_vocabulary(module: Any, trained: bool) -> None:
    """Lets a frozen student's embeddings and output layer be trained, or sees to the adapters' gradients without.

    Args:
        module: the student's Megatron module.
        trained: whether they are.
    """
    if trained:
        for name, parameter in module.named_parameters():
            if name.endswith(VOCABULARY):
                parameter.requires_grad_(True)
    elif getattr(module, "pre_process", True) and module.config.recompute_granularity == "full":
        # Layers that are made again on the way back get there where what goes into them has a gradient.
        module.embedding.register_forward_hook(lambda _, inputs, output: output.requires_grad_(torch.is_grad_enabled()))


def has_adapters(names: Iterable[str]) -> bool:
    """Whether a checkpoint with tensors of these names has adapters that are not merged."""
    return any(ADAPTER_MARK in name for name in names)


def check_same_lora(lora: LoraConfig | None, before: LoraConfig | None, path: Any) -> None:
    """Whether a run can go on from a checkpoint of its own.

    Args:
        lora, before: the run's adapters, and the checkpoint's.
        path: of the checkpoint.

    Raises:
        InputError: they are not the same.
    """
    now, then = (one.shape() if one is not None else {} for one in (lora, before))
    if now != then:
        names = [name for name in (now or then) if now.get(name) != then.get(name)]
        say = lambda shape: " ".join(f"{n}={shape[n]}" for n in names) if shape else "no LoRA"  # noqa: E731
        raise InputError(
            f"this run with {say(now)}, its checkpoint {path} with {say(then)}",
            "a run that goes on as it began",
            "set it back, or set log.name=NAME for a run of its own",
        )


def nothing_alone(checkpoint: Any, adapter: str, lora: LoraConfig | None) -> InputError:
    """The error about adapters that are to be written alone where there are none, or more was trained."""
    what = "no LoRA adapters" if lora is None else "embeddings that were trained beside its LoRA adapters"
    return InputError(
        f"adapter={adapter}, and {checkpoint} has {what}",
        "a student of which the adapters alone were trained (lora.rank)",
        "leave adapter out: the export is a model like any other",
    )

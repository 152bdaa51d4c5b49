"""NeMo's LoRA in the student's module, and what a checkpoint says of it."""

from pathlib import Path
from typing import Any

from nemo.collections.llm.peft.lora import LoRA, LoRALinear

from nemo_xtoken.errors import InputError
from nemo_xtoken.plugin.nemo2.context import load_from_context
from nemo_xtoken.run.lora.lora_settings import LoraConfig
from nemo_xtoken.training.lora.adapted import (
    Adapted,
    adapted,
    check_same_lora,
    has_adapters,
    nothing_alone,
    train_vocabulary,
)

__all__ = ["adapters_to_write", "add_adapters", "check_resumed_lora", "lora_in"]


def add_adapters(model: Any, lora: LoraConfig, resumed: bool) -> list[Adapted]:
    """Freezes a model and gives its layers NeMo's adapters; embeddings and output layer are trained if asked for.

    Unlike NeMo's callback, which puts them around weights that have been loaded and leaves the frozen weights out of
    checkpoints, this is done when the model is built: a checkpoint is whole, and needs no other to be used.

    Args:
        model: NeMo's, whose Megatron module has been built and nothing is wrapped around it yet.
        resumed: the checkpoint that is to be loaded holds the adapters.

    Returns:
        the layers with adapters.
    """
    LoRA(target_modules=lora.layers, dim=lora.rank, alpha=lora.alpha)(model)
    train_vocabulary(model.module, bool(lora.embeddings))
    return adapted(model.module, LoRALinear, resumed)


def lora_in(checkpoint: Path, trust: bool = False) -> LoraConfig | None:
    """The adapters in a checkpoint; None: it has none.  Reads its header.

    Args:
        trust: code that the checkpoint names may run.

    Raises:
        InputError: it has some, and does not say of which settings.
    """
    from megatron.core import dist_checkpointing

    if not has_adapters(dist_checkpointing.load_tensors_metadata(str(checkpoint / "weights"))):
        return None
    found = load_from_context(checkpoint, "model.lora", "train it again: the rank and alpha are not known", trust)
    if not isinstance(found, LoraConfig):
        raise InputError(
            f"adapters in {checkpoint} of type {type(found).__name__}",
            "those of a run of nemo_xtoken's with lora.rank",
            "merge them by what made them (`llm.peft.merge_lora`)",
        )
    return found


def adapters_to_write(checkpoint: Path, adapter: str | None, trust: bool = False) -> LoraConfig | None:
    """The adapters in a checkpoint that is to be exported; None: it has none.

    Args:
        adapter: the model that they belong to, where they are to be written alone.
        trust: see `lora_in`.

    Raises:
        InputError: they are to be written alone, and there are none, or they are not all that was trained.
    """
    lora = lora_in(checkpoint, trust)
    if adapter is not None and (lora is None or lora.embeddings):
        raise nothing_alone(checkpoint, adapter, lora)
    return lora


def check_resumed_lora(lora: LoraConfig | None, checkpoint: Path | None, trust: bool = False) -> None:
    """A run goes on with the adapters that it began with.

    Args:
        lora: of the run now.
        checkpoint: what it goes on from; None, or one without a ``weights``, is not checked.
        trust: see `lora_in`.

    Raises:
        InputError: the checkpoint's are others.
    """
    if checkpoint is not None and (checkpoint / "weights").is_dir():
        check_same_lora(lora, lora_in(checkpoint, trust), checkpoint)

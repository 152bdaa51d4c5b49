"""Bridge's LoRA in the student's module, what a run's folder says of it, and how it is written at the end."""

import contextlib
import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from nemo_xtoken.errors import InputError
from nemo_xtoken.plugin.bridge.run_folder import DATA
from nemo_xtoken.run.lora.lora_settings import LoraConfig
from nemo_xtoken.training.hosting.teacher_host import OF_ANOTHER_RUN, OF_TRAINING, set_where_known
from nemo_xtoken.training.lora.adapted import (
    Adapted,
    adapted,
    check_same_lora,
    has_adapters,
    nothing_alone,
    train_vocabulary,
)

__all__ = [
    "adapters_of",
    "add_bridge_adapters",
    "check_resumed",
    "described",
    "export_adapted",
    "recorded",
    "with_adapters",
]

#: In the file of what a run was begun with.
LORA = "lora"


def add_bridge_adapters(chunks: list[Any], lora: LoraConfig, resumed: bool) -> list[Adapted]:
    """Freezes a model and gives its layers Bridge's adapters; embeddings and output layer are trained if asked for.

    Bridge's own setting (``peft``) would leave the frozen weights out of checkpoints; here a checkpoint is whole, and
    needs no other to be used.

    Args:
        chunks: this rank's part of the model, in a pre-wrap hook; one, without a virtual pipeline.
        resumed: the checkpoint that is to be loaded holds the adapters.

    Returns:
        the layers with adapters.
    """
    from megatron.bridge.peft.lora_layers import LoRALinear

    (module,) = chunks
    _peft(lora)(chunks)
    train_vocabulary(module, bool(lora.embeddings))
    return adapted(module, LoRALinear, resumed)


def _peft(lora: LoraConfig) -> Any:
    from megatron.bridge.peft.lora import LoRA

    return LoRA(target_modules=lora.layers, dim=lora.rank, alpha=lora.alpha)


def described(lora: LoraConfig | None) -> dict[str, Any]:
    """What a run's folder says of its adapters; nothing where it has none."""
    return {LORA: dataclasses.asdict(lora)} if lora is not None and lora.on else {}


def recorded(folder: Path) -> LoraConfig | None:
    """The adapters of a run, as its folder names them; None where it has none."""
    file = folder / DATA
    found = json.loads(file.read_text("utf-8")).get(LORA) if file.is_file() else None
    return LoraConfig(**found) if isinstance(found, Mapping) else None


def adapters_of(checkpoint: Any, adapter: str | None) -> LoraConfig | None:
    """The adapters in a checkpoint that is to be exported; None: it has none.

    Args:
        checkpoint: one of Bridge's own.
        adapter: the model that they belong to, where they are to be written alone.

    Raises:
        InputError: they are to be written alone, and there are none, or they are not all that was trained; or the run's
            folder, which names their rank, is not there.
    """
    folder = Path(checkpoint.source).parent.parent
    lora = recorded(folder) if (found := has_adapters(checkpoint.tensors())) else None
    if found and lora is None:
        raise InputError(
            f"adapters in {checkpoint.source}, and no {folder / DATA} that says of which rank",
            "a checkpoint in its run's folder",
            "copy the run's folder whole",
        )
    if adapter is not None and (lora is None or lora.embeddings):
        raise nothing_alone(checkpoint.source, adapter, lora)
    return lora


def check_resumed(lora: LoraConfig | None, names: Iterable[str], folder: Path) -> None:
    """A run goes on with the adapters that it began with.

    Args:
        lora: of the run now.
        names: of what is in the checkpoint.
        folder: of the run.

    Raises:
        InputError: the checkpoint's are others.
    """
    check_same_lora(lora, recorded(folder) if has_adapters(names) else None, folder)


@contextlib.contextmanager
def with_adapters(checkpoint: str, lora: LoraConfig) -> Iterator[tuple[str, list[Any]]]:
    """A trained student with its adapters beside its layers, in float32, on one rank; process groups are gone
    afterwards.

    Args:
        checkpoint: folder of the iteration.

    Yields:
        the type of the weights in the checkpoint; the model.
    """
    import torch
    from megatron.bridge.training.model_load_save import (
        build_and_load_model,
        load_model_config,
        temporary_distributed_context,
    )

    provider = load_model_config(checkpoint)[0]
    stored = str(provider.params_dtype).removeprefix("torch.")
    set_where_known(provider, OF_ANOTHER_RUN | OF_TRAINING)
    for axis in ("tensor_model", "pipeline_model", "context", "expert_model", "expert_tensor"):
        setattr(provider, f"{axis}_parallel_size", 1)
    provider.sequence_parallel, provider.virtual_pipeline_model_parallel_size = False, None
    provider.bf16, provider.fp16 = False, False
    provider.params_dtype = provider.pipeline_dtype = torch.float32

    def hook(chunks: list[Any]) -> list[Any]:
        add_bridge_adapters(chunks, lora, resumed=True)
        return chunks

    provider.register_pre_wrap_hook(hook)
    with temporary_distributed_context(backend="gloo"):
        made = build_and_load_model(checkpoint, provider, use_cpu_init=True, skip_temp_dist_context=True)
        yield stored, made if isinstance(made, list) else [made]


def export_adapted(bridge: Any, checkpoint: str, lora: LoraConfig, out: Path, adapter: str | None) -> str:
    """What `AutoBridge.export_ckpt` does, of a student with adapters: merged, before anything is rounded, or the
    adapters alone.

    Args:
        bridge: Bridge's, of the model that the student started from.
        checkpoint: folder of the iteration.
        out: the folder to write into.
        adapter: the model that the adapters belong to; None: they are merged.

    Returns:
        the type of the weights in the checkpoint; those written are float32.
    """
    with with_adapters(checkpoint, lora) as (stored, chunks):
        if adapter is None:
            bridge.save_hf_pretrained(chunks, str(out), show_progress=False, strict=False)
        else:
            bridge.save_hf_adapter(chunks, str(out), _peft(lora), adapter, show_progress=False)
    return stored

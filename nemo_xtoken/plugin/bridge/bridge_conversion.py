"""A student that Megatron-Bridge trained, for transformers: what ``xtoken export`` does where NeMo 2 is absent."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Optional

import torch
import torch.distributed as dist

from nemo_xtoken.errors import InputError
from nemo_xtoken.plugin.bridge.checkpoints import Checkpoint
from nemo_xtoken.plugin.bridge.lora.bridge_adapters import adapters_of, export_adapted
from nemo_xtoken.plugin.bridge.run_folder import DATA
from nemo_xtoken.vocab.loading import load_vocabulary
from nemo_xtoken.weights.checkpoint_names import bridge_checkpoints
from nemo_xtoken.weights.dtypes import FLOATS
from nemo_xtoken.weights.folder import check_out, new_folder, read_json, write_json
from nemo_xtoken.weights.language_model import is_inside
from nemo_xtoken.weights.tokenizer_files import copy_tokenizer

__all__ = ["export_model"]


def export_model(
    run: str | Path,
    out: str | Path,
    dtype: Optional[str] = None,
    overwrite: bool = False,
    say: Callable[[str], None] = lambda stage: None,
    trust: bool = False,
    adapter: Optional[str] = None,
) -> Path:
    """Writes a trained student in Hugging Face's format, by Bridge's own conversion, with the run's tokenizer.

    Args:
        run: a run's folder, whose newest checkpoint is taken, or the folder of a checkpoint (``iter_*``).
        out: the folder to write; it is whole or absent.
        dtype: float32, bfloat16 or float16; by default that of the model that the student started from.
        overwrite: replace a checkpoint at ``out``.
        say: called with a line on what is being done.
        adapter: write LoRA adapters alone, for PEFT, which belong to this model; None: merged into the layers.
        trust: has no meaning here: nothing that a checkpoint brings runs, and what would is refused.

    Returns:
        ``out``.

    Raises:
        InputError: there is no checkpoint of Bridge's, it cannot be exported, or ``out`` exists.
    """
    out = Path(out)
    if dtype is not None and dtype not in FLOATS.values():
        raise InputError(f"dtype={dtype!r}", f"one of {', '.join(FLOATS.values())}", "change it")
    check_out(out, overwrite)
    if dist.is_initialized():
        raise RuntimeError("a checkpoint is converted before or after training, or in a process of its own")
    checkpoint = _find(Path(run).expanduser())
    say(f"reading {checkpoint.source}")
    checkpoint.check()
    model, tokenizer = checkpoint.tokenizer("model.tokenizer.source"), _tokenizer(Path(checkpoint.source))
    lora = adapters_of(checkpoint, adapter)
    with new_folder(out, overwrite) as folder:
        bridge = _bridge(checkpoint, model)
        if lora is None:
            bridge.export_ckpt(checkpoint.source, str(folder), show_progress=False)
        else:
            stored = export_adapted(bridge, checkpoint.source, lora, folder, adapter)
            dtype = dtype or stored
        source = tokenizer or model
        copy_tokenizer(source, folder, load_vocabulary(source))
        if dtype is not None:
            say(f"converting to {dtype}")
            _cast(folder, getattr(torch, dtype))
    return out


def _find(run: Path) -> Checkpoint:
    found = list(bridge_checkpoints(run).values())
    made = Checkpoint.at(str(found[0] if found else run), "run")
    if not made.bridge:
        raise InputError(
            f"run={run} has no checkpoint of Megatron-Bridge's",
            "a run's folder (with `checkpoints`), or a checkpoint's (`iter_*`)",
            "fix the path",
        )
    return made


def _tokenizer(checkpoint: Path) -> str | None:
    """The student's, as its run's folder names it; None where there is none."""
    file = checkpoint.parent.parent / DATA
    found = json.loads(file.read_text("utf-8")).get("tokenizer") if file.is_file() else None
    return found if isinstance(found, str) else None


def _bridge(checkpoint: Checkpoint, model: str) -> Any:
    """Of the model that the student started from; of its configuration alone where it had random weights."""
    from megatron.bridge import AutoBridge

    from nemo_xtoken.plugin.bridge.hugging_face import bridge_of

    folder = Path(model)
    weights = not folder.is_dir() or any(folder.glob("*.safetensors"))
    if not weights and hasattr(AutoBridge, "from_auto_config") and not is_inside(read_json(folder / "config.json")):
        return AutoBridge.from_auto_config(checkpoint.source, model)
    return bridge_of(model, weights)


def _cast(folder: Path, dtype: torch.dtype) -> None:
    """Gives the floating-point weights in a folder another type."""
    from safetensors.torch import load_file, save_file

    for file in folder.glob("*.safetensors"):  # of a model, or of adapters alone
        tensors = {n: t.to(dtype) if t.is_floating_point() else t for n, t in load_file(file).items()}
        save_file(tensors, file, {"format": "pt"})
    if not (folder / "config.json").is_file():
        return
    config = read_json(folder / "config.json")
    name = "dtype" if "dtype" in config else "torch_dtype"
    write_json(folder / "config.json", {**config, name: str(dtype).removeprefix("torch.")})

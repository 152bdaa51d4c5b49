"""Hugging Face's format into NeMo 2 checkpoints, and back: what ``xtoken import`` and ``xtoken export`` do."""

from collections.abc import Callable
from pathlib import Path
from typing import Optional

import torch

from nemo_xtoken.checksums import write_checksums
from nemo_xtoken.errors import InputError
from nemo_xtoken.plugin.nemo2.hf.exporting import HFExporter, find_checkpoint
from nemo_xtoken.plugin.nemo2.hf.session import refuse_in_training
from nemo_xtoken.plugin.nemo2.model import DistillationImporter
from nemo_xtoken.weights.dtypes import FLOATS
from nemo_xtoken.weights.folder import ModelFolder, check_out, new_folder

__all__ = ["export_model", "import_model"]


def import_model(
    model: str | Path,
    out: str | Path,
    dtype: Optional[str] = None,
    overwrite: bool = False,
    say: Callable[[str], None] = lambda stage: None,
) -> Path:
    """Makes a NeMo 2 checkpoint of a Hugging Face model, for a student (``resume.restore_config.path``) or a teacher
    (``teacher.path``).  One process; no GPU; as much memory as the model has weights.  Any layout can load the result.

    Args:
        model: a folder in Hugging Face's format, or a hub name; docs/models.md lists the architectures.
        out: the folder to write; it is whole or absent.
        dtype: float32, bfloat16 or float16; by default that of the weights.
        overwrite: replace a checkpoint at ``out``.
        say: called with a line on what is being done.

    Returns:
        ``out``.

    Raises:
        InputError: the model cannot be imported, or ``out`` exists.
    """
    out = Path(out)
    to = _check(out, dtype, overwrite)
    say(f"looking for {model}")
    source = ModelFolder(model)
    with new_folder(out, overwrite) as folder:
        DistillationImporter(str(source.path)).apply(folder, to, say)
        say("writing checksums")
        write_checksums(folder)
    return out


def export_model(
    run: str | Path,
    out: str | Path,
    dtype: Optional[str] = None,
    overwrite: bool = False,
    say: Callable[[str], None] = lambda stage: None,
    trust: bool = False,
    adapter: Optional[str] = None,
) -> Path:
    """Writes a trained model for transformers: config.json, generation_config.json, safetensors, the tokenizer's files.
    One process; no GPU; as much memory as the model has weights.  Rows added for the layout are left out.

    Args:
        run: a run's folder, whose newest checkpoint is taken, or the folder of a checkpoint.
        out: the folder to write; it is whole or absent.
        dtype: float32, bfloat16 or float16; by default that of the weights in the checkpoint.
        overwrite: replace a checkpoint at ``out``.
        say: called with a line on what is being done.
        trust: code that the checkpoint brings may run.
        adapter: write LoRA adapters alone, for PEFT, which belong to this model; None: merged into the layers.

    Returns:
        ``out``.

    Raises:
        InputError: there is no checkpoint, it cannot be exported, or ``out`` exists.
    """
    out = Path(out)
    to = _check(out, dtype, overwrite)
    checkpoint = find_checkpoint(run)
    say(f"reading {checkpoint}")
    with new_folder(out, overwrite) as folder:
        HFExporter(str(checkpoint)).apply(folder, to, say, trust, adapter)
    return out


def _check(out: Path, dtype: Optional[str], overwrite: bool) -> Optional[torch.dtype]:
    """torch's type of that name, after the checks that allow the conversion."""
    if dtype is not None and dtype not in FLOATS.values():
        raise InputError(f"dtype={dtype!r}", f"one of {', '.join(FLOATS.values())}", "change it")
    check_out(out, overwrite)
    refuse_in_training()
    return None if dtype is None else getattr(torch, dtype)

"""Imports for a run as commands in processes of their own: they need process groups that training must not see, and as
much memory as a model has."""

import os
from pathlib import Path
from typing import Any, Optional

from nemo_xtoken.evaluate.results import identity_of
from nemo_xtoken.files import cache_root, digest_of
from nemo_xtoken.plugin import swapping
from nemo_xtoken.progress import Parts, Phase, say
from nemo_xtoken.sharing.exclusive import exclusive
from nemo_xtoken.sharing.first_process import Launch, made_by_first
from nemo_xtoken.weights.folder import ModelFolder

__all__ = ["imported", "is_checkpoint", "is_to_be_imported", "stored_dtype"]

#: In the folder of a model in the cache.
CHECKPOINT = "checkpoint"
VERSION = 1  # raise it when an import of the same files gives another checkpoint


def is_checkpoint(path: str | Path) -> bool:
    """Whether it is the folder of a NeMo 2 checkpoint."""
    return (Path(path).expanduser() / "weights").is_dir()


def is_to_be_imported(model: str) -> bool:
    """Whether it is neither a checkpoint nor in the cache.

    Raises:
        InputError: there is no such model.
    """
    return not is_checkpoint(model) and not (_place(ModelFolder(model).path) / CHECKPOINT).exists()


def imported(model: str, parts: Parts) -> Path:
    """The NeMo 2 checkpoint of a model: itself where it is one, else from the cache, or imported now.

    Of the processes of a run the first does it.

    Args:
        model: the folder of a checkpoint, a folder in Hugging Face's format, or a hub name.
        parts: an import is the next of these.

    Raises:
        InputError: there is no such model, or it cannot be imported.
    """
    if is_checkpoint(model):
        return Path(model).expanduser()
    source = ModelFolder(model).path
    folder = _place(source)
    out = folder / CHECKPOINT

    def make() -> dict[str, Any]:
        with exclusive(folder, f"importing {model}", lambda who: say(f"waiting for {who}")):
            if not out.exists():
                parts.begin(f"importing {model} (once)")
                with Phase(f"importing {model}", announced=False):
                    swapping.run_command("import", f"model={source}", f"out={out}")
        return {}

    made_by_first(Launch.of(os.environ), folder / "jobs", folder.name, f"importing {model}", make)
    return out


def _place(source: Path) -> Path:
    return cache_root() / "imported" / digest_of(str(VERSION), identity_of(str(source)))[:16]


def stored_dtype(model: str | Path) -> Optional[str]:
    """The widest type of the weights of a model in Hugging Face's format; None of a checkpoint."""
    if is_checkpoint(model):
        return None
    return ModelFolder(model).dtype

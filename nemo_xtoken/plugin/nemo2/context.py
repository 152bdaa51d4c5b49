"""What NeMo 2 saves beside the weights of a checkpoint: how its model was configured, and its tokenizer."""

from pathlib import Path
from typing import Any

from nemo.lightning import io

from nemo_xtoken.errors import InputError
from nemo_xtoken.plugin.nemo2.checkpoints.safe_context import check_context, context_file
from nemo_xtoken.plugin.nemo2.tokenizer import XTokenTokenizer

__all__ = ["load_from_context", "load_tokenizer"]


def load_from_context(checkpoint: Path, what: str, fix: str, trust: bool = False) -> Any:
    """A part of what ``checkpoint`` was trained with.

    Args:
        checkpoint: its folder, with ``context``.
        what: the part: ``model.config``, ``model.tokenizer``.
        fix: what to do where it cannot be loaded.
        trust: make objects of whatever the context names; else of the classes on a list.

    Raises:
        InputError: the part cannot be loaded, or is of a class that is not on the list.
    """
    if not trust:
        check_context(checkpoint, what)
    path = context_file(checkpoint).parent
    try:
        return io.load_context(path, subpath=what)
    except InputError:
        raise
    except Exception as error:  # a context is code that runs: it may raise anything
        raise InputError(
            f"{what} cannot be loaded from {path} ({type(error).__name__}: {error})",
            "what NeMo 2 saves beside the weights",
            fix,
        ) from error


def load_tokenizer(checkpoint: Path, override: str, fix: str, trust: bool = False) -> XTokenTokenizer:
    """The tokenizer that ``checkpoint`` was trained with.

    Args:
        checkpoint: its folder.
        override: the argument that names another one.
        fix, trust: see `load_from_context`.

    Raises:
        InputError: the tokenizer cannot be loaded, or is of another kind than Hugging Face's.
    """
    found = load_from_context(checkpoint, "model.tokenizer", fix, trust)
    if isinstance(found, XTokenTokenizer):
        return found
    name = getattr(getattr(found, "tokenizer", None), "name_or_path", None)
    if name:
        return XTokenTokenizer(name)
    raise InputError(
        f"a tokenizer of type {type(found).__name__} in {checkpoint}",
        "a Hugging Face tokenizer",
        f"name the tokenizer's folder with {override}=FOLDER",
    )

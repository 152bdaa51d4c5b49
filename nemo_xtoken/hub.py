"""Files of models on the Hugging Face hub, from its cache or downloaded.  No code of a repository is run."""

import re
from collections.abc import Iterable
from pathlib import Path

from nemo_xtoken.errors import InputError

__all__ = ["hub_folder", "is_hub_name"]

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")


def is_hub_name(name: str) -> bool:
    """Whether a model on the hub can be called so."""
    return _NAME.fullmatch(name) is not None


def hub_folder(name: str, patterns: Iterable[str], what: str, expected: str) -> Path:
    """The folder in the hub's cache with files of a model.

    Args:
        name: as on the hub: ``meta-llama/Llama-3.2-1B``.
        patterns: of the files that are wanted.
        what: they are, for error messages: ``weights``.
        expected: in place of ``name``, for error messages.

    Raises:
        InputError: the hub does not give its files, and they are not in its cache.
    """
    try:
        from huggingface_hub import snapshot_download
    except ModuleNotFoundError as error:
        raise InputError(
            f"{name!r} is not a file or folder here, and without the package {error.name} the Hugging Face hub cannot "
            "be asked for it",
            expected,
            "correct the path, or pip install huggingface_hub",
        ) from error
    try:
        return Path(snapshot_download(name, allow_patterns=list(patterns)))
    except Exception as error:  # of the network, the hub, the cache
        reason = " ".join(str(error).split())[:300]
        raise InputError(
            f"{name!r} is not a file or folder here, and the Hugging Face hub has no {what} for it: {reason}",
            expected,
            "check the name; gated models need HF_TOKEN; without network, download it elsewhere and give its folder",
        ) from error

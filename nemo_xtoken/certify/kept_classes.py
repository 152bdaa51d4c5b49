"""The prefix classes of two tokenizers, kept in the cache: they take longest of what a certificate begins with."""

import inspect
import logging
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as safetensors_bytes

from nemo_xtoken.files import atomic_path, cache_root, digest_of
from nemo_xtoken.projection import build, components, contexts, prefixes
from nemo_xtoken.projection.overlaps import Overlaps
from nemo_xtoken.projection.prefixes import PrefixClasses, SpelledTokens
from nemo_xtoken.vocab import encoders, readers, vocabulary
from nemo_xtoken.vocab.vocabulary import Vocabulary

__all__ = ["MAKERS", "load_or_make"]

logger = logging.getLogger(__name__)

#: The code that makes classes, and that of the tokenizers that they are made of; what other code has made is not read.
MAKERS = (prefixes, contexts, components, build, encoders, readers, vocabulary)
_ARRAYS = [(side, name) for side in ("student", "teacher") for name in ("classes", "tokens", "pieces")]


def load_or_make(student: Vocabulary, teacher: Vocabulary) -> PrefixClasses:
    """The classes of this pair from the cache, where they are put at first use.

    The file is named by the digests of both tokenizers and of the code.  One that cannot be read is replaced.

    Raises:
        InputError: the tokenizers have no token in common.
    """
    key = digest_of(student.digest, teacher.digest, *map(inspect.getsource, MAKERS))
    cached = cache_root() / "classes" / f"{key[:32]}.safetensors"
    if cached.is_file():
        try:
            return _load(cached, key, student, teacher)
        except (SafetensorError, OSError, ValueError) as error:
            logger.warning("making prefix classes again, %s cannot be used: %s", cached, error)
    classes = PrefixClasses.of(student, teacher)
    arrays = {f"{side}.{name}": getattr(getattr(classes, side), name) for side, name in _ARRAYS}
    try:
        with atomic_path(cached) as temporary:
            temporary.write_bytes(safetensors_bytes(arrays, metadata={"checksum": _checksum(key, arrays)}))
    except (OSError, SafetensorError) as error:
        # a place that can only be read serves those who only look
        logger.warning("prefix classes made, and not kept in the cache: %s", error)
    return classes


def _load(path: Path, key: str, student: Vocabulary, teacher: Vocabulary) -> PrefixClasses:
    with safe_open(path, framework="numpy") as file:
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (safe_open is not a dict)
        if (file.metadata() or {}).get("checksum") != _checksum(key, arrays):
            raise ValueError("its checksum is another")
    sides = [SpelledTokens(*(arrays[f"{side}.{name}"] for _, name in _ARRAYS[:3])) for side in ("student", "teacher")]
    return PrefixClasses(sides[0], sides[1], Overlaps(student, teacher))


def _checksum(key: str, arrays: dict[str, np.ndarray]) -> str:
    """SHA-256 (hex) of all that a file says, and of what it is about."""
    parts = ((f"{name} {array.dtype.str} {array.shape}", array.tobytes()) for name, array in sorted(arrays.items()))
    return digest_of(key, *(part for pair in parts for part in pair))

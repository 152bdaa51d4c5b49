"""What a teacher is, in a few digests: states of teachers with equal fingerprints may stand for each other."""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nemo_xtoken.errors import InputError
from nemo_xtoken.files import atomic_path, cache_root, digest_of
from nemo_xtoken.sharing.file_lock import file_lock

__all__ = ["Fingerprint", "architecture_digest", "weights_digest", "weights_sample"]

_BLOCK = 16 * 2**20
#: Of `weights_sample`: pieces of a file that are read, and their bytes.
_PIECES, _PIECE = 16, 64 * 2**10


@dataclass(frozen=True)
class Fingerprint:
    """All that decides the hidden states of a text, and what logits they make.

    Attributes:
        weights: digest of the checkpoint's files: layers, final norm and output layer.
        architecture: digest of the configuration, as far as it decides what is computed.
        tokenizer: digest of the vocabulary.
        hidden_size: H.
        dtype: in which it computes, as torch names it: ``bfloat16``.
    """

    weights: str
    architecture: str
    tokenizer: str
    hidden_size: int
    dtype: str

    @property
    def digest(self) -> str:
        """Of all of it, 64 hexadecimal digits."""
        return digest_of("teacher 1", *(f"{name}={value}" for name, value in asdict(self).items()))

    def as_json(self) -> str:
        """For headers and messages."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> "Fingerprint":
        """
        Raises:
            ValueError: it is none.
        """
        try:
            found = json.loads(text)
            return cls(
                str(found["weights"]),
                str(found["architecture"]),
                str(found["tokenizer"]),
                int(found["hidden_size"]),
                str(found["dtype"]),
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"no fingerprint of a teacher ({error!r})") from error

    def differences(self, other: "Fingerprint") -> str:
        """What of another one is different, for messages; empty where nothing is."""
        mine, its = asdict(self), asdict(other)
        return ", ".join(
            f"{name} {shown(its[name])} where {shown(mine[name])} is wanted" for name in mine if mine[name] != its[name]
        )


def shown(value: Any) -> str:
    """A digest's first digits, or the value."""
    text = str(value)
    return text[:12] if len(text) > 32 else text


def architecture_digest(config: Mapping[str, Any]) -> str:
    """Of a configuration by Megatron's names: of ``run.spec.plain_config``, and the cap on logits."""
    return digest_of("architecture 1", json.dumps(dict(config), sort_keys=True, default=str))


def weights_digest(files: Iterable[Path], memory: Path | None = None) -> str:
    """Of the contents of a checkpoint's files and their names below the folder that they share; the paths do not count.

    Reads all of them once (about a second for a gigabyte).  The result is kept, with names, sizes and times of change,
    so that later processes need not; of several that ask at once, one reads.

    Args:
        memory: the folder where results are kept; default ``fingerprints`` in the cache folder.

    Raises:
        InputError: there is no file, or one cannot be read.
    """
    paths = _places(files)
    try:
        stats = [(str(p), s.st_size, s.st_mtime_ns) for p in paths for s in [p.stat()]]
        folder = cache_root() / "fingerprints" if memory is None else memory
        folder.mkdir(parents=True, exist_ok=True)
        kept = folder / digest_of(repr(stats))[:32]
        with file_lock(f"{kept}.lock"):
            if kept.is_file():
                return kept.read_text("ascii").strip()
            parts = [(name, _content(path)) for path, name in paths.items()]
            found = digest_of("weights 1", *(part for pair in parts for part in pair))
            with atomic_path(kept) as temporary:
                temporary.write_text(found, "ascii")
    except OSError as error:
        raise InputError(
            f"the teacher's weights cannot be read for their fingerprint: {error}",
            "files that can be read, and a cache folder that can be written",
            "check the path of the teacher, and NEMO_XTOKEN_CACHE",
        ) from error
    return found


def weights_sample(files: Iterable[Path]) -> str:
    """Of names, sizes and evenly spread pieces of a checkpoint's files, a megabyte of each at most.

    For telling, at the cost of no time, that other weights lie where some were: training changes all of them.  States
    are never taken for one another by it, as they are by `weights_digest`.

    Raises:
        InputError: there is no file.
        OSError: one cannot be read.
    """
    parts: list[str] = []
    for path, name in _places(files).items():
        h, size = hashlib.blake2b(digest_size=32), path.stat().st_size
        with open(path, "rb") as file:
            for number in range(_PIECES):
                file.seek(max(size - _PIECE, 0) * number // (_PIECES - 1))
                h.update(file.read(_PIECE))
        parts += [name, str(size), h.hexdigest()]
    return digest_of("weights, sampled 1", *parts)


def _places(files: Iterable[Path]) -> dict[Path, str]:
    """The files that are meant, in order, with their names below the folder that they share.

    Raises:
        InputError: there is none.
    """
    paths = sorted(Path(os.path.realpath(path)) for path in files)
    if not paths:
        raise InputError("a teacher's checkpoint without files", "its weights", "correct the path of the teacher")
    base = os.path.commonpath([path.parent for path in paths])
    return {path: str(path.relative_to(base)) for path in paths}


def _content(path: Path) -> str:
    h = hashlib.blake2b(digest_size=32)
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            h.update(block)
    return h.hexdigest()

"""Where files go and how they get there: the cache folder, digests, writes that are whole or absent; what is in one."""

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

__all__ = ["TensorPlace", "atomic_path", "cache_root", "digest_of", "tensor_places"]


def cache_root() -> Path:
    """The folder for everything that can be rebuilt: ``$NEMO_XTOKEN_CACHE``, else ``$XDG_CACHE_HOME/nemo_xtoken``."""
    if explicit := os.environ.get("NEMO_XTOKEN_CACHE"):
        return Path(explicit)
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "nemo_xtoken"


def digest_of(*parts: str | bytes) -> str:
    """SHA-256 (hex) of the parts; each is preceded by its length, so that no two lists of parts collide."""
    h = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        h.update(len(data).to_bytes(8, "little"))
        h.update(data)
    return h.hexdigest()


@contextlib.contextmanager
def atomic_path(target: str | Path) -> Iterator[Path]:
    """Yields a temporary path beside ``target``; on success it is synced and renamed onto it, on error removed."""
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    fd, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=".tmp")
    os.close(fd)
    temporary = Path(name)
    try:
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # mkstemp makes it private
        with open(temporary, "rb") as f:
            os.fsync(f.fileno())
        os.replace(temporary, target)
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # the rename itself
        finally:
            os.close(folder)
    finally:
        temporary.unlink(missing_ok=True)


class TensorPlace(NamedTuple):
    """Where a tensor lies in a safetensors file: type as the format names it, shape, first byte and end in the file."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def tensor_places(path: Path) -> tuple[dict[str, TensorPlace], dict[str, str]]:
    """The tensors of a safetensors file by name, and the strings in its header.  The tensors themselves are not read.

    The format (huggingface.co/docs/safetensors): 8 bytes with the length of a JSON header, the header (for each tensor
    its type, shape, and its place in what follows; strings under ``__metadata__``), then the tensors' bytes,
    little-endian.  The ``safetensors`` package gives tensors, not their places, and so no memory maps.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is cut short, or no safetensors file.
    """
    with open(path, "rb") as file:
        length, size = int.from_bytes(file.read(8), "little"), os.fstat(file.fileno()).st_size
        if not 2 <= length <= size - 8:
            raise ValueError(f"a header of {length} bytes in a file of {size}")
        try:
            header = json.loads(file.read(length))
            metadata: dict[str, str] = header.pop("__metadata__", None) or {}
            start, places = 8 + length, {}
            for name, t in header.items():
                begin, end = map(int, t["data_offsets"])
                places[name] = TensorPlace(str(t["dtype"]), tuple(map(int, t["shape"])), start + begin, start + end)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"a header that is not one of safetensors ({error!r})") from error
    needed = max((place.end for place in places.values()), default=start)
    if size < needed:
        raise ValueError(f"{size} bytes where its header announces {needed}")
    return places, metadata

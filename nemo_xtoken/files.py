"""Where files go and how they get there: the cache folder, digests, writes that are whole or absent; what is in one."""

import contextlib
import functools
import hashlib
import json
import os
import resource
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from nemo_xtoken.errors import InputError
from nemo_xtoken.leftovers import temporary_name, tidy

__all__ = [
    "TensorPlace",
    "at_home",
    "atomic_path",
    "cache_root",
    "digest_of",
    "file_digest",
    "raise_open_files",
    "tensor_places",
]

#: Bytes of a safetensors header; the safetensors package reads no longer one.
MOST_HEADER = 100_000_000
BLOCK = 4 << 20  # bytes of a file read at a time for its digest
_MOST_OPEN = 65536  # some programs close every descriptor that there could be


def cache_root() -> Path:
    """The folder for everything that can be rebuilt: ``$NEMO_XTOKEN_CACHE``, else ``$XDG_CACHE_HOME/nemo_xtoken``."""
    if explicit := os.environ.get("NEMO_XTOKEN_CACHE"):
        return Path(explicit).expanduser()  # a shell leaves ``~`` as it is within a word, and so does a YAML file
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")).expanduser() / "nemo_xtoken"


def at_home(text: str) -> str:
    """A path with the home folder in place of ``~``, which a shell leaves as it is within a word; else the text."""
    return os.path.expanduser(text) if text == "~" or text.startswith("~/") else text


def raise_open_files() -> None:
    """Lets this process, and those that it starts, have as many files open as the system allows it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MOST_OPEN if hard == resource.RLIM_INFINITY else min(hard, _MOST_OPEN)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def digest_of(*parts: str | bytes) -> str:
    """SHA-256 (hex) of the parts; each is preceded by its length, so that no two lists of parts collide."""
    h = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        h.update(len(data).to_bytes(8, "little"))
        h.update(data)
    return h.hexdigest()


def file_digest(path: str | Path) -> str:
    """SHA-256 (hex) of a file, which may be larger than memory.

    Raises:
        OSError: the file cannot be read.
    """
    h = hashlib.sha256()
    with open(path, "rb", buffering=0) as file:
        while piece := file.read(BLOCK):
            h.update(piece)
    return h.hexdigest()


@contextlib.contextmanager
def atomic_path(target: str | Path) -> Iterator[Path]:
    """Yields a temporary path beside ``target``; on success it is synced and renamed onto it, on error removed.

    A symbolic link stays and the file that it points to is replaced.  A pipe or a terminal (``/dev/stdout``,
    ``/dev/null``) gets the bytes once they are all there, and stays what it is.

    What killed processes left in the folder is removed before the first file that a process writes there.

    Raises:
        InputError: at ``target`` stands what no file can replace: a folder, a socket, a disk.
    """
    target = Path(target)
    if _is_stream(target):
        with tempfile.TemporaryDirectory() as elsewhere:
            yield (temporary := Path(elsewhere) / "output")
            with open(temporary, "rb") as whole, open(target, "wb") as stream:
                shutil.copyfileobj(whole, stream)
        return
    if target.is_symlink():
        target = Path(os.path.realpath(target))
    target.parent.mkdir(parents=True, exist_ok=True)
    _tidy_once(target.parent.absolute())
    temporary = target.parent / temporary_name(target.name)
    os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    try:
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
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


@functools.lru_cache(maxsize=1024)
def _tidy_once(folder: Path) -> None:
    tidy(folder)


def _is_stream(target: Path) -> bool:
    """Whether bytes go into what is at ``target``, and not in its place."""
    try:
        mode = target.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return False
    if stat.S_ISFIFO(mode) or stat.S_ISCHR(mode):
        return True
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "a socket" if stat.S_ISSOCK(mode) else "a disk"
        raise InputError(f"{target} is {kind}", "a file to write", "name a file, in this folder or another")
    folder = os.path.realpath(target.parent)  # /dev/stdout may be a file that the shell has opened
    return folder == "/dev" or folder.startswith("/proc/")


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
        if not 2 <= length <= min(size - 8, MOST_HEADER):
            raise ValueError(f"a header of {length} bytes in a file of {size}; it may have {MOST_HEADER}")
        try:
            header = json.loads(file.read(length))
            metadata: dict[str, str] = header.pop("__metadata__", None) or {}
            start, places = 8 + length, {}
            for name, t in header.items():
                begin, end = map(int, t["data_offsets"])
                shape = tuple(map(int, t["shape"]))
                if not 0 <= begin <= end or min(shape, default=0) < 0:
                    raise ValueError(f"{name} of shape {list(shape)} from byte {begin} to {end}")
                places[name] = TensorPlace(str(t["dtype"]), shape, start + begin, start + end)
            if not all(isinstance(x, str) for pair in metadata.items() for x in pair):
                raise TypeError("metadata that is not text")
        except (KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"a header that is not one of safetensors ({error!r})") from error
    needed = max((place.end for place in places.values()), default=start)
    if size < needed:
        raise ValueError(f"{size} bytes where its header announces {needed}")
    return places, metadata

"""Checksums of a folder's files, written beside them and compared before the folder is used.

Each process writes those of the files that it has made, so that a checkpoint of many ranks is read once, in parts.
"""

import json
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from nemo_xtoken.files import atomic_path, file_digest

__all__ = ["CHECKSUMS", "find_damage", "write_checksums"]

CHECKSUMS = "checksums"
FORMAT = "nemo_xtoken.checksums"
THREADS = 8  # hashing lets other threads run


def write_checksums(folder: Path, files: Iterable[Path] | None = None, part: str = "0") -> None:
    """Writes ``checksums/PART.json``: size and SHA-256 of some of the folder's files.

    Args:
        files: below ``folder``; None: all of them.
        part: of whom; the checksums of all parts count.

    Raises:
        OSError: a file cannot be read, or the checksums cannot be written.
    """
    own = folder / CHECKSUMS
    if files is None:
        files = (path for path in sorted(folder.rglob("*")) if path.is_file() and own not in path.parents)
    chosen = list(files)
    with ThreadPoolExecutor(THREADS) as pool:
        digests = list(pool.map(file_digest, chosen))
    found = {
        path.relative_to(folder).as_posix(): [path.stat().st_size, digest]
        for path, digest in zip(chosen, digests, strict=True)
    }
    with atomic_path(own / f"{part}.json") as temporary:
        temporary.write_text(json.dumps({"format": FORMAT, "files": found}, indent=1), "utf-8")


def find_damage(folder: Path) -> str | None:
    """What is not as it was written, in a few words; None where all is, or the folder has no checksums.

    Files that are there and have no checksum say nothing.
    """
    expected: dict[str, list[object]] = {}
    for part in sorted((folder / CHECKSUMS).glob("*.json")):
        try:
            content = json.loads(part.read_text("utf-8"))
            expected |= {str(name): list(pair) for name, pair in content["files"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            return f"{CHECKSUMS}/{part.name} cannot be read ({error})"
    root = os.path.realpath(folder)
    for name, pair in expected.items():
        path = folder / name
        if not os.path.realpath(path.parent).startswith(root) or len(pair) != 2:
            return f"{CHECKSUMS} names {name}"
        if not path.is_file():
            return f"{name} is missing"
        if (size := path.stat().st_size) != pair[0]:
            return f"{name} has {size:,} bytes of {pair[0]:,}"
    with ThreadPoolExecutor(THREADS) as pool:
        for name, digest in zip(expected, pool.map(_digest, (folder / name for name in expected)), strict=True):
            if digest != expected[name][1]:
                return f"{name} is not as it was written" if digest else f"{name} cannot be read"
    return None


def _digest(path: Path) -> str:
    try:
        return file_digest(path)
    except OSError:
        return ""

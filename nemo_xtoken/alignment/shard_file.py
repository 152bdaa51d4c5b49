"""One file of aligned documents, read through a memory map, and many of them with a bounded number open."""

import collections
import mmap
import resource
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nemo_xtoken.alignment.aligned import DIGEST_BYTES, AlignedDocument
from nemo_xtoken.errors import InputError
from nemo_xtoken.files import tensor_places

__all__ = ["COLUMNS", "FORMAT_VERSION", "DamagedShard", "OpenShards", "Shard", "map_tensors", "table_checksum"]

FORMAT_VERSION = "2"
_DTYPES: dict[str, np.dtype[Any]] = {
    name: np.dtype(code) for name, code in (("I64", "<i8"), ("I32", "<i4"), ("U32", "<u4"), ("U8", "u1"))
}
#: The tensors of a file and their types; those of the largest type come first, so that all are aligned.
COLUMNS = {
    "student_offsets": "I64",
    "teacher_offsets": "I64",
    "chunk_offsets": "I64",
    "student_ids": "I32",
    "teacher_ids": "I32",
    "chunks": "I32",
    "scored": "I32",
    "checksums": "U32",
    "digests": "U8",
}
#: Those with an entry for each document, which the header's checksum is of.
_TABLE = ("digests", "student_offsets", "teacher_offsets", "chunk_offsets", "scored", "checksums")
_SHARE = 4  # of the descriptors that a process may have, one in so many
_MOST_OPEN = 1024


class DamagedShard(Exception):
    """A file in a cache folder that is not what this package wrote there."""


def table_checksum(tensors: Mapping[str, np.ndarray]) -> str:
    """CRC-32 of the columns that have an entry for each document."""
    value = 0
    for name in _TABLE:
        if tensors[name].size:
            value = zlib.crc32(np.ascontiguousarray(tensors[name]).view(np.uint8).data, value)
    return f"{value:08x}"


class Shard:
    """One cache file, memory-mapped.

    Attributes:
        path: the file.
        digests: ``[n]`` of ``S16``.
        scored: int32 ``[n]``, chunks with a predictor on both sides.
        metadata: its header.

    Raises:
        DamagedShard: the file is truncated or changed, or belongs to another pair of tokenizers.
        OSError: it cannot be read now, which says nothing about what is in it.
    """

    def __init__(self, path: Path, pair_digest: str) -> None:
        self.path = path
        self.metadata: dict[str, str] = {}
        try:
            tensors, metadata = map_tensors(path)
            if kinds := [name for name in COLUMNS if name in tensors and tensors[name].dtype != _DTYPES[COLUMNS[name]]]:
                raise ValueError(f"{', '.join(kinds)} of the wrong type")
        except ValueError as error:
            raise DamagedShard(f"{type(error).__name__}: {error}") from error
        version = metadata.get("format_version")
        if version not in ("1", FORMAT_VERSION) or metadata.get("pair_digest") != pair_digest:
            raise DamagedShard("its header names another format or another pair of tokenizers")
        if wrong := [name for name in COLUMNS if name not in tensors]:
            raise DamagedShard(f"no {', '.join(wrong)} in it")
        n = len(tensors["digests"])
        for offsets, values in (("student", "student_ids"), ("teacher", "teacher_ids"), ("chunk", "chunks")):
            o = tensors[f"{offsets}_offsets"]
            if o.shape != (n + 1,) or o[0] != 0 or o[-1] != len(tensors[values]) or (np.diff(o) < 0).any():
                raise DamagedShard(f"{offsets}_offsets do not fit {values}")
        shapes = {
            "digests": (n, DIGEST_BYTES),
            "scored": (n,),
            "checksums": (n,),
            "chunks": (len(tensors["chunks"]), 4),
        }
        if wrong := [name for name, shape in shapes.items() if tensors[name].shape != shape]:
            raise DamagedShard(f"{', '.join(wrong)} of the wrong shape")
        if version != "1" and metadata.get("table_checksum") != table_checksum(tensors):
            raise DamagedShard("digests, offsets and counts do not have their checksum")
        self._tensors, self.metadata = tensors, metadata
        self._verified = np.zeros(n, bool)
        self.digests = tensors["digests"].view(f"S{DIGEST_BYTES}").reshape(n)
        self.scored = tensors["scored"]

    def __len__(self) -> int:
        return len(self.digests)

    # Made when they are asked for: of short documents, the files that a process has open may hold a thousand million.
    @property
    def student_lengths(self) -> np.ndarray:
        """int64 ``[n]``."""
        return np.diff(self._tensors["student_offsets"])

    @property
    def teacher_lengths(self) -> np.ndarray:
        """int64 ``[n]``."""
        return np.diff(self._tensors["teacher_offsets"])

    @property
    def chunk_counts(self) -> np.ndarray:
        """int64 ``[n]``."""
        return np.diff(self._tensors["chunk_offsets"])

    @property
    def checksums(self) -> np.ndarray:
        """uint32 ``[n]``."""
        return self._tensors["checksums"]

    def document(self, row: int) -> AlignedDocument:
        """Views into the memory map; the checksum is verified the first time a document is read.

        Raises:
            InputError: the bytes on disk are not the ones that were written.
        """
        t = self._tensors
        s, e, c = t["student_offsets"], t["teacher_offsets"], t["chunk_offsets"]
        found = AlignedDocument(
            t["digests"][row].tobytes(),
            t["student_ids"][s[row] : s[row + 1]],
            t["teacher_ids"][e[row] : e[row + 1]],
            t["chunks"][c[row] : c[row + 1]],
        )
        if not self._verified[row]:
            known = _checksum_1(found) if self.metadata["format_version"] == "1" else found.checksum
            if known != int(t["checksums"][row]) or found.scored != int(self.scored[row]):
                raise InputError(
                    f"document {row} of the alignment cache file {self.path} does not have its checksum",
                    "the bytes that were written there",
                    f"delete {self.path} and start again: its documents are aligned anew (and check the disk)",
                )
            self._verified[row] = True
        return found


def _checksum_1(document: AlignedDocument) -> int:
    """Of a document in a file of version 1: of its ids and chunks alone."""
    value = 0
    for part in (document.student_ids, document.teacher_ids, document.chunks):
        value = zlib.crc32(np.ascontiguousarray(part, dtype=np.int32).data, value)
    return value


def map_tensors(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Arrays over a memory map of a safetensors file, and its metadata.  (The library's numpy reader copies tensors.)

    Raises:
        OSError: it cannot be read.
        ValueError: it is no safetensors file, is cut short or too long, or has types that are not known here.
    """
    places, metadata = tensor_places(path)
    with open(path, "rb") as file:
        memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    if len(memory) != max((place.end for place in places.values()), default=0):
        raise ValueError(f"{len(memory)} bytes, more than its header announces")
    tensors = {}
    for name, (kind, shape, begin, end) in places.items():
        if kind not in _DTYPES:
            raise ValueError(f"{name} of type {kind}")
        dtype = _DTYPES[kind]
        tensors[name] = np.frombuffer(memory, dtype, (end - begin) // dtype.itemsize, begin).reshape(shape)
    return tensors, metadata


class OpenShards:
    """Files that are opened when they are needed; those unused for longest are closed, as a map keeps a descriptor.

    Can be pickled: another process opens them itself.

    Args:
        paths: of the files.
        pair_digest: of the pair of tokenizers.
    """

    def __init__(self, paths: Sequence[Path], pair_digest: str) -> None:
        self.paths, self.pair_digest = list(paths), pair_digest
        soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self._most = max(4, min(_MOST_OPEN, soft // _SHARE))
        self._open: collections.OrderedDict[int, Shard] = collections.OrderedDict()

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, number: int) -> Shard:
        """A file by its number.

        Raises:
            DamagedShard, OSError: see `Shard`.
        """
        if not 0 <= number < len(self.paths):
            raise IndexError(number)
        found = self._open.get(number)
        if found is None:
            while len(self._open) >= self._most:
                self._open.popitem(last=False)
            found = self._open[number] = Shard(self.paths[number], self.pair_digest)
        else:
            self._open.move_to_end(number)
        return found

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open": collections.OrderedDict()}

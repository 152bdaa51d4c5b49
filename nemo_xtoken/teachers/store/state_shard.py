"""One file of states: records, each a run of positions of one document, with their tokens, states and checksums."""

import errno
import hashlib
import mmap
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from nemo_xtoken.files import TensorPlace, atomic_path, tensor_places
from nemo_xtoken.teachers.fingerprint import Fingerprint
from nemo_xtoken.teachers.source_settings import FORMATS
from nemo_xtoken.teachers.store.state_formats import StateFormat, Stored, format_for

__all__ = [
    "DIGEST_BYTES",
    "DamagedShard",
    "OtherFormat",
    "Record",
    "StateShard",
    "UnreadableShard",
    "UnusableShard",
    "write_shard",
]

FORMAT_VERSION = "1"
DIGEST_BYTES = 16  # of a text
_HEAD = {"digests": "U8", "starts": "I64", "offsets": "I64", "checksums": "U32"}
_NUMPY: dict[str, Any] = {"U8": "u1", "I64": "<i8", "U32": "<u4", "I32": "<i4", "F32": "<f4"}


class UnusableShard(Exception):
    """A file in a folder of states that gives no states now."""


class DamagedShard(UnusableShard):
    """It is not what this package wrote there: its bytes are others, or fewer."""


class UnreadableShard(UnusableShard):
    """The system does not let it be read now; its bytes may be intact."""


class OtherFormat(UnusableShard):
    """Another version of this package wrote it, which may read it."""


@dataclass(frozen=True)
class Record:
    """States of a run of positions of a document.

    Attributes:
        digest: of its text.
        start: which token of the document is the first.
        ids: int32 ``[n]``, the tokens that the teacher read.
        stored: their states, in the format of the shard.
    """

    digest: bytes
    start: int
    ids: np.ndarray
    stored: Stored

    @property
    def checksum(self) -> int:
        """Of tokens, states and scales."""
        states = [_bytes(part) for part in (self.stored.values, self.stored.scales) if part is not None]
        return _checksum([np.ascontiguousarray(self.ids, "<i4"), *states])


def _checksum(parts: Iterable[np.ndarray]) -> int:
    value = 0
    for part in parts:
        value = zlib.crc32(np.ascontiguousarray(part).reshape(-1).view(np.uint8).data, value)
    return value


def _bytes(tensor: Tensor) -> np.ndarray:
    return tensor.contiguous().view(torch.uint8).numpy().reshape(-1)


def write_shard(folder: Path, number: int, records: Sequence[Record], kind: StateFormat, of: Fingerprint) -> Path:
    """A new file with these records.  It is there whole or not at all; a part of its content's digest is in its name.

    Raises:
        OSError: it cannot be written.
    """
    lengths = [len(record.ids) for record in records]
    checksums = np.array([record.checksum for record in records], np.uint32)
    digests = np.frombuffer(b"".join(record.digest for record in records), np.uint8).reshape(-1, DIGEST_BYTES)
    tensors = {
        "digests": torch.from_numpy(digests.copy()),
        "starts": torch.tensor([record.start for record in records], dtype=torch.int64),
        "offsets": torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int64),
        "checksums": torch.from_numpy(checksums),
        "ids": torch.from_numpy(np.concatenate([record.ids for record in records]).astype(np.int32)),
        "states": torch.cat([record.stored.values for record in records]),
    }
    if kind.scaled:
        tensors["scales"] = torch.cat([r.stored.scales for r in records if r.stored.scales is not None])
    content = hashlib.sha256(digests.tobytes() + checksums.tobytes()).hexdigest()[:12]
    path = folder / f"states-{number:06d}-{content}.safetensors"
    header = {
        "format_version": FORMAT_VERSION,
        "format": kind.name,
        "fingerprint": of.as_json(),
        "records": str(len(records)),
        "tokens": str(sum(lengths)),
        "head": str(_checksum(tensors[name].numpy() for name in _HEAD)),
    }
    with atomic_path(path) as temporary:
        try:
            save_file(tensors, temporary, metadata=header)
        except SafetensorError as error:  # of the disk: what is written is in order
            raise OSError(errno.ENOSPC, f"no room, or no right to write ({error})") from error
    return path


class StateShard:
    """A file of states, memory-mapped.

    Attributes:
        path: of the file.
        digests: ``[R]`` of ``S16``.
        starts, counts: int64 ``[R]``, the place of each record in its document, and how many positions it has.
        format: in which its states are stored.
        fingerprint: of the teacher.

    Raises:
        DamagedShard: it is truncated, changed, or of something else.
        UnreadableShard: it is missing, or the system cannot read it now.
        OtherFormat: its header names a version or a format that this package does not know.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._places, metadata = tensor_places(path)
            with open(path, "rb") as file:  # a private map: torch wants memory that could be written
                self._memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
            self._check_version(metadata)
            self.fingerprint = Fingerprint.from_json(metadata.get("fingerprint", "{}"))
            self.format = format_for(metadata["format"], self.fingerprint.dtype)
            head = {name: self._array(name, kind) for name, kind in _HEAD.items()}
            if metadata.get("head") != str(_checksum(head.values())):
                raise ValueError("its table does not have its checksum")
            self._offsets, self._checksums = head["offsets"], head["checksums"]
            self.starts, self.counts = head["starts"], np.diff(self._offsets)
            self.digests = head["digests"].reshape(-1).view(f"S{DIGEST_BYTES}")
            self._check_shapes()
        except OSError as error:
            raise UnreadableShard(f"{type(error).__name__}: {error}") from error
        except (ValueError, KeyError) as error:
            raise DamagedShard(f"{type(error).__name__}: {error}") from error
        self._verified = np.zeros(len(self.starts), bool)

    @staticmethod
    def _check_version(metadata: dict[str, str]) -> None:
        for name, known in (("format_version", (FORMAT_VERSION,)), ("format", FORMATS)):
            if metadata[name] not in known:
                raise OtherFormat(f"its header names {name} {metadata[name]!r}, and known is {', '.join(known)}")

    def _check_shapes(self) -> None:
        records, tokens = len(self.starts), int(self._offsets[-1])
        width = self.format.columns(self.fingerprint.hidden_size)
        wanted = {
            "digests": ("U8", (records, DIGEST_BYTES)),
            "offsets": ("I64", (records + 1,)),
            "checksums": ("U32", (records,)),
            "ids": ("I32", (tokens,)),
            "states": (self.format.kind, (tokens, width)),
        } | ({"scales": ("F32", (tokens,))} if self.format.scaled else {})
        for name, (kind, shape) in wanted.items():
            place = self._places[name]
            if (place.dtype, place.shape) != (kind, shape):
                raise ValueError(f"{name} is {place.dtype} {list(place.shape)}, not {kind} {list(shape)}")
        if self._offsets[0] != 0 or (self.counts < 0).any():
            raise ValueError("offsets that do not increase")
        ends = max(place.end for place in self._places.values())
        if ends != len(self._memory):
            raise ValueError(f"{len(self._memory)} bytes where its header announces {ends}")

    def __len__(self) -> int:
        return len(self.starts)

    def _array(self, name: str, kind: str) -> np.ndarray:
        place = self._places[name]
        if place.dtype != kind:
            raise ValueError(f"{name} of type {place.dtype}")
        dtype = np.dtype(_NUMPY[kind])
        size = (place.end - place.begin) // dtype.itemsize
        return np.frombuffer(self._memory, dtype, size, place.begin).reshape(place.shape)

    def _rows(self, place: TensorPlace, first: int, count: int, dtype: torch.dtype) -> Tensor:
        width = place.shape[1] if len(place.shape) > 1 else 1
        begin, size = place.begin + first * width * dtype.itemsize, count * width
        if not size:
            return torch.empty((0, *place.shape[1:]), dtype=dtype)
        return torch.frombuffer(self._memory, dtype=dtype, count=size, offset=begin).view(count, *place.shape[1:])

    def ids(self, row: int) -> np.ndarray:
        """int32 ``[n]``, the tokens of a record; not copied."""
        return self._array("ids", "I32")[self._offsets[row] : self._offsets[row + 1]]

    def stored(self, row: int, first: int = 0, count: int | None = None) -> Stored:
        """States of a record's positions, views into the memory map.

        Args:
            first, count: which of its positions; default all.
        """
        begin = int(self._offsets[row]) + first
        count = int(self.counts[row]) - first if count is None else count
        values = self._rows(self._places["states"], begin, count, self.format.dtype)
        scales = self._rows(self._places["scales"], begin, count, torch.float32) if self.format.scaled else None
        return Stored(values, scales)

    def record(self, row: int) -> Record:
        """All of it, not verified."""
        return Record(self.digests[row : row + 1].tobytes(), int(self.starts[row]), self.ids(row), self.stored(row))

    def verify(self, row: int) -> None:
        """Compares a record with its checksum, once.

        Raises:
            DamagedShard: the bytes on disk are not those that were written.
        """
        if not self._verified[row]:
            if self.record(row).checksum != int(self._checksums[row]):
                raise DamagedShard(f"record {row} does not have its checksum")
            self._verified[row] = True

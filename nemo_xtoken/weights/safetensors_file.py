"""Safetensors files byte by byte: reading slices through a memory map, writing a file of any size as a stream.

`files.tensor_places` says what the format is.
"""

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nemo_xtoken.errors import InputError
from nemo_xtoken.files import atomic_path, tensor_places

__all__ = ["Entry", "SafetensorsFile", "from_float", "to_float", "write_safetensors"]

ITEM_BYTES = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 8),
    **dict.fromkeys(("F32", "I32", "U32"), 4),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 2),
    **dict.fromkeys(("I8", "U8", "BOOL", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 1),
}
CHUNK = 16 << 20  # bytes read at a time when a tensor is copied


@dataclass(frozen=True)
class Entry:
    """A tensor to be written.

    Attributes:
        dtype: as the format names it: ``F32``, ``BF16``, ...
        shape: its shape.
        data: makes its bytes, in pieces of any length.
    """

    dtype: str
    shape: tuple[int, ...]
    data: Callable[[], Iterable[bytes | memoryview]]

    @property
    def size(self) -> int:
        """Bytes."""
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]


class SafetensorsFile:
    """A safetensors file; tensors are read when they are asked for.

    Attributes:
        path: where it is.
        metadata: the strings in its header.
        tensors: name -> (dtype, shape).

    Raises:
        InputError: the file is missing, truncated, or not a safetensors file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._places, self.metadata = tensor_places(path)
            for name, (dtype, shape, begin, end) in self._places.items():
                if dtype in ITEM_BYTES and end - begin != math.prod(shape) * ITEM_BYTES[dtype]:
                    raise ValueError(f"{end - begin} bytes for {name} of shape {list(shape)} in {dtype}")
        except (OSError, ValueError) as error:
            raise InputError(
                f"{path} cannot be read as safetensors ({error})",
                "a whole safetensors file",
                "copy it again; it may have been cut short by a full disk or a broken download",
            ) from error
        self.tensors = {name: (place.dtype, place.shape) for name, place in self._places.items()}

    def rows(self, name: str) -> np.ndarray:
        """uint8 ``[n, bytes of a row]``, a view of the file: the first dimension and the rest; for `to_float`."""
        _, shape, begin, end = self._places[name]
        if begin == end:
            return np.empty((shape[0], 0), np.uint8)
        raw = np.memmap(self.path, np.uint8, "r", offset=begin, shape=(end - begin,))
        return raw.reshape(shape[0], -1)

    def entry(self, name: str) -> Entry:
        """The tensor as it is, for copying."""
        dtype, shape = self.tensors[name]
        if dtype not in ITEM_BYTES:
            raise InputError(
                f"{name} in {self.path} is of type {dtype}", f"one of {', '.join(ITEM_BYTES)}", "convert the checkpoint"
            )
        return Entry(dtype, shape, lambda: self._pieces(name))

    def _pieces(self, name: str) -> Iterator[bytes]:
        _, _, begin, end = self._places[name]
        with open(self.path, "rb") as f:
            f.seek(begin)
            left = end - begin
            while left:
                piece = f.read(min(left, CHUNK))
                if not piece:
                    raise InputError(f"{self.path} ends inside {name}", "a whole file", "copy it again")
                left -= len(piece)
                yield piece


def write_safetensors(
    path: Path,
    entries: Mapping[str, Entry],
    metadata: Mapping[str, str] | None = None,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Writes a file as a stream; it is whole or absent.

    Args:
        entries: the tensors by name, in the order in which their bytes are to follow.
        progress: called with the number of bytes written after each piece.
    """
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    place = 0
    for name, entry in entries.items():
        header[name] = {"dtype": entry.dtype, "shape": list(entry.shape), "data_offsets": [place, place + entry.size]}
        place += entry.size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # so that the data is aligned
    with atomic_path(path) as temporary, open(temporary, "wb") as f:
        f.write(len(text).to_bytes(8, "little") + text)
        for name, entry in entries.items():
            written = 0
            for piece in entry.data():
                written += f.write(piece)
                if progress is not None:
                    progress(len(piece))
            if written != entry.size:
                raise ValueError(f"{name}: {written} bytes given, {entry.size} announced")


def to_float(raw: np.ndarray, dtype: str) -> np.ndarray:
    """Bytes (uint8, flat) of a floating type as float32, ``F64`` as float64.

    Raises:
        InputError: another type.
    """
    if dtype == "BF16":
        return (raw.view("<u2").astype(np.uint32) << 16).view(np.float32)
    if dtype not in ("F16", "F32", "F64"):
        raise InputError(f"embeddings of type {dtype}", "F16, BF16, F32 or F64", "convert the checkpoint")
    return raw.view({"F16": "<f2", "F32": "<f4", "F64": "<f8"}[dtype]).astype(
        np.float64 if dtype == "F64" else np.float32
    )


def from_float(values: np.ndarray, dtype: str) -> bytes:
    """The inverse of `to_float`; ``BF16`` is rounded to nearest, ties to even, as torch does."""
    if dtype == "BF16":
        bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        rounded = np.where(np.isnan(values), 0x7FC0, rounded)
        return rounded.astype("<u2").tobytes()
    with np.errstate(over="ignore"):  # beyond float16 lies infinity
        return np.ascontiguousarray(values, {"F16": "<f2", "F32": "<f4", "F64": "<f8"}[dtype]).tobytes()

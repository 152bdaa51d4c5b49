"""One file that says what every sample of a data set is, made by one process and memory-mapped by all others.

It has the documents' digests, where they lie in the cache and how long they are, and the table of pieces: all that a
process would otherwise find out by reading the list of files, opening every shard, sorting and packing.  Ids and chunks
stay in the shards.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from nemo_xtoken.alignment.aligned import DIGEST_BYTES
from nemo_xtoken.alignment.shard_file import OpenShards, map_tensors
from nemo_xtoken.data.packing import Pieces
from nemo_xtoken.data.packing_report import PackingReport, TeacherCounts
from nemo_xtoken.data.prepared import PreparedDocuments
from nemo_xtoken.errors import InputError
from nemo_xtoken.files import atomic_path, digest_of

__all__ = ["read_index", "write_index"]

_VERSION = "1"
_DTYPES = {"I64": "<i8", "I32": "<i4", "U8": "u1"}
_PIECE = 1 << 20  # bytes
_LENGTHS = ("student_lengths", "teacher_lengths", "chunk_counts", "scored")


def write_index(folder: Path, prepared: Sequence[PreparedDocuments], pieces: Pieces, fingerprint: str) -> Path:
    """The file of a data set in a folder; its name follows from what is in it.

    Raises:
        OSError: it cannot be written.
    """
    digests = np.ascontiguousarray(prepared[0].digests).view(np.uint8).reshape(-1, DIGEST_BYTES)
    tensors = [
        _Tensor("table", "I64", pieces.table),
        _Tensor("first", "I64", pieces.first),
        _Tensor("digests", "U8", digests),
    ]
    shards = []
    for number, documents in enumerate(prepared):
        paths, shard, row = documents.places()
        shards.append([str(path) for path in paths])
        tensors += [_Tensor(f"shard{number}", "I32", shard), _Tensor(f"row{number}", "I64", row)]
        tensors += [_Tensor(f"{name}{number}", "I32", getattr(documents, name)) for name in _LENGTHS]
    about = {
        "version": _VERSION,
        "fingerprint": fingerprint,
        "pairs": json.dumps([documents.pair_digest for documents in prepared]),
        "shards": json.dumps(shards),
        "report": json.dumps(dataclasses.asdict(pieces.report)),
    }
    path = folder / f"samples-{digest_of(*about.values())[:32]}.safetensors"
    if not path.is_file():
        _write(path, tensors, about)
    return path


class _Tensor(NamedTuple):
    """What goes into the file, as its type there; of another type it is converted piece by piece."""

    name: str
    kind: str
    array: np.ndarray

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(_DTYPES[self.kind])


def _write(path: Path, tensors: Sequence[_Tensor], about: Mapping[str, str]) -> None:
    """A safetensors file, a piece of a tensor at a time: the table of much text is as large as the memory that is left.

    Raises:
        OSError: the system's, unlike those of the library.
    """
    tensors = sorted(tensors, key=lambda tensor: -tensor.dtype.itemsize)  # so that all are aligned
    header: dict[str, object] = {"__metadata__": dict(about)}
    at = 0
    for name, kind, array in tensors:
        size = array.size * np.dtype(_DTYPES[kind]).itemsize
        header[name] = {"dtype": kind, "shape": list(array.shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors:
            rows = max(1, _PIECE // max(1, tensor.array[:1].nbytes))
            for begin in range(0, len(tensor.array), rows):
                piece = np.ascontiguousarray(tensor.array[begin : begin + rows], tensor.dtype)
                file.write(piece.data.cast("B") if piece.size else b"")


def read_index(path: Path) -> tuple[list[PreparedDocuments], Pieces, str]:
    """Documents for each teacher, pieces and fingerprint; arrays are over a memory map.

    Raises:
        InputError: the file cannot be read.
    """
    try:
        tensors, about = map_tensors(path)
        if about.get("version") != _VERSION:
            raise ValueError(f"version {about.get('version')}")
        digests = tensors["digests"].view(f"S{DIGEST_BYTES}").reshape(-1)
        pairs, shards, report = (json.loads(about[name]) for name in ("pairs", "shards", "report"))
        prepared = [
            PreparedDocuments.placed(
                OpenShards([Path(one) for one in paths], pair),
                digests,
                tensors[f"shard{number}"],
                tensors[f"row{number}"],
                *(tensors[f"{name}{number}"] for name in _LENGTHS),
            )
            for number, (pair, paths) in enumerate(zip(pairs, shards, strict=True))
        ]
        return prepared, Pieces(tensors["table"], tensors["first"], _report(report)), about["fingerprint"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"the list of samples {path} cannot be read: {error}",
            "the file that the first process of the job has written",
            f"delete {path} if it is there and start again; see that all nodes see the cache folder",
        ) from error


def _report(found: dict[str, Any]) -> PackingReport:
    return PackingReport(**found | {"teachers": tuple(TeacherCounts(**counts) for counts in found["teachers"])})

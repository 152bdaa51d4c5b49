"""Documents that are tokenised on both sides and aligned: one, and many in one piece of memory."""

import hashlib
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from nemo_xtoken.alignment.told import Told

__all__ = [
    "DIGEST_BYTES",
    "AlignedBatch",
    "AlignedDocument",
    "Part",
    "bytes_of",
    "checksum",
    "offsets_of",
    "text_digest",
]

_NO = memoryview(b"")
DIGEST_BYTES = 16  # of a text; a collision among 10**12 texts has probability 1e-15


def text_digest(text: str) -> bytes:
    """The key of a text, `DIGEST_BYTES` long.  Raises UnicodeEncodeError for text that UTF-8 cannot hold."""
    return hashlib.blake2b(text.encode(), digest_size=DIGEST_BYTES).digest()


def checksum(digest: bytes, columns: Sequence[int], scored: int) -> int:
    """Of a document: CRC-32 of its digest, of the CRC-32 of each column, and of the number of its scored chunks.

    Args:
        columns: CRC-32 of student ids, teacher ids and chunks, each as int32, little-endian.
    """
    return zlib.crc32(struct.pack("<3Iq", *columns, scored), zlib.crc32(digest))


class AlignedDocument(NamedTuple):
    """One text: int32 ids ``[n_S]`` and ``[n_T]`` with BOS and EOS, and the aligner's chunks, int32 ``[K, 4]``.

    A token that is only context, not a label, is stored as ``~id`` (the bitwise complement, a negative number).
    """

    digest: bytes
    student_ids: np.ndarray
    teacher_ids: np.ndarray
    chunks: np.ndarray

    @property
    def scored(self) -> int:
        """Chunks whose first token has a predictor on both sides."""
        return int(((self.chunks[:, 0] > 0) & (self.chunks[:, 2] > 0)).sum())

    @property
    def checksum(self) -> int:
        """Of all of it; see `checksum`."""
        columns = (self.student_ids, self.teacher_ids, self.chunks)
        return checksum(self.digest, [zlib.crc32(bytes_of(column)) for column in columns], self.scored)


class Part(NamedTuple):
    """Which part of a document a batch holds.

    Attributes:
        first, last: of its document's parts.
        settled: its chunks are those of the whole document; otherwise that has to be aligned as a whole.
    """

    first: bool
    last: bool
    settled: bool


@dataclass(frozen=True)
class AlignedBatch:
    """Documents one after the other, or a part of a long one.

    Attributes:
        digests: of the texts, one after the other, `DIGEST_BYTES` each.
        student_lengths, teacher_lengths, chunk_counts: int64 ``[n]``.
        student_ids, teacher_ids: int32, of all of them.
        chunks: int32 ``[K, 4]``, of all of them; token numbers count from the beginning of each document, or part.
        part: where the batch is one part of a document.
        told: of the documents, beside what they hold.
    """

    digests: bytes
    student_lengths: np.ndarray
    teacher_lengths: np.ndarray
    chunk_counts: np.ndarray
    student_ids: np.ndarray
    teacher_ids: np.ndarray
    chunks: np.ndarray
    part: Part | None = None
    told: Told = field(default_factory=Told)

    def __len__(self) -> int:
        return len(self.student_lengths)

    @property
    def tokens(self) -> int:
        """Of both sides."""
        return len(self.student_ids) + len(self.teacher_ids)

    @classmethod
    def of(cls, documents: Sequence[AlignedDocument], told: Told | None = None) -> "AlignedBatch":
        """The documents, in this order."""
        students, teachers = [d.student_ids for d in documents], [d.teacher_ids for d in documents]
        chunks = [d.chunks for d in documents]
        nothing = np.empty(0, np.int32)
        return cls(
            b"".join(d.digest for d in documents),
            _lengths(students),
            _lengths(teachers),
            _lengths(chunks),
            np.concatenate([nothing, *students]).astype(np.int32, copy=False),
            np.concatenate([nothing, *teachers]).astype(np.int32, copy=False),
            np.concatenate([nothing.reshape(0, 4), *chunks]).astype(np.int32, copy=False),
            told=told or Told(),
        )


def _lengths(parts: Sequence[np.ndarray]) -> np.ndarray:
    return np.array([len(part) for part in parts], np.int64)


def offsets_of(lengths: np.ndarray) -> np.ndarray:
    """int64 ``[n + 1]``: where each of n pieces begins, and the end."""
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


def bytes_of(column: np.ndarray) -> memoryview:
    """An int32 array as it is written, little-endian; not copied."""
    return memoryview(np.ascontiguousarray(column, dtype="<i4").view(np.uint8).data).cast("B") if column.size else _NO

"""Token ids and chunks of documents on disk, so that no text is tokenised or aligned twice for a pair of tokenizers.

A cache is a folder of shards.  A shard is one safetensors file that needs no other: every document of it with its text
digest, ids on both sides and chunks, and a header that says for which pair of tokenizers it was made.  Shards appear
whole or not at all, are never changed, and are read through memory maps.
"""

import contextlib
import hashlib
import logging
import mmap
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from filelock import FileLock, Timeout
from safetensors.numpy import save_file

from nemo_xtoken.errors import InputError
from nemo_xtoken.files import atomic_path, tensor_places

__all__ = ["DIGEST_BYTES", "AlignedDocument", "AlignmentCache", "DamagedShard", "Shard", "text_digest"]

logger = logging.getLogger(__name__)

FORMAT_VERSION = "1"
DIGEST_BYTES = 16  # of a text; a collision among 10**12 texts has probability 1e-15
_DTYPES: dict[str, np.dtype[Any]] = {
    name: np.dtype(code) for name, code in (("I64", "<i8"), ("I32", "<i4"), ("U32", "<u4"), ("U8", "u1"))
}
_PART = "part-"  # the folders of parts begin with it
_TENSORS = {
    "digests": "U8",
    "student_offsets": "I64",
    "teacher_offsets": "I64",
    "chunk_offsets": "I64",
    "student_ids": "I32",
    "teacher_ids": "I32",
    "chunks": "I32",
    "scored": "I32",
    "checksums": "U32",
}


def text_digest(text: str) -> bytes:
    """The key of a text, `DIGEST_BYTES` long.  Raises UnicodeEncodeError for text that UTF-8 cannot hold."""
    return hashlib.blake2b(text.encode(), digest_size=DIGEST_BYTES).digest()


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
        value = 0
        for part in (self.student_ids, self.teacher_ids, self.chunks):
            value = zlib.crc32(np.ascontiguousarray(part, dtype=np.int32).data, value)
        return value


class DamagedShard(Exception):
    """A file in a cache folder that is not what this package wrote there."""


class Shard:
    """One cache file, memory-mapped.

    Attributes:
        path: the file.
        digests: ``[n]`` of ``S16``.
        student_lengths, teacher_lengths, chunk_counts: int64 ``[n]``.
        scored: int32 ``[n]``, chunks with a predictor on both sides.
        metadata: its header.

    Raises:
        DamagedShard: the file is truncated, changed, missing, or belongs to another pair of tokenizers.
    """

    def __init__(self, path: Path, pair_digest: str) -> None:
        self.path = path
        self.metadata: dict[str, str] = {}
        try:
            tensors, metadata = _map_safetensors(path)
        except (OSError, ValueError) as error:
            raise DamagedShard(f"{type(error).__name__}: {error}") from error
        if (metadata.get("format_version"), metadata.get("pair_digest")) != (FORMAT_VERSION, pair_digest):
            raise DamagedShard("its header names another format or another pair of tokenizers")
        if wrong := [name for name in _TENSORS if name not in tensors]:
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
        self._tensors, self.metadata = tensors, metadata
        self._verified = np.zeros(n, bool)
        self.digests = tensors["digests"].view(f"S{DIGEST_BYTES}").reshape(n)
        self.student_lengths = np.diff(tensors["student_offsets"])
        self.teacher_lengths = np.diff(tensors["teacher_offsets"])
        self.chunk_counts = np.diff(tensors["chunk_offsets"])
        self.scored = tensors["scored"]

    def __len__(self) -> int:
        return len(self.digests)

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
            if found.checksum != int(t["checksums"][row]):
                raise InputError(
                    f"document {row} of the alignment cache file {self.path} does not have its checksum",
                    "the bytes that were written there",
                    f"delete {self.path} and start again: its documents are aligned anew (and check the disk)",
                )
            self._verified[row] = True
        return found


def _map_safetensors(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Arrays over a memory map of the file, and its metadata.  (The library's numpy reader copies whole tensors.)"""
    places, metadata = tensor_places(path)
    with open(path, "rb") as file:
        memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    if len(memory) != max((place.end for place in places.values()), default=0):
        raise ValueError(f"{len(memory)} bytes, more than its header announces")
    tensors = {}
    for name, (kind, shape, begin, end) in places.items():
        if _TENSORS.get(name) != kind:
            raise ValueError(f"{name} of type {kind}")
        dtype = _DTYPES[kind]
        tensors[name] = np.frombuffer(memory, dtype, (end - begin) // dtype.itemsize, begin).reshape(shape)
    return tensors, metadata


class AlignmentCache:
    """The shards of one pair of tokenizers.

    Args:
        folder: where they lie; made when something is written.
        pair_digest: of everything that decides ids and chunks: both tokenizers, the aligner, BOS and EOS.
        about: written into every header, to be read by people and tools.
        part: a folder of its own below ``folder`` for what is written here, so that tasks of one job write at once.
            All parts are read.
    """

    def __init__(
        self, folder: Path, pair_digest: str, about: dict[str, str] | None = None, part: str | None = None
    ) -> None:
        self.folder = folder
        self._own = folder / f"{_PART}{part}" if part else folder
        self.pair_digest = pair_digest
        self.about = about or {}
        self._shards: dict[str, Shard] = {}  # by path below the folder, sorted
        self._index: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None
        self.refresh()

    @property
    def shards(self) -> list[Shard]:
        """In the order that the numbers of `find` refer to; `refresh` and `write` may change it."""
        return list(self._shards.values())

    def refresh(self, discard_damaged: bool = False) -> None:
        """Maps the shards that other processes have written since.

        Args:
            discard_damaged: delete files that cannot be read, with a warning, so that their documents are aligned
                again.  Only for the holder of `lock`, and only what it may write; all others are skipped.
        """
        known, self._shards, self._index = self._shards, {}, None
        patterns = ("shard-*.safetensors", f"{_PART}*/shard-*.safetensors")
        for path in sorted(path for pattern in patterns for path in self.folder.glob(pattern)):
            name = str(path.relative_to(self.folder))
            if name in known:
                self._shards[name] = known[name]
                continue
            try:
                self._shards[name] = Shard(path, self.pair_digest)
            except DamagedShard as damage:
                if discard_damaged and path.parent == self._own:
                    logger.warning(
                        "the alignment cache file %s is damaged (%s): deleted, its texts are aligned again",
                        path,
                        damage,
                    )
                    path.unlink(missing_ok=True)

    def find(self, digests: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Where documents are: int32 shard and int64 row, both -1 where a document is not in the cache.

        Args:
            digests: ``[N]`` of ``S16``.
        """
        if self._index is None:
            self._index = self._make_index()
        keys, shard, row = self._index
        if not len(keys):
            return np.full(len(digests), -1, np.int32), np.full(len(digests), -1, np.int64)
        at = np.minimum(np.searchsorted(keys, digests), len(keys) - 1)
        missing = keys[at] != digests
        return np.where(missing, -1, shard[at]).astype(np.int32), np.where(missing, -1, row[at])

    def _make_index(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        shards = self.shards
        if not shards:
            return np.empty(0, f"S{DIGEST_BYTES}"), np.empty(0, np.int32), np.empty(0, np.int64)
        keys = np.concatenate([s.digests for s in shards])
        shard = np.repeat(np.arange(len(shards), dtype=np.int32), [len(s) for s in shards])
        row = np.concatenate([np.arange(len(s), dtype=np.int64) for s in shards])
        order = np.argsort(keys, kind="stable")
        return keys[order], shard[order], row[order]

    @contextlib.contextmanager
    def lock(self, waiting: Callable[[], None] | None = None) -> Iterator[None]:
        """Held by the one process that writes (to its part); on entry its folder is tidied, and all are read again.

        The operating system releases it when its holder dies.

        Args:
            waiting: called once when another process holds it.
        """
        self._own.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self._own / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            if waiting is not None:
                waiting()
            lock.acquire()
        try:
            for stray in self._own.glob(".shard-*.tmp"):  # of a writer that was killed: nobody else writes now
                stray.unlink(missing_ok=True)
            self.refresh(discard_damaged=True)
            yield
        finally:
            lock.release()

    def write(self, documents: Sequence[AlignedDocument]) -> Path:
        """One new shard, in the order given.  Only for the holder of `lock`."""
        digests = np.frombuffer(b"".join(d.digest for d in documents), np.uint8).reshape(-1, DIGEST_BYTES)
        students = [d.student_ids for d in documents]
        teachers = [d.teacher_ids for d in documents]
        chunks = [d.chunks for d in documents]
        tensors = {
            "digests": digests,
            "student_offsets": _offsets(students),
            "teacher_offsets": _offsets(teachers),
            "chunk_offsets": _offsets(chunks),
            "student_ids": np.concatenate(students).astype(np.int32, copy=False),
            "teacher_ids": np.concatenate(teachers).astype(np.int32, copy=False),
            "chunks": np.concatenate(chunks).astype(np.int32, copy=False),
            "scored": np.array([d.scored for d in documents], np.int32),
            "checksums": np.array([d.checksum for d in documents], np.uint32),
        }
        numbers = [int(shard.path.name.split("-")[1]) for shard in self.shards if shard.path.parent == self._own]
        # The content is in the name: a reader that knows a shard by name can never meet another one under it.
        content = hashlib.sha256(digests.tobytes() + tensors["checksums"].tobytes()).hexdigest()[:8]
        path = self._own / f"shard-{max(numbers, default=-1) + 1:06d}-{content}.safetensors"
        header = self.about | {
            "format_version": FORMAT_VERSION,
            "pair_digest": self.pair_digest,
            "documents": str(len(documents)),
            "student_tokens": str(len(tensors["student_ids"])),
            "teacher_tokens": str(len(tensors["teacher_ids"])),
            "chunks": str(len(tensors["chunks"])),
        }
        for side, first, ids in (("student", 0, students), ("teacher", 2, teachers)):
            # How many labels there are, and how many of them in chunks; the first token of a document is none.
            start, end = tensors["chunks"][:, first], tensors["chunks"][:, first + 1]
            header[f"{side}_labels"] = str(sum(int((i[1:] >= 0).sum()) for i in ids))
            header[f"{side}_aligned"] = str(int((end - start).sum() - (start == 0).sum()))
        with atomic_path(path) as temporary:
            save_file(tensors, temporary, metadata=header)
        self._shards[str(path.relative_to(self.folder))] = Shard(path, self.pair_digest)
        self._index = None
        return path


def _offsets(parts: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate([[0], np.cumsum([len(p) for p in parts], dtype=np.int64)]).astype(np.int64)

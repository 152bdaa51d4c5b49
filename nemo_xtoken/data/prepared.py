"""Documents that are tokenised and aligned: an ordered view of the cache on disk."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from nemo_xtoken.alignment.aligned import DIGEST_BYTES
from nemo_xtoken.alignment.cache import AlignmentCache
from nemo_xtoken.alignment.shard_file import DamagedShard, OpenShards, Shard
from nemo_xtoken.errors import InputError

__all__ = ["PreparedDocuments", "split_documents"]


class PreparedDocuments:
    """An ordered list of documents; ids and chunks stay on disk, memory-mapped.  Cheap to pickle.

    Attributes:
        pair_digest: of the tokenizers, the alignment and the BOS and EOS decisions.
        digests: of the texts, ``[N]`` of ``S16``.
        student_lengths, teacher_lengths: int64 ``[N]``, tokens with BOS and EOS.
        chunk_counts: int64 ``[N]``.
        scored: int64 ``[N]``, chunks that have a predictor on both sides.
    """

    def __init__(self, cache: AlignmentCache, digests: np.ndarray) -> None:
        """
        Args:
            digests: of the documents in their order, ``[N]`` of ``S16``; all of them are in the cache.
        """
        self._shards = cache.shards
        self.pair_digest = cache.pair_digest
        self.digests = digests
        self._shard, self._row = cache.find(digests)
        if (self._shard < 0).any():
            raise ValueError("not all documents are in the cache")
        self.student_lengths, self.teacher_lengths, self.chunk_counts, self.scored = (
            np.zeros(len(digests), np.int64) for _ in range(4)
        )
        for number in np.unique(self._shard):
            at = np.flatnonzero(self._shard == number)
            shard, row = self._open(int(number)), self._row[at]
            self.student_lengths[at] = shard.student_lengths[row]
            self.teacher_lengths[at] = shard.teacher_lengths[row]
            self.chunk_counts[at] = shard.chunk_counts[row]
            self.scored[at] = shard.scored[row]

    @classmethod
    def placed(
        cls,
        shards: OpenShards,
        digests: np.ndarray,
        shard: np.ndarray,
        row: np.ndarray,
        student_lengths: np.ndarray,
        teacher_lengths: np.ndarray,
        chunk_counts: np.ndarray,
        scored: np.ndarray,
    ) -> "PreparedDocuments":
        """Documents whose places are known.

        Args:
            shard, row: ``[N]``, which of ``shards`` each is in, and where.
            The others are the attributes of the same name.
        """
        view = object.__new__(cls)
        view.pair_digest, view._shards = shards.pair_digest, shards
        view.digests, view._shard, view._row = digests, shard, row
        view.student_lengths, view.teacher_lengths = student_lengths, teacher_lengths
        view.chunk_counts, view.scored = chunk_counts, scored
        return view

    def places(self) -> tuple[list[Path], np.ndarray, np.ndarray]:
        """The files, and of each document the number of its file and its row, int32 and int64 ``[N]``."""
        return self._shards.paths, self._shard, self._row

    def __len__(self) -> int:
        return len(self.digests)

    def __repr__(self) -> str:
        return f"PreparedDocuments({len(self)} documents, {self.student_lengths.sum()} student tokens)"

    def document(self, i: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Student ids int32 ``[n_S]``, teacher ids int32 ``[n_T]``, chunks int32 ``[K, 4]``: read-only, not copied.

        Raises:
            InputError: the cache file is missing or damaged.
        """
        found = self._open(int(self._shard[i])).document(int(self._row[i]))
        return found.student_ids, found.teacher_ids, found.chunks

    def shards(self) -> Iterator[Shard]:
        """The files that the documents are in, one at a time: all of them may be more than a process can open."""
        return (self._open(int(number)) for number in np.unique(self._shard))

    def select(self, indices: np.ndarray) -> "PreparedDocuments":
        """The documents with these numbers, in this order."""
        view = object.__new__(PreparedDocuments)
        view.pair_digest, view._shards = self.pair_digest, self._shards
        for name in _PER_DOCUMENT:
            setattr(view, name, getattr(self, name)[indices])
        return view

    @property
    def digest(self) -> str:
        """sha256 (hex) of the documents and their order; independent of where they are in the cache."""
        return hashlib.sha256(self.pair_digest.encode() + np.ascontiguousarray(self.digests).tobytes()).hexdigest()

    def _open(self, number: int) -> Shard:
        path = self._shards.paths[number]
        try:
            return self._shards[number]
        except (DamagedShard, FileNotFoundError) as damage:
            raise InputError(
                f"the alignment cache file {path} cannot be read ({damage})",
                "the file that was there when the data was prepared",
                f"delete {path} if it is there, and start again: its documents are aligned anew",
            ) from damage
        except OSError as error:
            raise InputError(
                f"the alignment cache file {path} cannot be read now ({error})",
                "a file system that answers, and a descriptor for each of a few hundred files",
                "see to the disk or the file server (or `ulimit -n`) and start again: nothing was deleted",
            ) from error


_PER_DOCUMENT = (
    "digests",
    "student_lengths",
    "teacher_lengths",
    "chunk_counts",
    "scored",
    "_shard",
    "_row",
)


def split_documents(
    prepared: PreparedDocuments, held_out: float, seed: int
) -> tuple[PreparedDocuments, PreparedDocuments]:
    """Training and held-out documents, each in the order of ``prepared``.

    A hash of seed and text decides, so that copies of a text stay together and, for a fraction, a document stays on
    its side when others are added or removed.

    Args:
        held_out: below 1, the fraction of the documents; from 1 on, how many different texts.  0: none.

    Raises:
        InputError: one of the two would be empty, or ``held_out`` is negative or not a whole number of documents.
    """
    if held_out < 0 or (held_out >= 1 and held_out != int(held_out)):
        raise InputError(
            f"held_out={held_out}", "a fraction below 1, or a whole number of documents", "correct held_out"
        )
    key = _mix(prepared.digests.view(np.uint64).reshape(len(prepared), DIGEST_BYTES // 8)[:, 0], seed)
    if held_out < 1:
        held = key < np.uint64(min(int(held_out * 2**64), 2**64 - 1))
    else:
        different = np.unique(key)
        held = key <= different[min(int(held_out), len(different)) - 1]
    if held_out and (held.all() or not held.any()):
        raise InputError(
            f"held_out={held_out} of {len(prepared)} documents leaves {int((~held).sum())} for training and "
            f"{int(held.sum())} held out",
            "documents on both sides",
            "give more documents (a text file is one document: see text_split), or another held_out",
        )
    return prepared.select(np.flatnonzero(~held)), prepared.select(np.flatnonzero(held))


def _mix(values: np.ndarray, seed: int) -> np.ndarray:
    """uint64 hashes (the finalizer of splitmix64) of values that are uniform, different for every seed."""
    golden, first, second = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
    x = values ^ np.uint64((seed + 1) * golden % 2**64)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(first)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(second)
    return x ^ (x >> np.uint64(31))

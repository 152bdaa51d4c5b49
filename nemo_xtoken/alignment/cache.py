"""Token ids and chunks of documents on disk, so that no text is tokenised or aligned twice for a pair of tokenizers.

A cache is a folder of shards.  A shard is one safetensors file that needs no other: every document of it with its text
digest, ids on both sides and chunks, and a header that says for which pair of tokenizers it was made.  Shards appear
whole or not at all, are never changed, and are read through memory maps.
"""

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from nemo_xtoken.alignment.aligned import DIGEST_BYTES, AlignedBatch, AlignedDocument, text_digest
from nemo_xtoken.alignment.shard_file import DamagedShard, OpenShards, Shard
from nemo_xtoken.alignment.shard_writer import Settle, ShardWriter
from nemo_xtoken.leftovers import tidy
from nemo_xtoken.sharing.exclusive import exclusive

__all__ = ["DIGEST_BYTES", "AlignedDocument", "AlignmentCache", "DamagedShard", "Shard", "text_digest"]

logger = logging.getLogger(__name__)

_PART = "part-"  # the folders of parts begin with it


class AlignmentCache:
    """The shards of one pair of tokenizers.

    Args:
        folder: where they lie; made when something is written.
        pair_digest: of everything that decides ids and chunks: both tokenizers, the aligner, BOS and EOS.
        about: written into every header, to be read by people and tools.
        part: a folder of its own below ``folder`` for what is written here, so that tasks of one job write at once.
            All parts are read.

    Raises:
        OSError: a file that is there cannot be read.
    """

    def __init__(
        self, folder: Path, pair_digest: str, about: dict[str, str] | None = None, part: str | None = None
    ) -> None:
        self.folder = folder
        self._own = folder / f"{_PART}{part}" if part else folder
        self.pair_digest = pair_digest
        self.about = about or {}
        self.shards = OpenShards([], pair_digest)
        self._index: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None
        self.refresh()

    def refresh(self, discard_damaged: bool = False) -> None:
        """Looks for the shards that other processes have written since; `shards` may change.

        Args:
            discard_damaged: delete files whose content is wrong, with a warning, so that their documents are aligned
                again.  Only for the holder of `lock`, and only what it may write; all others are skipped.

        Raises:
            OSError: a file cannot be read: that says nothing about what is in it.
        """
        known = set(self.shards.paths)
        patterns = ("shard-*.safetensors", f"{_PART}*/shard-*.safetensors")
        paths = sorted(
            (path for pattern in patterns for path in self.folder.glob(pattern)),
            key=lambda path: str(path.relative_to(self.folder)),
        )
        found = OpenShards(paths, self.pair_digest)
        kept = []
        for number, path in enumerate(paths):
            if path not in known:
                try:
                    found[number]
                except FileNotFoundError:
                    continue
                except DamagedShard as damage:
                    if discard_damaged and path.parent == self._own:
                        logger.warning(
                            "the alignment cache file %s is damaged (%s): deleted, its texts are aligned again",
                            path,
                            damage,
                        )
                        path.unlink(missing_ok=True)
                    continue
            kept.append(path)
        if kept != self.shards.paths:
            self.shards = found if len(kept) == len(paths) else OpenShards(kept, self.pair_digest)
            self._index = None

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
        if not len(self.shards):
            return np.empty(0, f"S{DIGEST_BYTES}"), np.empty(0, np.int32), np.empty(0, np.int64)
        parts = [np.array(self.shards[number].digests) for number in range(len(self.shards))]
        keys = np.concatenate(parts)
        shard = np.repeat(np.arange(len(parts), dtype=np.int32), [len(p) for p in parts])
        row = np.concatenate([np.arange(len(p), dtype=np.int64) for p in parts])
        order = np.argsort(keys, kind="stable")
        return keys[order], shard[order], row[order]

    @contextlib.contextmanager
    def lock(self, waiting: Callable[[str], None] | None = None) -> Iterator[None]:
        """Held by the one process that writes (to its part); on entry its folder is tidied, and all are read again.

        It is given up when its holder dies.

        Args:
            waiting: called once when another process holds it, with who that is.

        Raises:
            InputError, OSError: see `exclusive`.
        """
        with exclusive(self._own, "aligning text", waiting):
            tidy(self._own)
            with contextlib.closing(self.writer()) as writer:
                writer.adopt()
            self.refresh(discard_damaged=True)
            yield

    def writer(self, settle: Settle | None = None, shard_tokens: int = 100_000_000) -> ShardWriter:
        """Only for the holder of `lock`, who calls `refresh` afterwards; the arguments are those of `ShardWriter`."""
        return ShardWriter(self._own, self.about, self.pair_digest, settle, shard_tokens)

    def write(self, documents: Sequence[AlignedDocument]) -> Path:
        """One new shard, in the order given.  Only for the holder of `lock`."""
        with contextlib.closing(self.writer()) as writer:
            writer.add(AlignedBatch.of(documents))
            writer.publish()
        self.refresh()
        return writer.made[0]

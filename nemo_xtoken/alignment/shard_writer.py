"""Writes aligned documents to files of many documents each; memory does not grow with the files or with a document.

Ids and chunks go to temporary files as they come.  Now and then what is there becomes a file of its own (``open-..``)
that nobody reads but the next writer, so that a killed process loses little; when there is enough, or at the end, these
are joined to one shard, which appears whole, and never changes.
"""

import contextlib
import hashlib
import json
import os
import tempfile
import zlib
from array import array
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import numpy as np

from nemo_xtoken.alignment.aligned import DIGEST_BYTES, AlignedBatch, bytes_of, checksum, offsets_of
from nemo_xtoken.alignment.held_signals import held_signals
from nemo_xtoken.alignment.shard_file import COLUMNS, FORMAT_VERSION, DamagedShard, Shard, table_checksum
from nemo_xtoken.alignment.told import Told
from nemo_xtoken.files import atomic_path, tensor_places

__all__ = ["Settle", "ShardWriter"]

#: Student ids and teacher ids of a whole document -> its chunks, where its parts could not be aligned by themselves.
Settle = Callable[[np.ndarray, np.ndarray], np.ndarray]

#: A file, where a column begins in it, and how many bytes it has.
_Stretch = tuple[Path | IO[bytes], int, int]
_BIG = ("student_ids", "teacher_ids", "chunks")
_COUNTS = ("student_labels", "student_aligned", "teacher_labels", "teacher_aligned")
_OPEN = "open-"


@dataclass
class _Table:
    """What a shard has of each document, and sums over them.

    Attributes:
        lengths: student tokens, teacher tokens, chunks.
        counts: of labels, and of those in chunks, on each side.
        told: of them.
    """

    digests: bytearray = field(default_factory=bytearray)
    lengths: tuple["array[int]", ...] = field(default_factory=lambda: tuple(array("q") for _ in _BIG))
    scored: "array[int]" = field(default_factory=lambda: array("i"))
    checksums: "array[int]" = field(default_factory=lambda: array("I"))
    counts: list[int] = field(default_factory=lambda: [0] * len(_COUNTS))
    told: Told = field(default_factory=Told)

    def __len__(self) -> int:
        return len(self.scored)

    @classmethod
    def of(cls, shard: Shard) -> "_Table":
        """Of a file."""
        lengths = (shard.student_lengths, shard.teacher_lengths, shard.chunk_counts)
        return cls(
            bytearray(shard.digests.tobytes()),
            tuple(array("q", x.tobytes()) for x in lengths),
            array("i", shard.scored.tobytes()),
            array("I", shard.checksums.tobytes()),
            [int(shard.metadata[name]) for name in _COUNTS],
            Told.of(shard.metadata),
        )

    def extend(self, other: "_Table") -> None:
        self.digests += other.digests
        for own, more in zip(self.lengths, other.lengths, strict=True):
            own.extend(more)
        self.scored.extend(other.scored)
        self.checksums.extend(other.checksums)
        self.counts = [a + b for a, b in zip(self.counts, other.counts, strict=True)]
        self.told.extend(other.told)

    def tensors(self) -> dict[str, np.ndarray]:
        """The small columns of a shard."""
        offsets = {
            f"{name}_offsets": offsets_of(np.frombuffer(x, np.int64) if x else np.empty(0, np.int64))
            for name, x in zip(("student", "teacher", "chunk"), self.lengths, strict=True)
        }
        return offsets | {
            "scored": np.array(self.scored, np.int32),
            "checksums": np.array(self.checksums, np.uint32),
            "digests": np.frombuffer(bytes(self.digests), np.uint8).reshape(-1, DIGEST_BYTES),
        }


@dataclass
class _Unfinished:
    """A document of which only the first parts are there.

    Attributes:
        places: where it begins in the temporary files, in bytes.
        lengths, checks: of its ids and chunks so far.
        counts: as in `_Table`.
        settled: whether the chunks of its parts are its own.
    """

    digest: bytes
    places: list[int]
    lengths: list[int] = field(default_factory=lambda: [0, 0, 0])
    checks: list[int] = field(default_factory=lambda: [0, 0, 0])
    counts: list[int] = field(default_factory=lambda: [0] * len(_COUNTS))
    scored: int = 0
    settled: bool = True


class ShardWriter:
    """For the one process that writes to a folder.  Between its methods all is consistent, and signals wait for that.

    Args:
        folder: where the shards go.
        header: strings for the header of each.
        pair_digest: of the pair of tokenizers.
        settle: see `Settle`; needed where documents come in parts.
        shard_tokens: both sides together; a shard with as many is complete.
    """

    def __init__(
        self,
        folder: Path,
        header: Mapping[str, str],
        pair_digest: str,
        settle: Settle | None = None,
        shard_tokens: int = 100_000_000,
    ) -> None:
        self.folder, self.pair_digest = folder, pair_digest
        self.made: list[Path] = []
        self._header = dict(header)
        self._settle, self._shard_tokens = settle, shard_tokens
        self._open: list[Path] = []
        self._tokens = self._kept_tokens = 0
        self._begin()

    def _begin(self) -> None:
        self._table = _Table()
        self._files: list[IO[bytes]] = [tempfile.TemporaryFile(dir=self.folder) for _ in _BIG]  # noqa: SIM115
        self._part: _Unfinished | None = None

    @property
    def unfinished_tokens(self) -> int:
        """Of the document of which only the first parts are there, both sides."""
        return 0 if self._part is None else sum(self._part.lengths[:2])

    # --- documents

    @held_signals()
    def add(self, batch: AlignedBatch) -> None:
        """Documents, or a part of one; a shard that is full is written."""
        self._tokens += batch.tokens
        if batch.part is None:
            self._add_whole(batch)
        else:
            self._add_part(batch)
        if self._part is None and self._tokens >= self._shard_tokens:
            self.publish()

    def _add_whole(self, batch: AlignedBatch) -> None:
        table, starts = self._table, batch.chunks[:, (0, 2)] > 0
        lengths = batch.student_lengths, batch.teacher_lengths, batch.chunk_counts
        offsets = [offsets_of(x) for x in lengths]
        scored = np.diff(offsets_of(starts.all(axis=1))[offsets[2]])
        columns = [bytes_of(getattr(batch, name)) for name in _BIG]
        for file, column in zip(self._files, columns, strict=True):
            file.write(column)
        sizes = (4, 4, 16)
        places = [[x * size for x in o.tolist()] for o, size in zip(offsets, sizes, strict=True)]
        (s, t, c), (a, b, d) = columns, places
        for i, count in enumerate(scored.tolist()):
            digest = batch.digests[i * DIGEST_BYTES : (i + 1) * DIGEST_BYTES]
            checks = zlib.crc32(s[a[i] : a[i + 1]]), zlib.crc32(t[b[i] : b[i + 1]]), zlib.crc32(c[d[i] : d[i + 1]])
            table.checksums.append(checksum(digest, checks, count))
        table.digests += batch.digests
        table.told.extend(batch.told)
        for own, more in zip(table.lengths, lengths, strict=True):
            own.extend(more.tolist())
        table.scored.extend(scored.tolist())
        firsts = [
            ids[o[:-1][x > 0]]
            for ids, o, x in zip((batch.student_ids, batch.teacher_ids), offsets, lengths, strict=False)
        ]
        self._count(table.counts, batch, [int((x >= 0).sum()) for x in firsts])

    def _count(self, counts: list[int], batch: AlignedBatch, firsts: list[int]) -> None:
        """Adds labels, and those of them in chunks; the first token of a document is none.

        Args:
            firsts: first tokens on each side that would be labels elsewhere.
        """
        for side, ids in enumerate((batch.student_ids, batch.teacher_ids)):
            start, end = batch.chunks[:, 2 * side], batch.chunks[:, 2 * side + 1]
            counts[2 * side] += int((ids >= 0).sum()) - firsts[side]
            counts[2 * side + 1] += int((end - start).sum(dtype=np.int64))
            if batch.part is None or batch.part.first:
                counts[2 * side + 1] -= int((start == 0).sum())

    def _add_part(self, batch: AlignedBatch) -> None:
        assert batch.part is not None
        if batch.part.first:
            self._part = _Unfinished(batch.digests, [file.tell() for file in self._files])
        part = self._part
        assert part is not None
        firsts = [
            int(batch.part.first and len(ids) > 0 and ids[0] >= 0) for ids in (batch.student_ids, batch.teacher_ids)
        ]
        self._count(part.counts, batch, firsts)
        s, t = part.lengths[:2]
        chunks = batch.chunks + np.array([s, s, t, t], np.int32)
        part.scored += int((chunks[:, (0, 2)] > 0).all(axis=1).sum())
        part.settled &= batch.part.settled
        for i, column in enumerate((batch.student_ids, batch.teacher_ids, chunks)):
            data = np.ascontiguousarray(column, "<i4").tobytes()
            part.checks[i] = zlib.crc32(data, part.checks[i])
            part.lengths[i] += len(column)
            self._files[i].write(data)
        if batch.part.last:
            if not part.settled:
                self._realign(part)
            self._finish(part)

    def _realign(self, part: _Unfinished) -> None:
        """The chunks of a document whose sides differ near the place between two parts: of the whole of it."""
        assert self._settle is not None
        sides = []
        for file, place in zip(self._files[:2], part.places, strict=False):
            file.seek(place)
            sides.append(np.frombuffer(file.read(), "<i4"))
            file.seek(0, os.SEEK_END)
        chunks = np.ascontiguousarray(self._settle(sides[0], sides[1]), "<i4")
        file = self._files[2]
        file.seek(part.places[2])
        file.truncate()
        file.write(chunks.tobytes())
        part.lengths[2], part.checks[2] = len(chunks), zlib.crc32(chunks.tobytes())
        part.scored = int((chunks[:, (0, 2)] > 0).all(axis=1).sum())
        for side in (0, 1):
            start, end = chunks[:, 2 * side], chunks[:, 2 * side + 1]
            part.counts[2 * side + 1] = int((end - start).sum(dtype=np.int64) - (start == 0).sum())

    def _finish(self, part: _Unfinished) -> None:
        table = self._table
        table.checksums.append(checksum(part.digest, part.checks, part.scored))
        table.digests += part.digest
        for own, n in zip(table.lengths, part.lengths, strict=True):
            own.append(n)
        table.scored.append(part.scored)
        table.counts = [a + b for a, b in zip(table.counts, part.counts, strict=True)]
        self._part = None

    # --- files

    @held_signals()
    def keep(self) -> bool:
        """Puts what is there into a file, which outlives this process; not in the middle of a document."""
        if self._part is not None or not len(self._table):
            return False
        path = self.folder / f"{_OPEN}{len(self._open):06d}.safetensors"
        self._write(path, self._table, [[(file, 0, file.tell())] for file in self._files])
        self._open.append(path)
        self._close_files()
        self._begin()
        return True

    @held_signals()
    def adopt(self) -> None:
        """Makes a shard of what a killed writer had put into files; what is damaged of it is removed."""
        for path in sorted(self.folder.glob(f"{_OPEN}*.safetensors")):
            try:
                Shard(path, self.pair_digest)
                self._open.append(path)
            except DamagedShard:
                path.unlink(missing_ok=True)
        self.publish()

    @held_signals()
    def publish(self) -> None:
        """One shard of all whole documents that are not in one yet."""
        if self._part is not None:  # an interrupted document: not a part of it
            for file, place in zip(self._files, self._part.places, strict=True):
                file.seek(place)
                file.truncate()
            self._part = None
        table = _Table()
        sources: list[list[_Stretch]] = [[] for _ in _BIG]
        for path in self._open:
            table.extend(_Table.of(Shard(path, self.pair_digest)))
            places = tensor_places(path)[0]
            for source, name in zip(sources, _BIG, strict=True):
                source.append((path, places[name].begin, places[name].end - places[name].begin))
        if len(self._table):
            table.extend(self._table)
            for source, file in zip(sources, self._files, strict=True):
                source.append((file, 0, file.tell()))
        if len(table):
            # The content is in the name: a reader that knows a shard by name can never meet another one under it.
            small = table.tensors()
            content = hashlib.sha256(small["digests"].tobytes() + small["checksums"].tobytes()).hexdigest()[:8]
            numbers = [int(path.name.split("-")[1]) for path in self.folder.glob("shard-*-*.safetensors")]
            path = self.folder / f"shard-{max(numbers, default=-1) + 1:06d}-{content}.safetensors"
            if len(self._open) == 1 and not len(self._table):
                os.replace(self._open[0], path)
            else:
                self._write(path, table, sources)
            self.made.append(path)
        for path in self._open:
            path.unlink(missing_ok=True)
        self._open.clear()
        self._tokens = 0
        self._close_files()
        self._begin()

    def close(self) -> None:
        """Gives the temporary files back, and what is in them."""
        self._close_files()

    def _close_files(self) -> None:
        for file in self._files:
            with contextlib.suppress(OSError):  # a full disk: what is lost here was not kept
                file.close()

    def _write(self, path: Path, table: _Table, sources: list[list[_Stretch]]) -> None:
        tensors = table.tensors()
        of_ids = dict(zip(_BIG, sources, strict=True))
        sizes = {name: sum(n for _, _, n in source) for name, source in of_ids.items()}
        header: dict[str, object] = {"__metadata__": self._metadata(table, tensors)}
        at = 0
        for name, kind in COLUMNS.items():
            if name in tensors:
                shape, size = list(tensors[name].shape), tensors[name].nbytes
            else:
                size = sizes[name]
                shape = [size // 16, 4] if name == "chunks" else [size // 4]
            header[name] = {"dtype": kind, "shape": shape, "data_offsets": [at, at + size]}
            at += size
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        with atomic_path(path) as temporary, open(temporary, "wb") as out:
            out.write(len(text).to_bytes(8, "little") + text)
            for name in COLUMNS:
                if name in tensors:
                    out.write(np.ascontiguousarray(tensors[name]).tobytes())
                else:
                    for source, begin, size in of_ids[name]:
                        _copy(source, begin, size, out)

    def _metadata(self, table: _Table, tensors: Mapping[str, np.ndarray]) -> dict[str, str]:
        sums = dict(zip(("student_tokens", "teacher_tokens", "chunks"), map(sum, table.lengths), strict=True))
        return (
            self._header
            | {"format_version": FORMAT_VERSION, "pair_digest": self.pair_digest, "documents": str(len(table))}
            | {name: str(value) for name, value in sums.items()}
            | {name: str(value) for name, value in zip(_COUNTS, table.counts, strict=True)}
            | {"table_checksum": table_checksum(tensors)}
            | table.told.header()
        )


def _copy(source: Path | IO[bytes], begin: int, size: int, out: IO[bytes]) -> None:
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(open(source, "rb")) if isinstance(source, Path) else source
        file.seek(begin)
        for piece in _pieces(file, size):
            out.write(piece)
        if not isinstance(source, Path):
            file.seek(0, os.SEEK_END)


def _pieces(file: IO[bytes], size: int, block: int = 1 << 20) -> Iterator[bytes]:
    while size:
        piece = file.read(min(size, block))
        if not piece:
            raise OSError(f"{size} bytes are missing in a temporary file")
        size -= len(piece)
        yield piece

"""A folder of states: where those of a piece are, and reading them."""

import contextlib
import json
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors.numpy import load_file, save
from torch import Tensor

from nemo_xtoken.errors import InputError
from nemo_xtoken.files import atomic_path, tensor_places
from nemo_xtoken.sharing.file_lock import file_lock
from nemo_xtoken.teachers.fingerprint import Fingerprint
from nemo_xtoken.teachers.store.state_formats import StateFormat
from nemo_xtoken.teachers.store.state_shard import DIGEST_BYTES, DamagedShard, StateShard, UnusableShard

__all__ = ["Missing", "Segment", "StateStore", "Table", "state_files"]

INDEX = "index.safetensors"
PART = "part-"  # the folders of parts begin with it
_KEY_BYTES = DIGEST_BYTES + 8
_AGAIN = "give the `xtoken cache` command that made it again: it computes what is missing, and nothing else"


class Missing(Exception):
    """No states of a piece are here."""


class Segment(NamedTuple):
    """States that lie one after the other: some positions of a record.

    Attributes:
        shard, row: which record.
        first: of its positions.
        size: how many.
    """

    shard: int
    row: int
    first: int
    size: int


class Table(NamedTuple):
    """Records by document and place, sorted; of several that begin at one place the longest first, after these those
    in files that are gone.

    Attributes:
        keys: ``[R]`` of ``S24``: digest, and the place in 8 bytes, the highest first.
        counts: int32 ``[R]``, positions.
        shards, rows: int32 ``[R]``, where each is.
    """

    keys: np.ndarray
    counts: np.ndarray
    shards: np.ndarray
    rows: np.ndarray

    @classmethod
    def empty(cls) -> "Table":
        """Of nothing."""
        return cls(np.empty(0, f"S{_KEY_BYTES}"), *(np.empty(0, np.int32) for _ in range(3)))

    @classmethod
    def of(cls, shard: StateShard, number: int) -> "Table":
        """Of one file, not sorted."""
        rows = np.arange(len(shard), dtype=np.int32)
        keys = keys_of(shard.digests, shard.starts)
        return cls(keys, shard.counts.astype(np.int32), np.full(len(rows), number, np.int32), rows)

    @classmethod
    def joined(cls, tables: Iterable["Table"], absent: Iterable[int] = ()) -> "Table":
        """All of them, sorted.

        Args:
            absent: numbers of the files that are gone.
        """
        table = cls(*(np.concatenate(column) for column in zip(*tables, strict=True)))
        gone = np.isin(table.shards, [*absent])
        order = np.lexsort((-table.counts, gone, table.keys))
        return cls(*(column[order] for column in table))


def keys_of(digests: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """``[n]`` of ``S24``, of digests ``[n]`` of ``S16`` and places int64 ``[n]``."""
    out = np.empty((len(starts), _KEY_BYTES), np.uint8)
    out[:, :DIGEST_BYTES] = np.ascontiguousarray(digests).view(np.uint8).reshape(-1, DIGEST_BYTES)
    out[:, DIGEST_BYTES:] = np.asarray(starts, ">i8")[:, None].view(np.uint8)
    return out.reshape(-1).view(f"S{_KEY_BYTES}")


class StateStore:
    """The states of one teacher in a folder, those of all parts; for reading.

    One file has an index of all, so that a start opens no other.  Files that are newer than it are looked through.

    Args:
        folder: where they lie.
        fingerprint: of the teacher whose they must be; None: of whichever they are.
        open_files: that are mapped at a time.
        check: whether records are compared with their checksums.

    Attributes:
        names: of the files, below the folder.

    Raises:
        InputError: states of another teacher, no states at all, or a file that cannot be read.
    """

    def __init__(self, folder: Path, fingerprint: Fingerprint | None, open_files: int = 64, check: bool = True) -> None:
        self.folder, self.fingerprint, self.check = folder, fingerprint, check
        self._most = open_files
        self._open: OrderedDict[int, StateShard] = OrderedDict()
        self.names: list[str] = []
        self.table = Table.empty()
        self.absent: set[int] = set()
        self._index: tuple[int, int, int] | None = None  # which index file has been read
        self._indexed = 0  # names that are from it
        self.refresh()

    @property
    def indexed(self) -> bool:
        """Whether the index names all files that are there, so that they need not be opened to know what they hold."""
        return len(self.names) == self._indexed

    def refresh(self) -> None:
        """Sees what has been written since.  A file is opened once: what is known of it is kept.

        Raises:
            InputError: see `StateStore`; what was known before is still known.
        """
        index = _identity(self.folder / INDEX)
        there = {str(path.relative_to(self.folder)) for path in state_files(self.folder)}
        names, table, tables = list(self.names), self.table, []
        indexed, forgotten = self._indexed, not there.issuperset(names[self._indexed :])
        anew = index != self._index or forgotten
        if anew:  # files that no index names, or names any more, and that are gone
            names, table = _read_index(self.folder)
            indexed = len(names)
            left = sorted(there & set(self.names) - set(names))
            tables.append(self._rows_of(left, len(names)))
            names += left
        for name in sorted(there - set(names)):
            tables.append(Table.of(self._opened(self.folder / name), len(names)))
            names.append(name)
        if names[: len(self.names)] != self.names:  # other numbers
            self._open = OrderedDict()
        absent = {number for number, name in enumerate(names) if name not in there}
        other = absent != self.absent or (anew and absent) or any(len(one.keys) for one in tables)
        self.absent = absent
        self._open = OrderedDict((number, shard) for number, shard in self._open.items() if number not in self.absent)
        self.names, self._index, self._indexed = names, index, indexed
        self.table = Table.joined([table, *tables], absent) if other else table
        if self.fingerprint is None and len(self.absent) < len(names):
            self.fingerprint = self.shard(next(n for n in range(len(names)) if n not in self.absent)).fingerprint

    def _rows_of(self, names: Sequence[str], first: int) -> Table:
        """What is known of files, which get the numbers from ``first`` on; not sorted."""
        numbers = {name: number for number, name in enumerate(names, first)}
        new = np.array([numbers.get(name, -1) for name in self.names], np.int32)
        shards = new[self.table.shards] if len(self) else self.table.shards
        kept = shards >= 0
        return Table(self.table.keys[kept], self.table.counts[kept], shards[kept], self.table.rows[kept])

    def __len__(self) -> int:
        return len(self.table.keys)

    @property
    def tokens(self) -> int:
        """Positions whose states are here."""
        return int(self.table.counts.sum())

    @property
    def format(self) -> StateFormat | None:
        """Of the first file that is there; all of a folder are samples, or none.  None: there is no file."""
        first = next((number for number in range(len(self.names)) if number not in self.absent), None)
        return None if first is None else self.shard(first).format

    def _opened(self, path: Path) -> StateShard:
        try:
            shard = StateShard(path)
        except UnusableShard as error:
            raise unusable(path, error) from error
        if self.fingerprint is not None and shard.fingerprint != self.fingerprint:
            raise InputError(
                f"the states in {path} are of another teacher: {self.fingerprint.differences(shard.fingerprint)}",
                f"those of the teacher of this run, whose fingerprint is {self.fingerprint.digest[:12]}",
                "name the folder of its states, or make them with `xtoken cache`",
            )
        return shard

    def shard(self, number: int) -> StateShard:
        """A file, mapped.

        Raises:
            InputError: it is missing, damaged, or of another teacher.
        """
        if number not in self._open:
            if number in self.absent:
                raise damaged(self.folder / self.names[number], "there is no such file any more")
            self._open[number] = self._opened(self.folder / self.names[number])
            while len(self._open) > self._most:
                self._open.popitem(last=False)
        self._open.move_to_end(number)
        return self._open[number]

    def find(self, digests: np.ndarray, starts: np.ndarray, counts: np.ndarray) -> np.ndarray:
        """int64 ``[P]``: for each piece the row of the table with the states of a teacher that read just it; -1: none.

        A record may go on after the piece: what comes later does not change the states before it.

        Args:
            digests: ``[P]`` of ``S16``, of the documents.
            starts, counts: int64 ``[P]``, where each begins, and its positions.
        """
        if not len(self):
            return np.full(len(starts), -1, np.int64)
        wanted = keys_of(digests, starts)
        at = np.minimum(np.searchsorted(self.table.keys, wanted), len(self) - 1)
        good = (self.table.keys[at] == wanted) & (self.table.counts[at] >= counts)
        return np.where(good, at, -1)

    def holds(self, digest: bytes, start: int, count: int) -> bool:
        """Whether the states of a teacher that read just this piece are here, in a file that is there."""
        key = np.frombuffer(digest, f"S{DIGEST_BYTES}")
        return not self.lacking(key, np.array([start]), np.array([count]))[0]

    def lacking(
        self, digests: np.ndarray, starts: np.ndarray, counts: np.ndarray, context: str = "piece"
    ) -> np.ndarray:
        """bool ``[P]``: the pieces whose states are not here, or in a file that is gone.

        Args:
            digests, starts, counts: see `find`.
            context: see `segments`.
        """
        at = self.find(digests, starts, counts)
        gone = np.zeros(len(self.names) + 1, bool)
        gone[list(self.absent)] = True
        lacking = (at < 0) | gone[self.table.shards[at] if len(self) else np.zeros(len(at), np.int64)]
        if context == "document":
            for row in np.flatnonzero(lacking):
                digest = digests[row : row + 1].tobytes()
                with contextlib.suppress(Missing):
                    found = self.segments(digest, int(starts[row]), int(counts[row]), context)
                    lacking[row] = any(segment.shard in self.absent for segment in found)
        return lacking

    def segments(self, digest: bytes, start: int, count: int, context: str = "piece") -> list[Segment]:
        """Where the states of a piece are.

        Args:
            context: ``document``: take each position from the record that has read most of the document before it.

        Raises:
            Missing: some are not here.
        """
        if context == "piece":
            key = np.frombuffer(digest, f"S{DIGEST_BYTES}")
            (at,) = self.find(key, np.array([start]), np.array([count]))
            if at < 0:
                raise Missing
            return [Segment(int(self.table.shards[at]), int(self.table.rows[at]), 0, count)]
        return list(self._widest(digest, start, count))

    def _widest(self, digest: bytes, start: int, count: int) -> Iterator[Segment]:
        low, high = (int(np.searchsorted(self.table.keys, key)) for key in (digest + bytes(8), digest + b"\xff" * 8))
        starts = (
            np.ascontiguousarray(self.table.keys[low:high]).view(np.uint8).reshape(-1, _KEY_BYTES)[:, DIGEST_BYTES:]
        )
        begins = np.ascontiguousarray(starts).view(">i8").reshape(-1).astype(np.int64)
        ends, gone = begins + self.table.counts[low:high], np.isin(self.table.shards[low:high], [*self.absent])
        at, end = start, start + count
        while at < end:
            covering = np.flatnonzero((begins <= at) & (ends > at))
            if not len(covering):
                raise Missing
            best = covering[np.lexsort((-ends[covering], begins[covering], gone[covering]))[0]]
            upto = min(int(ends[best]), end)
            row = low + int(best)
            yield Segment(int(self.table.shards[row]), int(self.table.rows[row]), at - int(begins[best]), upto - at)
            at = upto

    def read(self, segment: Segment, ids: np.ndarray, dtype: torch.dtype) -> Tensor:
        """``[size, H]``, a copy.

        Args:
            ids: int32 ``[size]``, the tokens that the teacher is to have read there.
            dtype: of the result.

        Raises:
            InputError: the file is missing or damaged, or the tokens are others.
        """
        shard = self.shard(segment.shard)
        if self.check:
            try:
                shard.verify(segment.row)
            except DamagedShard as damage:
                raise damaged(shard.path, damage) from damage
        if not np.array_equal(shard.ids(segment.row)[segment.first : segment.first + segment.size], ids):
            raise InputError(
                f"the states of record {segment.row} in {shard.path} are of other tokens than the data has",
                "a document that was tokenised in the same way when its states were made",
                "make them again with `xtoken cache`, with this data: its chat template, BOS or tokenizer has changed",
            )
        found = shard.format.decode(shard.stored(segment.row, segment.first, segment.size), dtype)
        return found.clone() if found.dtype == shard.format.dtype else found

    def write_index(self) -> Path:
        """One file with all that is here, for the next start.  Of several processes one writes at a time."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with file_lock(self.folder / ".index.lock"):
            self.refresh()
            kept = np.array([number not in self.absent for number in range(len(self.names))], bool)
            number = np.cumsum(kept) - 1
            stays = kept[self.table.shards] if len(self) else np.empty(0, bool)
            tensors = {
                "keys": self.table.keys[stays].view(np.uint8).reshape(-1, _KEY_BYTES),
                "counts": self.table.counts[stays],
                "shards": number[self.table.shards[stays]].astype(np.int32),
                "rows": self.table.rows[stays],
            }
            names = [name for name, keep in zip(self.names, kept, strict=True) if keep]
            with atomic_path(self.folder / INDEX) as temporary:
                whole = {name: np.ascontiguousarray(part) for name, part in tensors.items()}
                temporary.write_bytes(save(whole, {"files": json.dumps(names)}))  # its errors are the system's
            self.refresh()
        return self.folder / INDEX


def damaged(path: Path, why: object) -> InputError:
    """What is said of a file that cannot be read."""
    return InputError(
        f"the file of states {path} cannot be read ({why})",
        "the file that `xtoken cache` wrote there",
        f"delete {path} if it is there, and {_AGAIN}",
    )


def unusable(path: Path, error: UnusableShard) -> InputError:
    """What is said of a file that gives no states; to delete it is advised only where it is certainly damaged."""
    if isinstance(error, DamagedShard):
        return damaged(path, error)
    return InputError(
        f"the file of states {path} cannot be read now ({error})",
        "a file that this version of nemo_xtoken can read",
        "see to the file system and start again, or use the version that wrote the file: it may be intact, and stays",
    )


def state_files(folder: Path) -> list[Path]:
    """All files of states in a folder, those of parts as well."""
    return [p for pattern in ("states-*.safetensors", f"{PART}*/states-*.safetensors") for p in folder.glob(pattern)]


def _identity(path: Path) -> tuple[int, int, int] | None:
    """Of the file that is there now, which another takes the place of when it changes; None: there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns


def _read_index(folder: Path) -> tuple[list[str], Table]:
    """What it says; nothing where there is none, or it cannot be read: the files themselves say it all."""
    path = folder / INDEX
    try:
        _, metadata = tensor_places(path)
        names = [str(name) for name in json.loads(metadata["files"])]
        tensors = load_file(path)
        keys = np.ascontiguousarray(tensors["keys"]).reshape(-1).view(f"S{_KEY_BYTES}")
        table = Table(keys, tensors["counts"], tensors["shards"], tensors["rows"])
        if len({len(column) for column in table}) > 1 or (len(keys) and int(table.shards.max()) >= len(names)):
            raise ValueError("an index that does not fit together")
        return names, table
    except (OSError, ValueError, KeyError):
        return [], Table.empty()

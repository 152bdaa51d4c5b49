"""Adding states to a folder: records are collected, and written as a file when there is enough of them."""

import contextlib
import errno
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from filelock import Timeout
from torch import Tensor

from nemo_xtoken.errors import InputError
from nemo_xtoken.leftovers import tidy
from nemo_xtoken.sharing.file_lock import file_lock
from nemo_xtoken.teachers.fingerprint import Fingerprint
from nemo_xtoken.teachers.store.state_formats import StateFormat
from nemo_xtoken.teachers.store.state_shard import DamagedShard, Record, StateShard, UnusableShard, write_shard
from nemo_xtoken.teachers.store.state_store import PART, StateStore, unusable

__all__ = ["PartTaken", "StateWriter"]

SHARD_BYTES = 512 * 2**20
SHARD_SECONDS = 600.0
_NAME = re.compile(r"states-(\d+)-[0-9a-f]{12}\.safetensors")
_CANNOT_WRITE = {getattr(errno, name) for name in ("EACCES", "EPERM", "EROFS", "ENOTDIR", "EEXIST", "ENOSPC", "EDQUOT")}


class PartTaken(InputError):
    """Another process writes to the part."""


class StateWriter:
    """Writes to one part of a folder of states; use it as a context manager, which holds the part's lock.

    What is collected when it is left, also by an error or a signal, is written.

    Args:
        folder: of the states.
        fingerprint: of the teacher.
        kind: how they are stored.
        part: a folder of its own below ``folder``, so that several processes write at once.
        shard_bytes: of a file, about.
        shard_seconds: between two files, at most: an interruption loses no more.
        clock: in seconds.

    Raises:
        InputError: the folder cannot be written, or a file in this part cannot be read now, or is of another version.
        PartTaken: another process writes to this part.
    """

    def __init__(
        self,
        folder: Path,
        fingerprint: Fingerprint,
        kind: StateFormat,
        part: str | None = None,
        shard_bytes: int = SHARD_BYTES,
        shard_seconds: float = SHARD_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.folder, self.fingerprint, self.kind = folder, fingerprint, kind
        self._own = folder / f"{PART}{part}" if part else folder
        self._rows = max(1, shard_bytes // kind.row_bytes(fingerprint.hidden_size))
        self._records: list[Record] = []
        self._held = 0
        self._seconds = shard_seconds
        self._clock = clock
        self._since = clock()
        self._number = 0
        #: positions written so far.
        self.tokens = 0

    def __enter__(self) -> "StateWriter":
        with self._writing():
            self._own.mkdir(parents=True, exist_ok=True)
            self._lock = file_lock(self._own / ".lock")
            try:
                self._lock.acquire(timeout=0)
            except Timeout:
                raise PartTaken(
                    f"another process writes to {self._own}",
                    "one at a time",
                    "wait for it, or give the tasks parts of their own: part=N parts=M",
                ) from None
            try:
                tidy(self._own)  # of a writer that was killed; locks of another machine may not be seen here
                self._discard_damaged()
            except BaseException:
                self._lock.release()
                raise
        return self

    def _discard_damaged(self) -> None:
        """Damaged files are removed, so that their documents are computed again; all others stay.

        Raises:
            InputError: a file that may be intact cannot be read: its states would be computed again beside it.
        """
        numbers = [-1]
        for path in self._own.glob("states-*.safetensors"):
            if (named := _NAME.fullmatch(path.name)) is None:  # not of this package
                continue
            numbers.append(int(named[1]))
            try:
                StateShard(path)
            except DamagedShard:
                path.unlink(missing_ok=True)
            except UnusableShard as error:
                raise unusable(path, error) from error
        self._number = 1 + max(numbers)

    def __exit__(self, *_: object) -> None:
        try:
            self.flush()
        finally:
            self._lock.release()

    def add(self, digest: bytes, start: int, ids: np.ndarray, states: Tensor) -> None:
        """States of a piece; written at once when there is enough for a file.

        Args:
            digest: of the document's text.
            start: which token of it is the first.
            ids: int32 ``[n]``, the tokens.
            states: ``[n, H]``, on any device.

        Raises:
            InputError: the folder cannot be written; what was to be written is kept for another attempt.
        """
        self._records.append(Record(digest, start, np.array(ids, np.int32), self.kind.encode(states)))
        self._held += len(ids)
        if self._held >= self._rows or self._clock() - self._since >= self._seconds:
            self.flush()

    def flush(self) -> None:
        """Writes what is collected.

        Raises:
            InputError: the folder cannot be written.
        """
        self._since = self._clock()
        if not self._records:
            return
        with self._writing():
            write_shard(self._own, self._number, self._records, self.kind, self.fingerprint)
        self._number += 1
        self.tokens += self._held
        self._records, self._held = [], 0

    def drop(self) -> None:
        """Forgets what is collected: it could not be written, and is not to be."""
        self._records, self._held = [], 0

    def finish(self) -> StateStore:
        """Writes what is collected, and the index of the whole folder."""
        self.flush()
        with self._writing():
            store = StateStore(self.folder, self.fingerprint)
            store.write_index()
        return store

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno not in _CANNOT_WRITE:
                raise
            raise unwritable(self.folder, error) from error


def unwritable(folder: Path, error: OSError) -> InputError:
    """What is said of a folder that cannot be written, or has no room."""
    return InputError(
        f"the folder of states {folder} cannot be written: {error}",
        "a folder that you may write to, with room in it",
        "make room or name another folder, and start again: what is written is kept",
    )

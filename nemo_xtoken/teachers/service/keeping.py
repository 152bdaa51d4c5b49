"""A teacher in other processes whose states are kept on disk: what is there is not asked for again."""

import itertools
import logging
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nemo_xtoken.errors import InputError
from nemo_xtoken.leftovers import host_name, tidy
from nemo_xtoken.teachers.cached import cache_folder
from nemo_xtoken.teachers.contract import TeacherHost
from nemo_xtoken.teachers.fingerprint import Fingerprint
from nemo_xtoken.teachers.service.remote import RemoteTeacher, Sample
from nemo_xtoken.teachers.store.read_ahead import ReadAhead
from nemo_xtoken.teachers.store.state_formats import StateFormat, format_for
from nemo_xtoken.teachers.store.state_store import PART, StateStore
from nemo_xtoken.teachers.store.state_writer import PartTaken, StateWriter

__all__ = ["KeepingTeacher"]

logger = logging.getLogger(__name__)

SHARD_SECONDS = 60.0
LOOK_SECONDS = 60.0  # between two looks at what other processes have written


class KeepingTeacher(RemoteTeacher):
    """Reads what the folder has, asks for the rest, and writes it.

    Each process that asks writes files of its own, in a part of the folder that the next one on this machine takes over
    when it ends.  Where the disk is full, or the folder cannot be written, also at the start, it says so once, and the
    run goes on without keeping more.

    Args:
        host: of the run.
    """

    def __init__(self, host: TeacherHost) -> None:
        super().__init__(host)
        self._store: StateStore | None = None
        self._writer: StateWriter | None = None
        self._written: set[tuple[bytes, int, int]] = set()  # what the store does not know yet
        self._looked = time.monotonic()
        self._reader = ReadAhead(pinned=torch.cuda.is_available())
        if self._asks:
            folder, of = cache_folder(host.settings, host.label), host.fingerprint()
            self._store = StateStore(folder, of, host.settings.cache.open_files, host.settings.cache.check)
            kind = format_for(host.settings.cache.format, of.dtype)
            self._attempt(self._begin, folder, of, kind)

    def _begin(self, folder: Path, of: Fingerprint, kind: StateFormat) -> None:
        """Takes the first part of this machine to which nobody writes: what a killed process left there is seen to."""
        for left in folder.glob(f"{PART}*"):
            tidy(left)  # of other machines, which may not come back
        for number in itertools.count():
            try:
                part = f"run-{host_name()}-{number}"
                self._writer = StateWriter(folder, of, kind, part, shard_seconds=SHARD_SECONDS).__enter__()
                return  # left by close
            except PartTaken:
                continue

    @classmethod
    def check(cls, settings: Any, where: str) -> None:
        """See `Teacher.check`."""
        super().check(settings, where)
        cache_folder(settings, where)
        if settings.cache.format == "sampled":
            raise InputError(
                f"{where}.cache.format=sampled with {where}.source=remote+cached",
                "states, of which this run computes with those that it keeps",
                "keep them as fp8, or make samples with `xtoken cache .. format=sampled`",
            )

    def want(self, sample: Sample) -> None:
        """See `RemoteTeacher.want`.  What the folder has is read meanwhile."""
        if self._has(sample):
            self._reader.want(sample.row.key, partial(self._read, sample))
        else:
            super().want(sample)

    def found(self, sample: Sample) -> Tensor:
        """See `RemoteTeacher.found`.  A step asks twice: what has come is not written at once to be read again."""
        assert self.pool is not None
        if not self.pool.has(sample.row.key) and self._has(sample):
            self._reader.want(sample.row.key, partial(self._read, sample))
            return self._reader.get(sample.row.key)
        states = super().found(sample)
        self._keep(sample, states)
        return states

    def _has(self, sample: Sample) -> bool:
        """Whether the folder has all of it."""
        lacking = self._lacking(sample)
        if not lacking:
            return True
        now = time.monotonic()
        if not lacking <= self._written and now - self._looked < LOOK_SECONDS:
            return False
        self._look(now)
        return not self._lacking(sample)

    def _lacking(self, sample: Sample) -> set[tuple[bytes, int, int]]:
        """The pieces that the store does not know."""
        assert self._store is not None
        keys = {(piece.digest, piece.start, piece.count) for piece in sample.pieces}
        return {key for key in keys if not self._store.holds(*key)}

    def _look(self, now: float) -> None:
        """Sees what has been written; what this process has written the store knows then."""
        assert self._store is not None
        self._looked = now
        if self._writer is not None:
            self._attempt(self._writer.flush)
        with self._reader.lock:
            self._store.refresh()
        self._written = set()

    def forget(self, key: str) -> None:
        """See `RemoteTeacher.forget`."""
        super().forget(key)
        self._reader.forget(key)

    def _read(self, sample: Sample) -> Tensor:
        """On the reader's thread."""
        assert self._store is not None
        parts = []
        for piece in sample.pieces:
            (segment,) = self._store.segments(piece.digest, piece.start, piece.count)
            parts.append(self._store.read(segment, piece.ids, self.dtype))
        return torch.cat(parts)

    def _keep(self, sample: Sample, states: Tensor) -> None:
        at, lacking = 0, self._lacking(sample)
        for piece in sample.pieces:
            key = piece.digest, piece.start, piece.count
            part = states[at : at + piece.count]
            at += piece.count
            if self._writer is not None and key in lacking and key not in self._written:
                self._written.add(key)
                self._attempt(self._writer.add, piece.digest, piece.start, piece.ids, part)

    def _attempt(self, action: Any, *arguments: Any) -> None:
        try:
            action(*arguments)
        except InputError as error:
            logger.warning("the states of the %s are not kept any more: %s", self.label, error.found)
            if self._writer is not None:
                self._writer.drop()
                self._attempt(self._writer.__exit__, None, None, None)
            self._writer = None
            self._written = set()

    def close(self) -> None:
        """See `Teacher.close`: writes what is held, and the index."""
        super().close()
        self._reader.close()
        if self._writer is not None:
            self._attempt(self._writer.finish)
        if self._writer is not None:
            self._writer.__exit__(None, None, None)
            self._writer = None

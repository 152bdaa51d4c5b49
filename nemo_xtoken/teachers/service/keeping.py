"""A teacher in other processes whose states are kept on disk: what is there is not asked for again."""

import errno
import logging
import os
import socket
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nemo_xtoken.errors import InputError
from nemo_xtoken.teachers.cached import cache_folder
from nemo_xtoken.teachers.contract import TeacherHost
from nemo_xtoken.teachers.service.remote import RemoteTeacher, Sample
from nemo_xtoken.teachers.store.side_pieces import Piece
from nemo_xtoken.teachers.store.state_formats import format_for
from nemo_xtoken.teachers.store.state_store import StateStore
from nemo_xtoken.teachers.store.state_writer import StateWriter

__all__ = ["KeepingTeacher"]

logger = logging.getLogger(__name__)

SHARD_SECONDS = 60.0
_FULL = (errno.ENOSPC, errno.EDQUOT)
LOOK_SECONDS = 60.0  # between two looks at what other processes have written


class KeepingTeacher(RemoteTeacher):
    """Reads what the folder has, asks for the rest, and writes it.

    Each process that asks writes files of its own.  Where the disk is full, or the folder cannot be written, it says so
    once, and the run goes on without keeping more.

    Args:
        host: of the run.
    """

    def __init__(self, host: TeacherHost) -> None:
        super().__init__(host)
        self._store: StateStore | None = None
        self._writer: StateWriter | None = None
        self._written: set[tuple[bytes, int, int]] = set()
        self._looked = time.monotonic()
        if self._asks:
            folder, of = cache_folder(host.settings, host.label), host.fingerprint()
            self._store = StateStore(folder, of, host.settings.cache.open_files, host.settings.cache.check)
            kind = format_for(host.settings.cache.format, of.dtype)
            part = f"run-{socket.gethostname()}-{os.getpid()}"
            self._begin(StateWriter(Path(folder), of, kind, part, shard_seconds=SHARD_SECONDS))

    def _begin(self, writer: StateWriter) -> None:
        """Takes a writer, which `close` leaves; none where the disk is full, as after a run that filled it.

        Raises:
            InputError: the folder cannot be written for another reason.
        """
        try:
            self._writer = writer.__enter__()
        except InputError as error:
            if getattr(error.__cause__, "errno", None) not in _FULL:
                raise
            logger.warning("the states of the %s are not kept: %s", self.label, error.found)

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
        """See `RemoteTeacher.want`."""
        if not self._has(sample):
            super().want(sample)

    def found(self, sample: Sample) -> Tensor:
        """See `RemoteTeacher.found`.  A step asks twice: what has come is not written at once to be read again."""
        assert self.pool is not None
        if not self.pool.has(sample.row.key) and self._has(sample):
            return torch.cat([self._read(piece) for piece in sample.pieces])
        states = super().found(sample)
        self._keep(sample, states)
        return states

    def _has(self, sample: Sample) -> bool:
        """Whether the folder has all of it."""
        assert self._store is not None
        if all(self._store.holds(piece.digest, piece.start, piece.count) for piece in sample.pieces):
            return True
        now = time.monotonic()
        ours = all((piece.digest, piece.start, piece.count) in self._written for piece in sample.pieces)
        if not ours and now - self._looked < LOOK_SECONDS:
            return False
        self._looked = now
        if ours and self._writer is not None:
            self._attempt(self._writer.flush)
        self._store.refresh()
        return all(self._store.holds(piece.digest, piece.start, piece.count) for piece in sample.pieces)

    def _read(self, piece: Piece) -> Tensor:
        assert self._store is not None
        (segment,) = self._store.segments(piece.digest, piece.start, piece.count)
        return self._store.read(segment, piece.ids, self.dtype)

    def _keep(self, sample: Sample, states: Tensor) -> None:
        at = 0
        for piece in sample.pieces:
            key = piece.digest, piece.start, piece.count
            part = states[at : at + piece.count]
            at += piece.count
            if self._writer is not None and key not in self._written:
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
        if self._writer is not None:
            self._attempt(self._writer.finish)
        if self._writer is not None:
            self._writer.__exit__(None, None, None)
            self._writer = None

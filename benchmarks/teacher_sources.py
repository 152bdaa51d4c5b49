"""A student that is a pause takes steps by a teacher that is one: beside it, in other processes, or on disk.

Used by ``benchmarks/teachers.py``.
"""

import multiprocessing
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from nemo_xtoken.teachers.fingerprint import Fingerprint
from nemo_xtoken.teachers.service.asked_rows import Row
from nemo_xtoken.teachers.service.replica_server import Limits, ReplicaServer
from nemo_xtoken.teachers.service.service_folder import ServiceFolder
from nemo_xtoken.teachers.service.service_pool import ServicePool
from nemo_xtoken.teachers.store.read_ahead import ReadAhead
from nemo_xtoken.teachers.store.state_formats import format_for
from nemo_xtoken.teachers.store.state_store import StateStore
from nemo_xtoken.teachers.store.state_writer import StateWriter

__all__ = ["Shape", "beside", "elsewhere", "fingerprint", "on_disk", "taught"]

VOCABULARY = 1000
AHEAD = 2  # steps, as teacher.service.ahead


@dataclass(frozen=True)
class Shape:
    """Of a student's run.

    Attributes:
        hidden: width of the states, in bf16.
        length: tokens of a row.
        rows: of a step.
        seconds: of a step of the student.
        steps: after a first one, which counts for nothing: before it nothing could be asked for.
        rate: tokens a second of one teacher.
    """

    hidden: int
    length: int
    rows: int
    seconds: float
    steps: int
    rate: float

    @property
    def needed(self) -> float:
        """Teachers that give the states of a step while the student takes one."""
        return self.rows * self.length / self.seconds / self.rate if self.seconds else float("inf")

    def data(self) -> list[list[Row]]:
        """Rows of random tokens by step."""
        numbers = np.random.default_rng(0)
        count = self.rows * self.length
        ids = [numbers.integers(0, VOCABULARY, count).astype(np.int32) for _ in range(self.steps + 1)]
        return [[Row(self.length, (self.length,), part) for part in np.split(step, self.rows)] for step in ids]


def fingerprint(hidden: int, dtype: str = "bfloat16") -> Fingerprint:
    """Of a teacher that there is not."""
    return Fingerprint("w" * 64, "a" * 64, "t" * 64, hidden, dtype)


class Source(Protocol):
    """Where states come from."""

    def want(self, row: Row) -> object:
        """They will be needed."""
        ...

    def get(self, key: str) -> Tensor:
        """``[tokens, H]``."""
        ...

    def forget(self, key: str) -> None:
        """They have been used."""
        ...


def taught(source: Source, shape: Shape) -> dict[str, float]:
    """Tokens a second of the student, and the share of its time in which it has no states."""
    data = shape.data()
    begin = waited = 0.0
    for number, own in enumerate(data):
        if number == 1:
            begin, waited = time.perf_counter(), 0.0
        for row in (row for ahead in data[number : number + 1 + AHEAD] for row in ahead):
            source.want(row)
        asked = time.perf_counter()
        for row in own:
            source.get(row.key)
        waited += time.perf_counter() - asked
        for row in own:
            source.forget(row.key)
        time.sleep(shape.seconds)
    seconds = time.perf_counter() - begin
    return {"tokens/s": shape.steps * shape.rows * shape.length / seconds, "waiting": waited / seconds}


class _Beside:
    """A teacher in the student's own process: nothing else goes on while it computes."""

    def __init__(self, shape: Shape) -> None:
        self.seconds = shape.length / shape.rate
        self.states = torch.randn(shape.length, shape.hidden).bfloat16()

    def want(self, row: Row) -> None:
        """It computes nothing ahead."""

    def get(self, key: str) -> Tensor:
        """Takes the teacher's time."""
        time.sleep(self.seconds)
        return self.states

    def forget(self, key: str) -> None:
        """It keeps nothing."""


class _OnDisk:
    """Files of states, which have been written before."""

    def __init__(self, store: StateStore) -> None:
        self.store, self.reader = store, ReadAhead()

    def want(self, row: Row) -> None:
        """Reads them on a thread, and compares their checksum."""
        self.reader.want(row.key, partial(self._read, row))

    def _read(self, row: Row) -> Tensor:
        (segment,) = self.store.segments(bytes.fromhex(row.key)[:16], 0, row.tokens)
        return self.store.read(segment, row.ids, torch.bfloat16)

    def get(self, key: str) -> Tensor:
        """What the thread has read."""
        return self.reader.get(key)

    def forget(self, key: str) -> None:
        """The system keeps the files in memory, or does not."""
        self.reader.forget(key)


def beside(shape: Shape) -> dict[str, Any]:
    """A teacher in the student's process, which takes its time of each step."""
    return {"teacher": "colocated", **taught(_Beside(shape), shape)}


def on_disk(shape: Shape, form: str) -> dict[str, Any]:
    """States in files."""
    of, data = fingerprint(shape.hidden), shape.data()
    states = torch.randn(shape.length, shape.hidden).bfloat16()
    with tempfile.TemporaryDirectory() as folder:
        with StateWriter(Path(folder), of, format_for(form, "bfloat16")) as writer:
            for row in (row for step in data for row in step):
                writer.add(bytes.fromhex(row.key)[:16], 0, row.ids, states)
            writer.finish()
        source = _OnDisk(StateStore(Path(folder), of))
        try:
            return {"teacher": f"cached, {form}", **taught(source, shape)}
        finally:
            source.reader.close()


def elsewhere(shape: Shape, replicas: int) -> dict[str, Any]:
    """Replicas in processes of their own; ``wire``: bytes that came, of those of the states."""
    with tempfile.TemporaryDirectory() as folder, _replicas(folder, shape, replicas) as pool:
        while pool.alive() < replicas:
            time.sleep(0.01)
        found, seen = taught(pool, shape), pool.statistics
        name = f"remote, {replicas} replica{'s' * (replicas > 1)}"
        return {"teacher": name, **found, "wire": seen.wire / (seen.tokens * shape.hidden * 2)}


@contextmanager
def _replicas(folder: str, shape: Shape, count: int) -> Iterator[ServicePool]:
    """A student's side of so many replicas; all end with it."""
    context = multiprocessing.get_context("spawn")
    made = [context.Process(target=_replica, args=(folder, f"r{n}", shape), daemon=True) for n in range(count)]
    pool = None
    try:
        for one in made:
            one.start()
        pool = ServicePool(ServiceFolder(Path(folder)), fingerprint(shape.hidden))
        yield pool
    finally:
        if pool is not None:
            pool.close()
        for one in made:
            one.kill()
            one.join()


def _replica(folder: str, name: str, shape: Shape) -> None:
    """Answers after as long as a teacher of this rate takes; for ever."""
    limits = Limits(shape.length, VOCABULARY, 8 * shape.length)
    server = ReplicaServer(ServiceFolder(Path(folder)), name, fingerprint(shape.hidden), limits, "127.0.0.1")
    states = torch.randn(shape.length, shape.hidden).bfloat16()
    free = time.monotonic()
    while True:
        asked = server.take(1, 1.0)
        if asked:
            free = max(free, time.monotonic()) + asked[0].row.tokens / shape.rate
            time.sleep(max(0.0, free - time.monotonic()))
            server.answer(asked, [states[: asked[0].row.tokens]])
        else:
            free = time.monotonic()

"""A teacher in other processes, wherever they are: ``xtoken serve`` runs it, and states come over the network."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from nemo_xtoken.data.batch import TeacherSide
from nemo_xtoken.errors import InputError
from nemo_xtoken.parallel.context_parallel import ContextLayout
from nemo_xtoken.progress import say
from nemo_xtoken.teachers.contract import TeacherHost, TeacherLost
from nemo_xtoken.teachers.service.asked_rows import Row, rows_of
from nemo_xtoken.teachers.service.service_folder import ServiceFolder, zeromq
from nemo_xtoken.teachers.service.service_pool import Patience, ServicePool
from nemo_xtoken.teachers.store.side_pieces import Piece, pieces_of
from nemo_xtoken.teachers.without_model import TeacherWithoutModel

__all__ = ["RemoteTeacher", "Sample", "samples_of", "service_folder"]

#: What the rank that asks tells the others.
_GOOD, _BAD = 0, 1


def service_folder(settings: Any, where: str) -> ServiceFolder:
    """By which a teacher's service is found.

    Args:
        settings: its ``TeacherConfig``.
        where: what that is called on the command line.

    Raises:
        InputError: none is set.
    """
    if settings.service.folder is None:
        raise InputError(
            f"{where}.source={settings.source} without {where}.service.folder",
            "the folder by which the teacher's service is found",
            f"set {where}.service.folder=FOLDER, and start `xtoken serve teacher={settings.path} folder=FOLDER`",
        )
    return ServiceFolder(Path(settings.service.folder).expanduser())


@dataclass(frozen=True)
class Sample:
    """What is asked for at once.

    Attributes:
        row: its tokens.
        pieces: of documents, in their order in the row.
    """

    row: Row
    pieces: tuple[Piece, ...]


def samples_of(side: TeacherSide) -> list[Sample]:
    """Those of a micro-batch."""
    rows, length = rows_of(side), side.tokens.shape[1]
    pieces: list[list[Piece]] = [[] for _ in rows]
    for piece in pieces_of(side):
        pieces[piece.first // length].append(piece)
    return [Sample(row, tuple(own)) for row, own in zip(rows, pieces, strict=True)]


class RemoteTeacher(TeacherWithoutModel):
    """Asks a service for states.

    One rank of those that need the same rows (tensor- and context-parallel) asks, and sends what it gets to the others.

    Args:
        host: of the run.
    """

    may_be_lost = True

    def __init__(self, host: TeacherHost) -> None:
        from megatron.core import parallel_state as ps

        super().__init__(host)
        self.ahead = int(host.settings.service.ahead)
        self._group: Any = ps.get_tensor_and_context_parallel_group() if dist.is_initialized() else None
        self._several = self._group is not None and dist.get_world_size(self._group) > 1
        self._asks = self.last_stage and (not self._several or dist.get_rank(self._group) == 0)
        self.pool: ServicePool | None = None
        #: How often the states of a row will still be taken, as far as that is announced: one text may be several
        #: samples of a step.
        self._due: Counter[str] = Counter()
        if self._asks:
            service = host.settings.service
            patience = Patience(min(2.0, service.silent / 5), service.silent, service.slow, service.lost)
            folder, pinned = service_folder(host.settings, host.label), torch.cuda.is_available()
            self.pool = ServicePool(folder, host.fingerprint(), patience, pinned=pinned)

    @classmethod
    def check(cls, settings: Any, where: str) -> None:
        """See `Teacher.check`: pyzmq is there, and the folder can be used."""
        zeromq()
        service_folder(settings, where).keys()

    @classmethod
    def open(cls, host: TeacherHost) -> "RemoteTeacher":
        """See `Teacher.open`; whether the service answers is seen when states are wanted."""
        return cls(host)

    def announce(self, sides: Sequence[TeacherSide]) -> None:
        """See `Teacher.announce`: asks for their states."""
        for sample in self._samples(sides):
            self._due[sample.row.key] += 1
            self.want(sample)

    def wait(self, sides: Sequence[TeacherSide]) -> None:
        """See `Teacher.wait`: until all states of a step have arrived.  Held-out text has not been announced."""
        samples = self._samples(sides)
        self._due |= Counter(sample.row.key for sample in samples)  # what is announced is counted
        for sample in samples:
            self.want(sample)
        for sample in samples:
            self.found(sample)

    def _samples(self, sides: Sequence[TeacherSide]) -> list[Sample]:
        return [sample for side in sides for sample in samples_of(side)] if self._asks else []

    def want(self, sample: "Sample") -> None:
        """Asks for the states of a sample, on the rank that asks."""
        assert self.pool is not None
        self.pool.want(sample.row)

    def found(self, sample: "Sample") -> Tensor:
        """``[tokens, H]``, on the CPU; on the rank that asks.

        Raises:
            InputError: the teacher refuses, or cannot compute them.
            TeacherLost: no replica lives.
        """
        assert self.pool is not None
        return self.pool.get(self.pool.want(sample.row), say)

    def done_with(self, sample: "Sample") -> None:
        """Its states are with the model; they are forgotten where nothing that is announced takes them again."""
        key = sample.row.key
        self._due[key] -= 1
        if self._due[key] <= 0:
            del self._due[key]
            self.forget(key)

    def forget(self, key: str) -> None:
        """The states of a row are not needed any more."""
        assert self.pool is not None
        self.pool.forget(key)

    def held(self, side: TeacherSide, layout: ContextLayout) -> Tensor:
        """See `TeacherWithoutModel.held`.

        Collectives over the tensor- and context-parallel ranks: a broadcast of the states, and of a word before.
        """
        device = torch.cuda.current_device()
        whole = torch.zeros(side.tokens.numel(), self.width, dtype=self.dtype, device=device)
        error: InputError | None = None
        if self._asks:
            try:
                self._fill(side, whole)
            except TeacherLost as lost:
                error = InputError(str(lost), "its service", "see its log; the last checkpoint is intact")
            except InputError as bad:
                error = bad
        if self._several:
            first = dist.get_global_rank(self._group, 0)
            word = torch.tensor([_GOOD if error is None else _BAD], device=device)
            dist.broadcast(word, src=first, group=self._group)
            if error is None and int(word) == _BAD:
                error = InputError(f"no states of the {self.label}", "its service", "see the log of another rank")
            if error is None:
                dist.broadcast(whole, src=first, group=self._group)
        if error is not None:
            raise error
        return self.held_of(whole, layout)

    def _fill(self, side: TeacherSide, whole: Tensor) -> None:
        samples, length = samples_of(side), side.tokens.shape[1]
        for number, sample in enumerate(samples):
            found = self.found(sample)
            if not bool(torch.isfinite(found).all()):
                raise self.not_finite(side.samples[number])
            at = number * length
            whole[at : at + sample.row.tokens].copy_(found, non_blocking=True)
        for sample in samples:
            self.done_with(sample)

    def close(self) -> None:
        """See `Teacher.close`."""
        if self.pool is not None:
            self.pool.close()

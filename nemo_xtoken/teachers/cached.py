"""A teacher on disk: its states were computed before, by ``xtoken cache`` or by a run that kept them."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nemo_xtoken.data.batch import IGNORED, TeacherSide
from nemo_xtoken.data.dataset import TeacherPieces
from nemo_xtoken.errors import InputError
from nemo_xtoken.losses.options import DivergenceOptions
from nemo_xtoken.losses.registry import LOSSES, check_options, loss_named
from nemo_xtoken.parallel.context_parallel import ContextLayout
from nemo_xtoken.parallel.head import OutputHead
from nemo_xtoken.parallel.ownership import Ownership
from nemo_xtoken.teachers.contract import TeacherHost
from nemo_xtoken.teachers.store.read_ahead import ReadAhead
from nemo_xtoken.teachers.store.sampled_rows import SAMPLES, SampledHead
from nemo_xtoken.teachers.store.side_pieces import Piece, pieces_of
from nemo_xtoken.teachers.store.state_store import Missing, StateStore
from nemo_xtoken.teachers.without_model import TeacherWithoutModel

__all__ = ["CachedTeacher", "cache_folder"]

#: No option set.
PLAIN = DivergenceOptions()


def cache_folder(settings: Any, where: str) -> Path:
    """The folder of a teacher's states.

    Args:
        settings: its ``TeacherConfig``.
        where: what that is called on the command line.

    Raises:
        InputError: none is set.
    """
    if settings.cache.folder is None:
        raise InputError(
            f"{where}.source={settings.source} without {where}.cache.folder",
            "the folder of the teacher's states",
            f"set {where}.cache.folder=FOLDER; `xtoken cache` makes one",
        )
    return Path(settings.cache.folder).expanduser()


class CachedTeacher(TeacherWithoutModel):
    """Reads states from a folder; each process by itself, through memory maps.

    Those of the steps that are announced are read on a thread while the student computes: ``service.ahead`` of them.

    Args:
        host: of the run.
        store: the states.
    """

    def __init__(self, host: TeacherHost, store: StateStore) -> None:
        super().__init__(host)
        self.store, self.context = store, host.settings.cache.context
        self.ahead = int(host.settings.service.ahead)
        self._reader = ReadAhead(pinned=torch.cuda.is_available())
        self.sampled = store.format is not None and store.format.sampled
        if self.sampled:
            self.width, self.dtype = SAMPLES + 2, torch.float32

    @classmethod
    def check(cls, settings: Any, where: str) -> None:
        """See `Teacher.check`: the folder is there and holds states."""
        folder = cache_folder(settings, where)
        if not folder.is_dir() or not len(StateStore(folder, None)):
            raise InputError(
                f"no states in {where}.cache.folder={folder}",
                "a folder that `xtoken cache` has written",
                f"make it: `xtoken cache teacher={settings.path} paths=.. out={folder}`",
            )

    @classmethod
    def check_loss(cls, settings: Any, where: str, loss: str, objective: Any) -> None:
        """See `Teacher.check_loss`: samples are for what is linear in the teacher's probabilities."""
        form = StateStore(cache_folder(settings, where), None).format
        if form is None or not form.sampled:
            return
        samples = f"the samples in {where}.cache.folder={settings.cache.folder}"
        if not loss_named(loss).linear_in_teacher(check_options(loss, settings.options)):
            good = ", ".join(n for n, kind in LOSSES.items() if kind.linear_in_teacher(check_options(n, PLAIN)))
            raise InputError(
                f"{where}.loss={loss}, with its options, and {samples}",
                f"a loss whose gradient is linear in the teacher's probabilities ({good}, by their defaults): others "
                "would be biased",
                f"change {where}.loss, or make states: `xtoken cache .. format=fp8`",
            )
        if settings.chunks.temperature != 1:
            raise InputError(
                f"{where}.chunks.temperature={settings.chunks.temperature} and {samples}",
                "1, at which they were drawn",
                "leave the temperature out",
            )
        if isinstance(objective.scale, str):
            raise InputError(
                f"objective.scale={objective.scale} and {samples}",
                "a number: the divergence's value, unlike its gradient, is too large with samples",
                "set objective.scale=1",
            )
        if objective.teacher_weights in ("entropy", "confidence"):
            raise InputError(
                f"objective.teacher_weights={objective.teacher_weights} and {samples}",
                "static or cross_entropy",
                "choose one of these",
            )

    def lay_out(self, *ownerships: Ownership) -> list[OutputHead]:
        """See `Teacher.lay_out`.  Samples need no output layer."""
        if not self.sampled:
            return super().lay_out(*ownerships)
        device = torch.cuda.current_device()
        return [SampledHead(one.shard, torch.from_numpy(one.owned).to(device)) for one in ownerships]

    @classmethod
    def check_pieces(cls, settings: Any, where: str, pieces: TeacherPieces) -> None:
        """See `Teacher.check_pieces`."""
        folder, context = cache_folder(settings, where), settings.cache.context
        store = StateStore(folder, None)
        lacking = store.lacking(pieces.digests, pieces.starts, pieces.counts, context)
        if not lacking.any():
            return
        tokens, gone = int(pieces.counts[lacking].sum()), sorted(store.names[number] for number in store.absent)
        more = ""
        if context == "piece":
            rest = TeacherPieces(*(column[lacking] for column in pieces))
            if not store.lacking(rest.digests, rest.starts, rest.counts, "document").any():
                more = f"; or set {where}.cache.context=document: all are there with more of the document before them"
        raise InputError(
            f"{where}.cache.folder={folder} has no states for {int(lacking.sum()):,} of {len(lacking):,} pieces of the "
            f"run's text, {tokens:,} of {int(pieces.counts.sum()):,} tokens"
            + (f"; missing files: {', '.join(gone[:5])}" if gone else ""),
            "the states of all that the run reads",
            f"give the `xtoken cache` command with the run's data, lengths and seed: it computes what is missing{more}",
        )

    @classmethod
    def open(cls, host: TeacherHost) -> "CachedTeacher":
        """See `Teacher.open`."""
        cache = host.settings.cache
        folder = cache_folder(host.settings, host.label)
        return cls(host, StateStore(folder, host.fingerprint(), cache.open_files, cache.check))

    def announce(self, sides: Sequence[TeacherSide]) -> None:
        """See `Teacher.announce`: begins to read their states."""
        for side in sides if self.last_stage else ():
            self._reader.want(side.tokens, self._reading(side, self.host.form.context_layout(side)))

    def held(self, side: TeacherSide, layout: ContextLayout) -> Tensor:
        """See `TeacherWithoutModel.held`.  A side that was announced is known by its tensor of tokens."""
        if not self._reader.wants(side.tokens):
            self._reader.want(side.tokens, self._reading(side, layout), at_once=True)
        found = self._reader.get(side.tokens)
        self._reader.forget(side.tokens)
        return found.to(side.tokens.device, non_blocking=True)

    def close(self) -> None:
        """See `Teacher.close`."""
        self._reader.close()

    def _reading(self, side: TeacherSide, layout: ContextLayout) -> Callable[[], Tensor]:
        """What reads the states of a micro-batch, on a thread that needs nothing of the device."""
        here = replace(layout, positions=layout.positions.cpu(), bounds=None)
        return partial(self._read, side.map(lambda tensor: tensor.cpu()), here)

    def _read(self, side: TeacherSide, layout: ContextLayout) -> Tensor:
        """``[n, H]`` on the CPU: the positions that this rank's context-parallel part holds are read."""
        wanted = torch.zeros(side.tokens.numel() + 1, dtype=torch.bool)
        wanted[layout.local] = True  # padding is -1, the last, which is no position
        whole = torch.zeros(side.tokens.numel(), self.width, dtype=self.dtype)
        for piece in pieces_of(side):
            mine = torch.nonzero(wanted[piece.rows]).squeeze(1)
            if mine.numel():
                first, end = int(mine[0]), int(mine[-1]) + 1
                whole[piece.first + first : piece.first + end] = self._read_piece(piece, first, end)
        if bool((bad := ~torch.isfinite(whole).all(dim=1)).any()):
            raise self.not_finite(side.samples[int(torch.nonzero(bad)[0]) // side.tokens.shape[1]])
        if self.sampled:
            self._check_labels(side, layout, whole)
        return self.held_of(whole, layout)

    def _check_labels(self, side: TeacherSide, layout: ContextLayout, rows: Tensor) -> None:
        """The tokens whose probabilities are exact must be those that the losses ask for."""
        labels = side.labels.reshape(-1)
        wanted = torch.zeros(len(labels) + 1, dtype=torch.bool)
        wanted[layout.local] = True
        wrong = wanted[:-1] & (labels != IGNORED) & (rows[:, -2].long() != labels)
        if bool(wrong.any()):
            sample = int(torch.nonzero(wrong)[0]) // side.tokens.shape[1]
            raise InputError(
                f"the samples of the {self.label} in {self.store.folder} for sample {int(side.samples[sample])} of the "
                "data set know other next tokens than the data has",
                "those of this data",
                "make them again with `xtoken cache`, with this data",
            )

    def _read_piece(self, piece: Piece, first: int, end: int) -> Tensor:
        """``[end - first, H]`` on the CPU: the states of the positions ``first`` to ``end`` of a piece."""
        try:
            segments = self.store.segments(piece.digest, piece.start, piece.count, self.context)
        except Missing:
            raise uncovered(self.label, piece, self.store, self.context) from None
        parts, at = [], 0
        for segment in segments:
            low, high = max(first, at), min(end, at + segment.size)
            if low < high:
                part = segment._replace(first=segment.first + low - at, size=high - low)
                self._check_form(part.shard)
                parts.append(self.store.read(part, piece.ids[low:high], self.dtype))
            at += segment.size
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _check_form(self, number: int) -> None:
        if self.store.shard(number).format.sampled != self.sampled:
            raise InputError(
                f"samples and states in {self.store.folder}", "one of them", "move the files of one to another folder"
            )


def uncovered(label: str, piece: Piece, store: StateStore, context: str) -> InputError:
    """What is said of a piece whose states are not there."""
    more = ""
    if context == "piece":
        try:
            store.segments(piece.digest, piece.start, piece.count, "document")
            more = "; or set cache.context=document, by which states with more of the document before them are taken"
        except Missing:
            pass
    return InputError(
        f"no states of the {label} for sample {piece.sample} of the data set (text {piece.digest.hex()}, tokens "
        f"{piece.start} to {piece.start + piece.count}) in {store.folder}",
        "states of all that the run reads",
        f"give the `xtoken cache` command with the run's data and lengths: it computes what is missing{more}",
    )

"""Cutting a micro-batch into tiles: runs of student rows with the teachers' rows of the chunks in them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from nemo_xtoken.losses.base import TeacherSignal
from nemo_xtoken.losses.chunks import ScoredRows
from nemo_xtoken.parallel.head import OutputHead, accumulation_dtype

__all__ = ["TeacherRows", "Tile", "legal_cuts", "rows_within", "tile_cuts", "tiles"]

#: Tensors of a tile's size that are alive at once in the pass, of the student's and of a teacher's vocabulary.
STUDENT_TENSORS, TEACHER_TENSORS = 5, 6


@dataclass(frozen=True)
class TeacherRows:
    """The rows of one teacher's chunks on either side.

    Attributes:
        student: every labelled student position, with this teacher's chunks.
        teacher: the teacher positions that the chunks cover.
    """

    student: ScoredRows
    teacher: ScoredRows

    @classmethod
    def of(cls, labels: Tensor, signal: TeacherSignal) -> "TeacherRows":
        """
        Args:
            labels: int64 ``[b, T_S]``, the student's.
        """
        chunks = signal.chunks
        at_student = chunks[:, 0] * labels.shape[1] + chunks[:, 1]
        at_teacher = chunks[:, 0] * signal.labels.shape[1] + chunks[:, 3]
        return cls(
            ScoredRows.build(labels.reshape(-1), at_student, chunks[:, 2], only_chunks=False),
            ScoredRows.build(signal.labels.reshape(-1), at_teacher, chunks[:, 4], only_chunks=True),
        )


class Tile(NamedTuple):
    """
    Attributes:
        rows: of the student's scored rows.
        parts: for each teacher its (student rows, teacher rows) in this tile, numbered from 0; None without a chunk.
    """

    rows: slice
    parts: tuple[tuple[ScoredRows, ScoredRows] | None, ...]


def rows_within(mib: int | None, student: OutputHead, teachers: Sequence[OutputHead]) -> int:
    """Student rows of a tile that keep the pass within ``mib`` MiB on this rank, beside what it accumulates.

    It is the same on all ranks of a tensor-parallel group, whose parts of a vocabulary have equal sizes.

    Args:
        mib: None: what suits the device: 1024 on a GPU, whose matrix products like many rows; 96 on a CPU, whose caches
            like few, and whose allocator gives larger blocks back to the system every time.
    """
    if mib is None:
        mib = 1024 if student.weight.is_cuda else 96
    columns = STUDENT_TENSORS * student.shard.rows + TEACHER_TENSORS * max((t.shard.rows for t in teachers), default=0)
    return max(1, mib * 2**20 // (columns * accumulation_dtype(student.weight.dtype).itemsize))


def legal_cuts(scored: Sequence[ScoredRows]) -> Tensor:
    """Where rows may be cut: at both ends and wherever no chunk goes on.

    Args:
        scored: the same rows, once with each teacher's chunks.

    Returns:
        int64 ``[1 + teachers, cuts]`` on the CPU: the rows before each cut, increasing, and each teacher's chunks
        before it.
    """
    n = scored[0].rows.numel()
    legal = torch.ones(n, dtype=torch.bool, device=scored[0].rows.device)
    for s in scored:
        legal &= (s.chunk < 0).index_fill(0, s.first, True)
    ends = torch.nn.functional.pad(torch.nonzero(legal).squeeze(1), (0, 1), value=n)
    # a first row is legal, or inside another teacher's chunk: the chunks that begin before a cut lie before it
    return torch.stack([ends, *(torch.searchsorted(s.first, ends) for s in scored)]).cpu()  # one wait for the device


def tile_cuts(scored: Sequence[ScoredRows], tile_rows: int) -> Iterator[tuple[slice, tuple[slice, ...]]]:
    """Cuts rows into runs of at most ``tile_rows``, never inside a chunk; a longer chunk is a tile of its own.

    Args:
        scored: the same rows, once with each teacher's chunks.

    Yields:
        rows and each teacher's chunks of a tile, in order; every row is in exactly one.
    """
    before = legal_cuts(scored)
    positions, *counts = before.tolist()
    at = 0
    while at < len(positions) - 1:
        to = int(torch.searchsorted(before[0], positions[at] + tile_rows, right=True)) - 1
        to = max(to, at + 1)
        yield slice(positions[at], positions[to]), tuple(slice(c[at], c[to]) for c in counts)
        at = to


def tiles(student: ScoredRows, teachers: Sequence[TeacherRows], tile_rows: int) -> Iterator[Tile]:
    """The tiles of a micro-batch.

    Args:
        student: every labelled student position; chunks do not matter.
    """
    ends = [torch.nn.functional.pad(t.teacher.first, (0, 1), value=t.teacher.rows.numel()).tolist() for t in teachers]
    for rows, chunks in tile_cuts([t.student for t in teachers] or [student], tile_rows):
        parts = tuple(
            (t.student.part(rows, span), t.teacher.part(slice(end[span.start], end[span.stop]), span))
            if span.stop > span.start
            else None
            for t, end, span in zip(teachers, ends, chunks, strict=False)
        )
        yield Tile(rows, parts)

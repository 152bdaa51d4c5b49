"""Cutting a micro-batch into tiles: runs of student rows with the teachers' rows of the chunks in them."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from nemo_xtoken.kernels.tile_kernels import TileKernels
from nemo_xtoken.losses.base import TeacherSignal
from nemo_xtoken.losses.chunks import ScoredRows
from nemo_xtoken.parallel.head import OutputHead, accumulation_dtype
from nemo_xtoken.run.estimates.loss_time import STUDENT_TENSORS, TEACHER_TENSORS, rows_on_gpu

__all__ = ["TeacherRows", "Tile", "block_rows", "legal_cuts", "rows_within", "tile_cuts", "tiles", "together"]

#: Times that a tile's products read the whole weight: logits, gradient of the hidden states; of a teacher: logits.  The
#: gradient of the weight is read and written besides.
STUDENT_READS, TEACHER_READS = 2, 1
#: Reads and writes of a tile's tensors by what is done element by element, of either side.
PASSES = 15
#: Floating-point operations of a processor's core for a byte that it gets from memory, about.
BALANCE = 10
#: A tile on a CPU has so many rows that the weights are at most one part in so many of its time.
WEIGHTS_SHARE = 16
#: Bytes of a tensor of logits that a CPU goes over at a time: caches like small ones, and its allocator keeps their
#: memory, where it gives larger blocks back to the system every time.
BLOCK_BYTES = 16 * 2**20


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
        before = signal.before
        if before is None:
            before = torch.stack([_before(labels, *chunks[:, :2].T), _before(signal.labels, *chunks[:, 0:4:3].T)])
        at_student = chunks[:, 0] * labels.shape[1] + chunks[:, 1]
        at_teacher = chunks[:, 0] * signal.labels.shape[1] + chunks[:, 3]
        return cls(
            ScoredRows.build(labels.reshape(-1), at_student, chunks[:, 2], False, before[0]),
            ScoredRows.build(signal.labels.reshape(-1), at_teacher, chunks[:, 4], True, before[1]),
        )


def _before(labels: Tensor, sample: Tensor, row: Tensor) -> Tensor:
    """``ScoredRows.before`` of chunks that begin at these rows: what the rows before them predict."""
    found = []
    for back in (1, 2):
        label = labels[sample, (row - back).clamp_min(0)]
        found.append(label.where((row >= back) & (label >= 0), -1))
    return torch.stack(found, dim=1)


class Tile(NamedTuple):
    """
    Attributes:
        rows: of the student's scored rows.
        parts: for each teacher its (student rows, teacher rows) in this tile, numbered from 0; None without a chunk.
        plans: for each teacher what its divergence has planned for the tile, see ``ChunkDivergence.plans``.
    """

    rows: slice
    parts: tuple[tuple[ScoredRows, ScoredRows] | None, ...]
    plans: tuple[Any, ...] = ()


def rows_within(mib: int | None, student: OutputHead, teachers: Sequence[OutputHead]) -> int:
    """Student rows of a tile that keep the pass within ``mib`` MiB on this rank, beside what it accumulates.

    It is the same on all ranks of a tensor-parallel group, whose parts of a vocabulary have equal sizes.

    Args:
        mib: None: what suits the device.  On a GPU see `rows_on_gpu`: its products like many rows, in whole blocks.  On
            a CPU, where logits alone have all of a tile's rows (see `block_rows`), the more of two numbers of rows: as
            many as fit into 96 MiB; and, within 1 GiB, as many as make reading the output weights and adding to their
            gradient a small part of a tile's work; it grows with the hidden sizes.
    """
    widest = max((t.shard.rows for t in teachers), default=0)
    if student.weight.is_cuda:
        return rows_on_gpu(student.shard.rows, widest, mib)
    wide = accumulation_dtype(student.weight.dtype).itemsize
    row = wide * (STUDENT_TENSORS * student.shard.rows + TEACHER_TENSORS * widest)
    if mib is not None:
        return max(1, mib * 2**20 // row)
    logits = wide * (student.shard.rows + widest) + student.weight.itemsize * student.shard.rows
    return max(1, 96 * 2**20 // row, min(_worth_the_weights(student, teachers), 2**30 // logits))


def block_rows(tile_rows: int, student: OutputHead, kernels: TileKernels) -> int:
    """Student rows that are compared at a time, of a tile whose logits are made at once.

    All of them where the kernels work on logits or the device is a GPU; on a CPU those of `BLOCK_BYTES`.  The same on
    all ranks.
    """
    if kernels.pairs is not None or student.weight.is_cuda:
        return tile_rows
    row = student.shard.rows * accumulation_dtype(student.weight.dtype).itemsize
    return min(tile_rows, max(1, BLOCK_BYTES // row))


def _worth_the_weights(student: OutputHead, teachers: Sequence[OutputHead]) -> int:
    """Rows for which a tile's own work takes `WEIGHTS_SHARE` times as long as getting the weights from memory."""
    sizes = [(student, STUDENT_READS, 2, 6)]  # operations for a row and an entry of the weight: 3 products
    if teachers:
        sizes.append((max(teachers, key=lambda head: head.weight.numel()), TEACHER_READS, 0, 2))
    weights, row = 0.0, 0.0
    for head, reads, of_gradient, flops in sizes:
        own, wide = head.weight.itemsize, accumulation_dtype(head.weight.dtype).itemsize
        widened = own + wide if own < wide else 0  # read and written before a product reads it
        weights += head.weight.numel() * (reads * (wide + widened) + of_gradient * wide)
        row += head.shard.rows * (PASSES * wide + flops * head.weight.shape[1] / BALANCE)
    return int(WEIGHTS_SHARE * weights / row)


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


def together(blocks: Sequence[Tile], tile_rows: int) -> list[list[Tile]]:
    """Tiles one after the other whose logits are made at once: at most ``tile_rows`` rows, or one tile.

    About equal numbers of rows, as few times as that allows: each time takes the whole output weight and its gradient.
    """
    if not blocks:
        return []
    first, total = blocks[0].rows.start, blocks[-1].rows.stop - blocks[0].rows.start
    goal = total / max(1, math.ceil(total / tile_rows))
    found: list[list[Tile]] = []
    for block in blocks:
        middle = (block.rows.start + block.rows.stop) / 2 - first
        if found and block.rows.stop - found[-1][0].rows.start <= tile_rows and middle <= len(found) * goal:
            found[-1].append(block)
        else:
            found.append([block])
    return found


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

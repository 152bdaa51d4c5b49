"""A micro-batch: what `collate` makes of samples, and all that a training step knows of its text.

Nobody changes a batch: to move it, or to leave chunks out, makes another.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

__all__ = ["IGNORED", "Batch", "Inputs", "Side", "TeacherSide", "collate", "predicted_rows", "with_beginnings"]

#: The label of a position that predicts nothing; torch's cross-entropy leaves it out as well.
IGNORED = -100

AnyInputs = TypeVar("AnyInputs", bound="Inputs")


@dataclass(frozen=True)
class Inputs:
    """What a model reads of a micro-batch of b samples of T positions.

    Attributes:
        tokens: int64 ``[b, T]``; padding is at the end of a sample.
        positions: int64 ``[b, T]``, from 0 on in every piece of a document.
        documents: int32 ``[b, T]``, the number of the piece in its sample, -1 on padding.
        samples: int64 ``[b]``, the indices in the data set.
    """

    tokens: Tensor
    positions: Tensor
    documents: Tensor
    samples: Tensor

    def map(self: AnyInputs, function: Callable[[Tensor], Tensor]) -> AnyInputs:
        """The same with each tensor replaced by the function's result."""
        return replace(self, **{field.name: function(getattr(self, field.name)) for field in fields(self)})


@dataclass(frozen=True)
class Side(Inputs):
    """One model's half of a micro-batch.

    Attributes:
        labels: int64 ``[b, T]``, the next token of the same document, `IGNORED` where there is none or it is context.
        pieces: int64 ``[P, 4]``, of the pieces of all samples in order: sample, first position, number of positions,
            and which token of its document stands at the first.  The same pieces in the same order on every side.
        digests: uint8 ``[P, 16]``, the digest of each piece's text.
    """

    labels: Tensor
    pieces: Tensor
    digests: Tensor


@dataclass(frozen=True)
class TeacherSide(Side):
    """A teacher's half, and how it goes with the student's.

    Attributes:
        chunks: int64 ``[K, 5]``, sorted: sample, first student logit, student tokens, first teacher logit, teacher
            tokens.  Only chunks that both sides can score.
        beginnings: int64 ``[B, 5]``, likewise: chunks that hold the first token of a piece on a side, without that
            token, which nothing predicts.  For losses that score what is left of them.
    """

    chunks: Tensor
    beginnings: Tensor


@dataclass(frozen=True)
class Batch:
    """A micro-batch; also one sample of a data set, with b = 1.

    Attributes:
        student: the student's side.
        teachers: a side a teacher, in the order of the run's teachers.
    """

    student: Side
    teachers: tuple[TeacherSide, ...]

    def map(self, function: Callable[[Tensor], Tensor]) -> "Batch":
        """The same with each tensor replaced by the function's result."""
        return Batch(self.student.map(function), tuple(side.map(function) for side in self.teachers))

    def to(self, device: Any, non_blocking: bool = True) -> "Batch":
        """The same on a device; Lightning asks for it by this name."""
        return self.map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "Batch":
        """The same in pinned memory; torch's loader asks for it by this name."""
        return self.map(lambda tensor: tensor.pin_memory())

    def numbered(self, index: int) -> "Batch":
        """A sample with this index in its data set."""
        number = torch.tensor([index])
        teachers = tuple(replace(side, samples=number) for side in self.teachers)
        return Batch(replace(self.student, samples=number), teachers)


def collate(samples: Sequence[Batch]) -> Batch:
    """One batch of the samples of a data set."""
    sizes = [sample.student.samples.numel() for sample in samples]
    starts = [sum(sizes[:number]) for number in range(len(sizes))]

    def joined(sides: Sequence[AnyInputs]) -> AnyInputs:
        found = {}
        for field in fields(sides[0]):
            parts = [getattr(side, field.name) for side in sides]
            if field.name in ("pieces", "chunks", "beginnings"):
                parts = [_shifted(part, start) for part, start in zip(parts, starts, strict=True)]
            found[field.name] = torch.cat(parts)
        return replace(sides[0], **found)

    student = joined([sample.student for sample in samples])
    return Batch(student, tuple(joined(sides) for sides in zip(*(s.teachers for s in samples), strict=True)))


def _shifted(table: Tensor, start: int) -> Tensor:
    """The same rows with the numbers of the samples, its first column, counted from ``start``."""
    return torch.cat([table[:, :1] + start, table[:, 1:]], dim=1)


def predicted_rows(chunks: np.ndarray, student_start: int, teacher_start: int) -> tuple[np.ndarray, np.ndarray]:
    """The rows that predict the tokens of chunks in a piece of a document.

    Args:
        chunks: int64 ``[K, 4]``, the aligner's: student_start, student_end, teacher_start, teacher_end.
        student_start, teacher_start: the first token of the piece on each side.

    Returns:
        int64 ``[k, 4]``: first student row, student rows, first teacher row, teacher rows, counted from the beginning
        of the piece, of the chunks with a row on both sides; and bool ``[k]``, which of them have one for each token.
        The others hold the first token of a side, and more.
    """
    begins, ends = chunks[:, [0, 2]], chunks[:, [1, 3]]
    starts = np.array([student_start, teacher_start])
    predicted = np.maximum(begins, starts + 1)
    rows = np.stack([predicted - 1 - starts, ends - predicted], axis=2).reshape(-1, 4)
    there = (ends > predicted).all(axis=1)
    return rows[there], (predicted == begins).all(axis=1)[there]


def with_beginnings(chunks: Tensor, beginnings: Tensor) -> Tensor:
    """Both in one table, in the order of the student's rows.

    Args:
        chunks, beginnings: int64 ``[., 5]``, see `TeacherSide`.
    """
    both = torch.cat([chunks, beginnings])
    if not len(beginnings):
        return both
    both = both[torch.argsort(both[:, 1], stable=True)]
    return both[torch.argsort(both[:, 0], stable=True)]

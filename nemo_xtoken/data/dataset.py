"""Samples of a fixed length, as a map-style data set: sample i depends on the data, the seed and i alone."""

import copy
import functools
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from nemo_xtoken.alignment.cache import DIGEST_BYTES
from nemo_xtoken.data.batch import IGNORED, Batch, Side, TeacherSide, predicted_rows
from nemo_xtoken.data.packing import (
    DOCUMENT,
    STUDENT_END,
    STUDENT_START,
    pack_documents,
    permutation,
    teacher_columns,
)
from nemo_xtoken.data.packing_report import PackingReport
from nemo_xtoken.data.prepared import PreparedDocuments
from nemo_xtoken.data.sample_index import read_index, write_index
from nemo_xtoken.errors import InputError
from nemo_xtoken.vocab import Vocabulary

__all__ = ["DistillationDataset", "TeacherPieces", "checked_length"]


class TeacherPieces(NamedTuple):
    """The pieces of documents on a teacher's side.

    Attributes:
        samples: int64 ``[P]``, the index of each one's sample.
        digests: ``[P]`` of ``S16``, of the text.
        starts, counts: int64 ``[P]``, which token of the document is the first, and how many positions.
    """

    samples: np.ndarray
    digests: np.ndarray
    starts: np.ndarray
    counts: np.ndarray


class DistillationDataset(Dataset[Batch]):
    """Packed samples with their chunks.

    Every epoch has the same samples in another order.  Indices go on through the epochs, so that the index of a sample
    is all that a resumed run needs to know: index i is sample ``i % epoch_length`` of epoch ``i // epoch_length``.

    Args:
        prepared: the same documents, aligned with each teacher.
        student, teachers: for the padding ids.
        student_length: T_S, input positions of a sample.
        teacher_lengths: T_T of each teacher.
        seed: of the order of documents, and of samples in each epoch.
        num_samples: what ``len`` says; default one epoch.
        pack: several documents in a sample, not attended across; False: one piece of one document each.
        whole: a document that is longer than a sample is cut off; by default it is continued in another.

    Raises:
        InputError: a length below 2, ``num_samples`` below 1, or no sample has a chunk to score.
    """

    def __init__(
        self,
        prepared: Sequence[PreparedDocuments],
        student: Vocabulary,
        teachers: Sequence[Vocabulary],
        student_length: int,
        teacher_lengths: Sequence[int],
        seed: int,
        num_samples: int | None = None,
        pack: bool = True,
        whole: bool = False,
    ) -> None:
        self.prepared = tuple(prepared)
        self.seed = seed
        self._lengths = student_length, *teacher_lengths
        self._padding = _padding(student), *map(_padding, teachers)
        self._pieces = pack_documents(prepared, student_length, teacher_lengths, seed, pack, whole)
        self._num_samples = checked_length(num_samples) if num_samples is not None else self.epoch_length
        described = [*(p.digest for p in prepared), self._lengths, self._padding, seed, pack, *["whole"] * whole]
        if whole or self.report.left_out or self.report.without_chunks:
            described.append("packing 2")  # before it such documents were left out, or moved the others
        settings = repr(tuple(described))
        #: sha256 (hex) of everything that decides what the samples are.  Data sets with equal fingerprints give equal
        #: items for an index; a checkpoint can hold it to refuse a resume on other data.
        self.fingerprint = hashlib.sha256(settings.encode()).hexdigest()

    def keep(self, folder: Path) -> Path:
        """Writes down what every sample is, for `opened`.

        Raises:
            OSError: it cannot be written.
        """
        return write_index(folder, self.prepared, self._pieces, self.fingerprint)

    @classmethod
    def opened(
        cls,
        path: Path,
        student: Vocabulary,
        teachers: Sequence[Vocabulary],
        student_length: int,
        teacher_lengths: Sequence[int],
        seed: int,
    ) -> "DistillationDataset":
        """The data set that another process has made and kept, without reading or packing anything.

        Raises:
            InputError: the file cannot be read.
        """
        data = object.__new__(cls)
        prepared, data._pieces, data.fingerprint = read_index(path)
        data.prepared, data.seed = tuple(prepared), seed
        data._lengths = student_length, *teacher_lengths
        data._padding = _padding(student), *map(_padding, teachers)
        data._num_samples = data.epoch_length
        return data

    def resized(self, num_samples: int) -> "DistillationDataset":
        """The same samples, with another length."""
        other = copy.copy(self)
        other._num_samples = checked_length(num_samples)
        return other

    @property
    def report(self) -> PackingReport:
        """Counts of one epoch."""
        return self._pieces.report

    @property
    def epoch_length(self) -> int:
        """Samples in one epoch."""
        return self._pieces.report.samples

    def __len__(self) -> int:
        return self._num_samples

    def __getitem__(self, index: int) -> Batch:
        """The sample, as a batch of one."""
        rows = self._rows(index).tolist()
        sides = [_Filled(length, padding) for length, padding in zip(self._lengths, self._padding, strict=True)]
        chunks: list[list[np.ndarray]] = [[] for _ in self.prepared]
        beginnings: list[list[np.ndarray]] = [[] for _ in self.prepared]
        for number, row in enumerate(rows):
            s = row[STUDENT_START]
            for m, prepared in enumerate(self.prepared):
                student_ids, teacher_ids, all_chunks = prepared.document(row[DOCUMENT])
                t, teacher_end, first, last = row[teacher_columns(m)]
                if m == 0:
                    at_student = sides[0].put(number, student_ids[s : row[STUDENT_END]], s)
                at_teacher = sides[1 + m].put(number, teacher_ids[t:teacher_end], t)
                found, whole = predicted_rows(all_chunks[first:last].astype(np.int64), s, t)
                found = np.insert(found + np.array([at_student, 0, at_teacher, 0]), 0, 0, axis=1)
                chunks[m].append(found[whole])
                beginnings[m].append(found[~whole])
        shared = {"samples": torch.tensor([index]), "digests": self._digests(rows)}
        student, *teachers = (side.tensors() | shared for side in sides)
        joined = [[torch.from_numpy(np.concatenate(c)) for c in table] for table in (chunks, beginnings)]
        return Batch(
            Side(**student),
            tuple(TeacherSide(**side, chunks=c, beginnings=b) for side, c, b in zip(teachers, *joined, strict=True)),
        )

    def _digests(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """uint8 ``[P, 16]``, of the texts of the pieces."""
        found = [self.prepared[0].digests[row[DOCUMENT] : row[DOCUMENT] + 1] for row in rows]
        return torch.from_numpy(np.concatenate(found).view(np.uint8).reshape(-1, DIGEST_BYTES))

    def teacher_pieces(self, number: int) -> TeacherPieces:
        """What a teacher reads in the first epoch, which has all that later ones have.

        Args:
            number: of the teacher.
        """
        pieces, columns = self._pieces, teacher_columns(number)
        place = np.empty(self.epoch_length, np.int64)
        place[_epoch_order(self.epoch_length, self.seed, 0)] = np.arange(self.epoch_length)
        samples = place[np.repeat(np.arange(self.epoch_length), np.diff(pieces.first))]
        of_side = pieces.table[:, columns]
        used = samples < self._num_samples
        found = samples, self.prepared[number].digests[pieces.table[:, DOCUMENT]], of_side[:, 0], of_side[:, 1]
        samples, digests, starts, ends = (column[used] for column in found)
        return TeacherPieces(samples, digests, starts, ends - starts - 1)

    def describe(self, index: int) -> list[dict[str, Any]]:
        """Where a sample comes from, a dictionary per piece; for error messages about a sample."""
        return [
            {
                "document": row[DOCUMENT],
                "text_digest": bytes(self.prepared[0].digests[row[DOCUMENT]]).ljust(16, b"\0").hex(),
                "student_tokens": (row[STUDENT_START], row[STUDENT_END]),
            }
            | {f"teacher{m}_tokens": tuple(row[teacher_columns(m)][:2]) for m in range(len(self.prepared))}
            for row in self._rows(index).tolist()
        ]

    def _rows(self, index: int) -> np.ndarray:
        if not 0 <= index < self._num_samples:
            raise IndexError(f"sample {index} of {self._num_samples}")
        epoch, place = divmod(int(index), self.epoch_length)
        sample = _epoch_order(self.epoch_length, self.seed, epoch)[place]
        return self._pieces.table[self._pieces.first[sample] : self._pieces.first[sample + 1]]


@functools.lru_cache(maxsize=4)
def _epoch_order(samples: int, seed: int, epoch: int) -> np.ndarray:
    return permutation(samples, seed, 1, epoch)


class _Filled:
    """One side of a sample, filled piece by piece."""

    def __init__(self, length: int, padding: int) -> None:
        self.tokens = np.full((1, length), padding, np.int64)
        self.labels = np.full((1, length), IGNORED, np.int64)
        self.positions = np.zeros((1, length), np.int64)
        self.documents = np.full((1, length), -1, np.int32)
        self._pieces: list[tuple[int, int, int, int]] = []
        self._used = 0

    def put(self, number: int, ids: np.ndarray, first: int) -> int:
        """Adds a piece; its last token is a label only, and negative ones (``~id``) are none.

        Args:
            first: which token of its document is the first of ``ids``.

        Returns:
            its first position.
        """
        start, end = self._used, self._used + len(ids) - 1
        context = ids < 0
        self.tokens[0, start:end] = np.where(context, ~ids, ids)[:-1]
        self.labels[0, start:end] = np.where(context, IGNORED, ids)[1:]
        self.positions[0, start:end] = np.arange(end - start)
        self.documents[0, start:end] = number
        self._pieces.append((0, start, end - start, first))
        self._used = end
        return start

    def tensors(self) -> dict[str, Tensor]:
        """By their names in `Side`."""
        names = "tokens", "labels", "positions", "documents"
        filled = {name: torch.from_numpy(getattr(self, name)) for name in names}
        return filled | {"pieces": torch.tensor(self._pieces)}


def checked_length(num_samples: int) -> int:
    """``num_samples``; raises InputError where it is below 1."""
    if num_samples < 1:
        raise InputError(f"num_samples={num_samples}", "at least 1", "correct the number of steps or the batch size")
    return num_samples


def _padding(vocabulary: Vocabulary) -> int:
    return next((i for i in (vocabulary.pad_id, vocabulary.eos_id) if i is not None), 0)

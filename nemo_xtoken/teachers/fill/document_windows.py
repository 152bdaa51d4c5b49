"""Whole documents as a teacher reads them: a long one in windows that overlap, so that every place has context."""

from collections.abc import Sequence

import numpy as np
import torch

from nemo_xtoken.alignment.cache import DIGEST_BYTES
from nemo_xtoken.data.batch import IGNORED, TeacherSide
from nemo_xtoken.data.dataset import TeacherPieces
from nemo_xtoken.data.prepared import PreparedDocuments
from nemo_xtoken.errors import InputError

__all__ = ["DocumentWindows", "windows_of"]


def windows_of(positions: int, length: int) -> list[tuple[int, int]]:
    """Start and size of each window of a document.

    Where one window does not hold it they begin at every half of a window: from the second half of the first one on,
    each position has at least half a window before it.

    Args:
        positions: of the document.
        length: of a window, at least 2.
    """
    if positions <= length:
        return [(0, positions)] if positions else []
    step = length // 2
    starts = range(0, positions - length + step, step)
    return [(start, min(length, positions - start)) for start in starts]


class DocumentWindows:
    """Samples of one teacher's side, filled with whole documents and windows of longer ones.

    Args:
        prepared: the documents.
        length: positions of a sample.
        padding: a token for what remains of it.

    Raises:
        InputError: samples shorter than two tokens.
    """

    def __init__(self, prepared: PreparedDocuments, length: int, padding: int) -> None:
        if length < 2:
            raise InputError(f"teacher_length={length}", "a sequence of at least 2 tokens", "set a longer one")
        self.prepared, self.length, self._padding = prepared, length, padding
        _, first = np.unique(prepared.digests, return_index=True)  # of copies of a text one is enough
        rows: list[tuple[int, int, int, int]] = []
        sample, left = -1, 0
        for document in np.sort(first).tolist():
            for start, size in windows_of(int(prepared.teacher_lengths[document]) - 1, length):
                if size > left:
                    sample, left = sample + 1, length
                rows.append((sample, document, start, size))
                left -= size
        self._table = np.array(rows, np.int64).reshape(-1, 4)
        self._first = np.searchsorted(self._table[:, 0], np.arange(sample + 2))

    def __len__(self) -> int:
        return len(self._first) - 1

    def pieces(self) -> TeacherPieces:
        """All windows."""
        samples, documents, starts, sizes = self._table.T
        return TeacherPieces(samples, self.prepared.digests[documents], starts, sizes)

    def side(self, index: int) -> TeacherSide:
        """One sample: a side of one, without chunks."""
        tokens = np.full((1, self.length), self._padding, np.int64)
        labels = np.full((1, self.length), IGNORED, np.int64)
        positions, documents = np.zeros((1, self.length), np.int64), np.full((1, self.length), -1, np.int32)
        pieces: list[tuple[int, int, int, int]] = []
        at = 0
        rows: Sequence[Sequence[int]] = self._table[self._first[index] : self._first[index + 1]].tolist()
        for number, (_, document, start, size) in enumerate(rows):
            ids = self.prepared.document(document)[1][start : start + size + 1]
            ids = np.where(ids < 0, ~ids, ids)
            tokens[0, at : at + size], labels[0, at : at + size] = ids[:-1], ids[1:]
            positions[0, at : at + size] = np.arange(size)
            documents[0, at : at + size] = number
            pieces.append((0, at, size, start))
            at += size
        digests = self.prepared.digests[[row[1] for row in rows]].view(np.uint8).reshape(-1, DIGEST_BYTES)
        return TeacherSide(
            torch.from_numpy(tokens),
            torch.from_numpy(positions),
            torch.from_numpy(documents),
            torch.tensor([index]),
            torch.from_numpy(labels),
            torch.tensor(pieces),
            torch.from_numpy(digests.copy()),
            *[torch.zeros(0, 5, dtype=torch.int64)] * 2,
        )

"""The pieces of documents in a teacher's side of a micro-batch: what states are asked for by."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from nemo_xtoken.data.batch import TeacherSide

__all__ = ["Piece", "pieces_of"]


@dataclass(frozen=True)
class Piece:
    """A run of positions of one document.

    Attributes:
        digest: of its text, 16 bytes.
        start: which token of the document stands at its first position.
        ids: int32 ``[n]``, the tokens that the model reads.
        first: its first position in the flattened micro-batch.
        sample: the index of its sample in the data set.
    """

    digest: bytes
    start: int
    ids: np.ndarray
    first: int
    sample: int

    @property
    def count(self) -> int:
        """Positions."""
        return len(self.ids)

    @property
    def rows(self) -> slice:
        """Of the flattened micro-batch."""
        return slice(self.first, self.first + self.count)


def pieces_of(side: TeacherSide) -> Iterator[Piece]:
    """Those of a micro-batch, in order.  Copies a few integers for each position to the CPU."""
    tokens = side.tokens.to("cpu", torch.int32).numpy()
    digests, samples = side.digests.cpu().numpy(), side.samples.tolist()
    length = tokens.shape[1]
    for digest, (sample, first, count, start) in zip(digests, side.pieces.tolist(), strict=True):
        ids = tokens[sample, first : first + count]
        yield Piece(digest.tobytes(), start, ids, sample * length + first, samples[sample])

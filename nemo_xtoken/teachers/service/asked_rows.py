"""Requests: rows of tokens, each some pieces of documents one after the other, as a sample has them."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from nemo_xtoken.data.batch import Inputs, TeacherSide
from nemo_xtoken.teachers.service.messages import BadMessage, Message, raw, tensor_of

__all__ = ["Row", "inputs_of", "rows_of"]


@dataclass(frozen=True)
class Row:
    """What a teacher reads of one sample.

    Attributes:
        length: positions of the sample; those after the pieces are padding.
        counts: of each piece, its positions.
        ids: int32 ``[sum of counts]``, the tokens.
    """

    length: int
    counts: tuple[int, ...]
    ids: np.ndarray

    @property
    def tokens(self) -> int:
        """Positions that are no padding."""
        return len(self.ids)

    @property
    def key(self) -> str:
        """The same for rows whose states are the same."""
        h = hashlib.blake2b(digest_size=16)
        h.update(np.array([self.length, *self.counts], "<i8").tobytes())
        h.update(np.ascontiguousarray(self.ids, "<i4").tobytes())
        return h.hexdigest()

    def message(self) -> Message:
        """The request for its states."""
        values = {"key": self.key, "length": self.length, "counts": list(self.counts)}
        return Message("ask", values, [raw(torch.from_numpy(np.ascontiguousarray(self.ids, np.int32)))])

    @classmethod
    def of(cls, message: Message, most: int, vocabulary: int) -> "Row":
        """What was asked for.

        Args:
            most: positions of a row.
            vocabulary: V_T: ids are below it.

        Raises:
            BadMessage: it is no row, or larger than that.
        """
        length, counts = _number(message.values, "length", most), message.values.get("counts")
        if not isinstance(counts, list) or not all(type(n) is int and n > 0 for n in counts) or not counts:
            raise BadMessage("counts that are no numbers above 0")
        if sum(counts) > length:
            raise BadMessage(f"{sum(counts)} tokens in a row of {length}")
        if len(message.frames) != 1:
            raise BadMessage(f"{len(message.frames)} frames where one has the tokens")
        ids = tensor_of(message.frames[0], "int32", [sum(counts)]).numpy()
        if ids.min() < 0 or ids.max() >= vocabulary:
            raise BadMessage(f"tokens from {ids.min()} to {ids.max()} of a vocabulary of {vocabulary}")
        return cls(length, tuple(counts), ids)


def _number(values: Mapping[str, Any], name: str, most: int) -> int:
    found = values.get(name)
    if type(found) is not int or not 0 < found <= most:
        raise BadMessage(f"{name}={found!r}, which is no number from 1 to {most}")
    return found


def rows_of(side: TeacherSide) -> list[Row]:
    """The rows of a micro-batch.  The tokens go to the CPU."""
    tokens = side.tokens.to("cpu", torch.int32).numpy()
    places: list[list[tuple[int, int]]] = [[] for _ in tokens]
    for sample, first, count, _ in side.pieces.tolist():
        places[sample].append((first, count))
    return [
        Row(
            tokens.shape[1],
            tuple(count for _, count in pieces),
            np.concatenate([line[first : first + count] for first, count in pieces]),
        )
        for line, pieces in zip(tokens, places, strict=True)
    ]


def inputs_of(rows: Sequence[Row], padding: int = 0) -> Inputs:
    """A micro-batch of rows of one length."""
    length = rows[0].length
    tokens = np.full((len(rows), length), padding, np.int64)
    positions, documents = np.zeros((len(rows), length), np.int64), np.full((len(rows), length), -1, np.int32)
    for number, row in enumerate(rows):
        tokens[number, : row.tokens] = row.ids
        at = 0
        for document, count in enumerate(row.counts):
            positions[number, at : at + count] = np.arange(count)
            documents[number, at : at + count] = document
            at += count
    return Inputs(
        torch.from_numpy(tokens), torch.from_numpy(positions), torch.from_numpy(documents), torch.arange(len(rows))
    )

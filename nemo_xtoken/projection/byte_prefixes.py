"""Which student token begins a teacher's token, byte by byte: the longest one, at any place inside of it.

The map of Byte-Prefix Marginalization (arXiv 2607.22334).  Bytes alone decide, not how a tokenizer writes a text.
"""

from bisect import bisect_left
from collections import OrderedDict
from functools import cached_property
from typing import NamedTuple

import numpy as np

from nemo_xtoken.vocab.vocabulary import Vocabulary

__all__ = ["BytePrefixes", "Continued"]

#: Beginnings of tokens whose tables are kept, those that were asked for last.
KEPT = 1024


class Continued(NamedTuple):
    """Teacher tokens that go on after some bytes, and the student tokens that begin what is left of them.

    Attributes:
        tokens: int64 ``[e]``, of the teacher.
        cell: int64 ``[e]``, for each the number of its student token, ``len(cells)`` where there is none.
        cells: int64 ``[c]``, student tokens, increasing.
    """

    tokens: np.ndarray
    cell: np.ndarray
    cells: np.ndarray


class BytePrefixes:
    """Of a pair of vocabularies.

    Args:
        student, teacher: the vocabularies.
    """

    def __init__(self, student: Vocabulary, teacher: Vocabulary) -> None:
        self.student, self.teacher = student, teacher
        self._longest_token = int(student.byte_length.max(initial=0))
        self._tables: OrderedDict[bytes, Continued] = OrderedDict()

    def longest(self, data: bytes) -> int:
        """The longest student token that these bytes begin with; -1 where there is none."""
        for end in range(min(len(data), self._longest_token), 0, -1):
            found = self.student.id_of_bytes.get(data[:end])
            if found is not None:
                return found
        return -1

    @cached_property
    def of_teacher(self) -> np.ndarray:
        """int64 ``[V_T]``, for each teacher token the longest student token that begins it, or the one of its role."""
        roles = {t: self.student.id_of_role.get(role, -1) for t, role in self.teacher.roles.items()}
        return np.array(
            [self.longest(data) if data else roles.get(t, -1) for t, data in enumerate(self.teacher.token_bytes)]
        )

    @cached_property
    def names(self) -> np.ndarray:
        """int64 ``[V_S]``, for each student token a teacher token that it is the longest to begin, its equal if there
        is one, else the smallest id; -1 for those that are the longest for none."""
        of_teacher = self.of_teacher
        names = np.full(self.student.size, -1, np.int64)
        tokens = np.flatnonzero(of_teacher >= 0)[::-1]
        names[of_teacher[tokens]] = tokens
        equal = [(s, self.teacher.id_of_bytes.get(data, -1)) for data, s in self.student.id_of_bytes.items()]
        pairs = np.array([(s, t) for s, t in equal if t >= 0], np.int64).reshape(-1, 2)
        names[pairs[:, 0]] = pairs[:, 1]
        return names

    @cached_property
    def _sorted(self) -> tuple[list[bytes], np.ndarray]:
        found = sorted((data, t) for t, data in enumerate(self.teacher.token_bytes) if data)
        return [data for data, _ in found], np.array([t for _, t in found], np.int64)

    def beginning(self, prefix: bytes) -> np.ndarray:
        """int64, the teacher tokens that begin with these bytes, one at least."""
        data, tokens = self._sorted
        bare = prefix.rstrip(b"\xff")
        end = bisect_left(data, bare[:-1] + bytes([bare[-1] + 1])) if bare else len(data)
        return tokens[bisect_left(data, prefix) : end]

    def after(self, prefix: bytes) -> Continued:
        """The teacher tokens that begin with these bytes, one at least, and go on."""
        found = self._tables.get(prefix)
        if found is None:
            lengths = self.teacher.byte_length
            tokens = self.beginning(prefix)
            tokens = tokens[lengths[tokens] > len(prefix)]
            begun = np.array(
                [self.longest((self.teacher.token_bytes[t] or b"")[len(prefix) :]) for t in tokens.tolist()], np.int64
            )
            cells, cell = np.unique(begun[begun >= 0], return_inverse=True)
            numbers = np.full(len(begun), len(cells))
            numbers[begun >= 0] = cell
            found = self._tables[prefix] = Continued(tokens, numbers, cells)
            if len(self._tables) > KEPT:
                self._tables.popitem(last=False)
        else:
            self._tables.move_to_end(prefix)
        return found

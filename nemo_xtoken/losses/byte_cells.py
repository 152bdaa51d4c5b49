"""Where a student's tokens begin and end inside of a teacher's, by their bytes: what `bpm` compares in such chunks.

It follows from labels alone, and is listed on the CPU.
"""

from collections.abc import Callable, Mapping
from typing import ClassVar

import numpy as np

from nemo_xtoken.losses.slots import SlotList
from nemo_xtoken.projection.byte_prefixes import BytePrefixes

__all__ = ["CellLists"]


class CellLists:
    """What is compared in a tile's chunks beside the first position's classes, line by line, with its slots.

    ``over``: the chunks whose first student token goes over an end of the teacher's: that token, the teacher's first,
    the student's slot, and where the slots of what is moved begin, and how many they are; for kernels the student's
    slot of the token that has the teacher token's mass, and the teacher's slots of all that is put on that and on the
    first token, -1 for none.  ``inside``: the comparisons inside of a teacher's token: where the student's slots of the
    cells begin, those of the teacher (the residual class before the cells), how many cells; the cell of a token that
    goes over an end, that which has the teacher token's mass (-1: the residual class), and the slots of what is moved.

    Args:
        prefixes: of the pair of tokenizers.
        put_on: the teacher tokens whose longest beginning is a student token; None: there are no kernels.
    """

    NAMES: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "over": ("chunk", "token", "head", "label", "chain", "length", "head_slot", "head_mass", "token_mass"),
        "inside": ("chunk", "student", "teacher", "cells", "into", "out", "chain", "length"),
    }

    def __init__(self, prefixes: BytePrefixes, put_on: Callable[[int], np.ndarray] | None) -> None:
        self.prefixes, self.lists = prefixes, (SlotList(), SlotList())
        self._put_on = put_on
        self._lines: dict[str, list[tuple[int, ...]]] = {name: [] for name in self.NAMES}

    def table(self, name: str) -> dict[str, np.ndarray]:
        """int64, by the names of its columns."""
        names = self.NAMES[name]
        columns = np.array(self._lines[name], np.int64).reshape(-1, len(names)).T
        return dict(zip(names, columns, strict=True))

    def chunk(self, chunk: int, student: tuple[int, np.ndarray], teacher: tuple[int, np.ndarray]) -> None:
        """Adds what there is of a chunk.

        Args:
            student, teacher: its first row and its labels.
        """
        sides = self.prefixes.student, self.prefixes.teacher
        tokens = [labels.tolist() for _, labels in (student, teacher)]
        data = [[v.token_bytes[i] or b"" for i in ids] for v, ids in zip(sides, tokens, strict=True)]
        text = b"".join(data[0])
        if not text or text != b"".join(data[1]):  # roles, or a tokenizer that writes other bytes
            return
        ends = [np.cumsum([len(x) for x in parts]) for parts in data]
        begin = 0
        for i, end in enumerate(ends[0].tolist()):
            j = int(np.searchsorted(ends[1], begin, side="right"))  # the teacher's token at `begin`
            last = int(np.searchsorted(ends[1], end, side="left"))  # and at the end
            at = int(ends[1][j]) - len(data[1][j])
            head, token = tokens[1][j], tokens[0][i]
            crossing, prefix = last > j, text[at:begin]

            def chain(j: int = j, last: int = last, end: int = end) -> tuple[int, int]:
                first = self.lists[1].count
                for k in range(j, last):
                    self.lists[1].one(teacher[0] + k, np.array([tokens[1][k]]))
                rest = text[int(ends[1][last]) - len(data[1][last]) : end]
                self.lists[1].one(teacher[0] + last, self.prefixes.beginning(rest))
                return first, last + 1 - j

            if prefix:
                line = self._inside((student[0] + i, token), (teacher[0] + j, data[1][j]), prefix, crossing)
                self._lines["inside"].append((chunk, *line, *(chain() if crossing else (0, 0))))
            elif crossing and i == 0:
                classes = self._classes(student[0], teacher[0], token, head)
                label = self.lists[0].one(student[0], np.array([token]))
                self._lines["over"].append((chunk, token, head, label, *chain(), *classes))
            begin = end

    def _classes(self, row: int, teacher_row: int, token: int, head: int) -> tuple[int, int, int]:
        """Slots of the student token that has the teacher token's mass, of all that is put on it, and on ``token``."""
        if self._put_on is None:
            return -1, -1, -1
        begun = int(self.prefixes.of_teacher[head])
        found = -1, -1
        if begun >= 0:
            own = self.lists[0].one(row, np.array([begun]))
            found = own, self.lists[1].one(teacher_row, self._put_on(begun))
        named = self.prefixes.names[token] >= 0
        return *found, self.lists[1].one(teacher_row, self._put_on(token)) if named else -1

    def _inside(
        self, student: tuple[int, int], teacher: tuple[int, bytes], prefix: bytes, crossing: bool
    ) -> tuple[int, ...]:
        """A comparison at a student's row where ``prefix`` is said of the teacher's token at its row."""
        found = self.prefixes.after(prefix)
        count = len(found.cells)
        # the residual class, which is the last cell there, comes first
        first = self.lists[1].several(teacher[0], found.tokens, (found.cell + 1) % (count + 1), count + 1)
        own = self.lists[0].several(student[0], found.cells, np.arange(count), count)
        if not crossing:
            return own, first, count, -1, -1
        places = {int(cell): i for i, cell in enumerate(found.cells)}
        out = places.get(self.prefixes.longest(teacher[1][len(prefix) :]), -1)
        if student[1] in places:
            return own, first, count, places[student[1]], out
        self.lists[0].one(student[0], np.array([student[1]]))  # a cell of its own, to which the teacher puts nothing
        self.lists[1].one(teacher[0], np.zeros(0, np.int64))
        return own, first, count + 1, count, out

"""C, the common set: the pairs of a student and a teacher token that a partial KL compares one by one.

GOLD takes the strict pairs, tokens of the same canonical form.  H-KL widens them by W, so that a student token without
an equal brings the teacher token that W gives most of its weight.
"""

from dataclasses import dataclass

import numpy as np

from nemo_xtoken.errors import InputError
from nemo_xtoken.kernels.reference import TORCH
from nemo_xtoken.kernels.tile_kernels import TileKernels
from nemo_xtoken.parallel.exchange import VocabularyExchange
from nemo_xtoken.parallel.vocabulary_shard import VocabularyShard
from nemo_xtoken.projection.matrix import ProjectionMatrix
from nemo_xtoken.vocab.vocabulary import Vocabulary

__all__ = ["CommonSet"]


@dataclass(frozen=True)
class CommonSet:
    """Pairs of token ids; a token of either side is in at most one.

    Attributes:
        student: int64 ``[n]``, student ids, increasing.
        teacher: int64 ``[n]``, the teacher id paired with each.
        student_size, teacher_size: ``V_S``, ``V_T``.
    """

    student: np.ndarray
    teacher: np.ndarray
    student_size: int
    teacher_size: int

    def __post_init__(self) -> None:
        for side, ids, size in (
            ("student", self.student, self.student_size),
            ("teacher", self.teacher, self.teacher_size),
        ):
            if ids.ndim != 1 or len(self.student) != len(self.teacher) or len(np.unique(ids)) != len(ids):
                raise InputError(
                    f"a common set of {len(self.student)} student and {len(self.teacher)} teacher ids, "
                    f"{len(np.unique(ids))} different ones on the {side}'s side",
                    "pairs in which no token of either side is named twice",
                    "make it with CommonSet.strict or CommonSet.widened",
                )
            if len(ids) and not (ids.min() >= 0 and ids.max() < size):
                raise InputError(
                    f"a common set with {side} ids from {ids.min()} to {ids.max()}",
                    f"ids from 0 to {size - 1}",
                    "make it from the vocabularies of these two models",
                )

    def __len__(self) -> int:
        return len(self.student)

    @classmethod
    def strict(cls, student: Vocabulary, teacher: Vocabulary) -> "CommonSet":
        """The tokens with equal bytes, and those with equal roles.

        Of several tokens of one form the one that the tokenizer produces stands for all (``Vocabulary.id_of_bytes``);
        the others are not in C.
        """
        pairs = [(s, teacher.id_of_bytes[b]) for b, s in student.id_of_bytes.items() if b in teacher.id_of_bytes]
        pairs += [(s, teacher.id_of_role[r]) for r, s in student.id_of_role.items() if r in teacher.id_of_role]
        table = np.array(sorted(pairs), dtype=np.int64).reshape(-1, 2)
        return cls(table[:, 0], table[:, 1], student.size, teacher.size)

    def widened(self, matrix: ProjectionMatrix) -> "CommonSet":
        """These pairs, and ``(s, argmax_t W[s, t])`` for every other student token s with a row, as H-KL has it.

        A pair that is already here keeps both its tokens.  Of several student tokens that bring the same teacher token
        the one with the larger weight wins, then the one with the smaller id; the others stay outside.  Of several
        entries of equal weight in a row the smallest teacher id counts.
        """
        if (matrix.student_size, matrix.teacher_size) != (self.student_size, self.teacher_size):
            raise InputError(
                f"W of {matrix.student_size} x {matrix.teacher_size} tokens",
                f"{self.student_size} x {self.teacher_size}, as in the common set",
                "build W for this pair of tokenizers",
            )
        free = np.ones(self.student_size, dtype=bool)
        free[self.student] = False
        rows = np.flatnonzero(free & ~matrix.empty_rows)
        weights = matrix.weights[rows].max(axis=1, initial=0)
        heaviest = matrix.weights[rows] == weights[:, None]
        targets = np.where(heaviest, matrix.ids[rows], matrix.teacher_size).min(axis=1, initial=matrix.teacher_size)
        open_ = ~np.isin(targets, self.teacher)
        rows, targets, weights = rows[open_], targets[open_], weights[open_]
        order = np.lexsort((rows, -weights))
        rows, targets = rows[order], targets[order]
        _, winners = np.unique(targets, return_index=True)
        student = np.concatenate([self.student, rows[winners]])
        teacher = np.concatenate([self.teacher, targets[winners]])
        order = np.argsort(student)
        return CommonSet(
            student[order].astype(np.int64), teacher[order].astype(np.int64), self.student_size, self.teacher_size
        )

    @property
    def student_outside(self) -> np.ndarray:
        """bool ``[V_S]``: student ids in no pair."""
        return _outside(self.student, self.student_size)

    @property
    def teacher_outside(self) -> np.ndarray:
        """bool ``[V_T]``: teacher ids in no pair."""
        return _outside(self.teacher, self.teacher_size)

    def exchange(self, student: VocabularyShard, kernels: TileKernels = TORCH) -> VocabularyExchange:
        """Brings a pair's probabilities together: the teacher's tokens are co-sharded by the pairs.

        It is the exchange of the 0/1 matrix of the pairs: its ``W^T p`` is the student's probability of the pair at the
        teacher's column, and the student's mass outside C as REST; ``reached`` are the teacher's tokens in C, ``empty``
        the student's outside.
        """
        ids = np.full((self.student_size, 1), -1, dtype=np.int32)
        ids[self.student, 0] = self.teacher
        weights = (ids >= 0).astype(np.float32)
        matrix = ProjectionMatrix(ids, weights, self.teacher_size, "", "")
        return VocabularyExchange.co_sharded(matrix, student, kernels)


def _outside(ids: np.ndarray, size: int) -> np.ndarray:
    mask = np.ones(size, dtype=bool)
    mask[ids] = False
    return mask

"""Rows of W one by one: their kind, their distance from other rows, and how they read."""

from typing import Any

import numpy as np

from nemo_xtoken.errors import InputError
from nemo_xtoken.projection.matrix import ProjectionMatrix
from nemo_xtoken.vocab.vocabulary import Vocabulary

__all__ = ["KINDS", "check_sizes", "describe_row", "entries", "readable", "row_distances", "row_kinds"]

#: A row is exact when its only entry is a teacher token of the same bytes or role; multi when it has other entries.
KINDS = ("exact", "multi", "empty")


def check_sizes(matrix: ProjectionMatrix, student: Vocabulary, teacher: Vocabulary) -> None:
    """
    Raises:
        InputError: W does not have one row per student token and the teacher's width.
    """
    found, wanted = (matrix.student_size, matrix.teacher_size), (student.size, teacher.size)
    if found != wanted:
        raise InputError(
            f"W of {found[0]} x {found[1]} tokens",
            f"{wanted[0]} x {wanted[1]}, for {student.name} and {teacher.name}",
            "name the tokenizers that it was built for",
        )


def row_kinds(matrix: ProjectionMatrix, student: Vocabulary, teacher: Vocabulary) -> np.ndarray:
    """int8 ``[V_S]``: index into `KINDS`, -1 for student ids without a token."""
    check_sizes(matrix, student, teacher)
    used = matrix.ids >= 0
    count = used.sum(axis=1)
    kinds = np.where(count == 0, 2, 1).astype(np.int8)
    single = np.flatnonzero(count == 1)
    targets = matrix.ids[single].max(axis=1) if len(single) else single
    for s, t in zip(single.tolist(), targets.tolist(), strict=True):
        data = student.token_bytes[s]
        if data is not None:
            same = data == teacher.token_bytes[t]
        else:
            same = s in student.roles and student.roles[s] == teacher.roles.get(t)
        if same:
            kinds[s] = 0
    for s, data in enumerate(student.token_bytes):
        if data is None and s not in student.roles:
            kinds[s] = -1
    return kinds


def entries(matrix: ProjectionMatrix, rest: bool = False) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """W as a list: rows int64 ``[E]``, teacher ids int64 ``[E]``, weights float64 ``[E]``.

    Args:
        rest: gives an empty row one entry of weight 1 on the column ``V_T``, which stands for no token, as P-KL does.
    """
    rows, slots = np.nonzero(matrix.ids >= 0)
    ids, weights = matrix.ids[rows, slots].astype(np.int64), matrix.weights[rows, slots].astype(np.float64)
    if rest:
        empty = np.flatnonzero(matrix.empty_rows)
        rows = np.concatenate([rows, empty])
        ids = np.concatenate([ids, np.full(len(empty), matrix.teacher_size, dtype=np.int64)])
        weights = np.concatenate([weights, np.ones(len(empty))])
    return rows, ids, weights


def row_distances(a: ProjectionMatrix, b: ProjectionMatrix) -> np.ndarray:
    """float64 ``[V_S]``: total variation, 0 to 1, between the rows of two matrices of one shape ``[V_S, V_T]``.

    It is the share of a row's weight that lies elsewhere in the other.  An empty row is all weight on no token: it is
    at distance 1 from every row that is not empty.  The matrices may store different numbers of entries a row.
    """
    width = a.teacher_size + 1
    parts = [
        (rows * width + ids, weights * sign)
        for sign, (rows, ids, weights) in ((1, entries(a, True)), (-1, entries(b, True)))
    ]
    keys, place = np.unique(np.concatenate([key for key, _ in parts]), return_inverse=True)
    differences = np.bincount(place, np.concatenate([w for _, w in parts]), minlength=len(keys))
    return np.bincount(keys // width, np.abs(differences), minlength=a.student_size) / 2


def describe_row(
    matrix: ProjectionMatrix, s: int, student: Vocabulary | None, teacher: Vocabulary | None
) -> dict[str, Any]:
    """Row s as plain values, heaviest entry first: id, token, entries with id, token and weight.

    Where a vocabulary is not given, its tokens are left out.
    """
    out: dict[str, Any] = {"id": s}
    if student is not None:
        out["token"] = student.display(s)
    pairs = sorted((-float(w), int(t)) for t, w in zip(matrix.ids[s], matrix.weights[s], strict=True) if t >= 0)
    out["entries"] = [
        {"id": t} | ({} if teacher is None else {"token": teacher.display(t)}) | {"weight": round(-w, 6)}
        for w, t in pairs
    ]
    return out


def readable(row: dict[str, Any], most: int = 6) -> str:
    """The entries of a `describe_row` in one line: ``'2' 0.9009  '0' 0.0901  '1' 0.0090``; ``(empty)`` without any."""
    shown = [f"{_name(e)} {e['weight']:.4f}" for e in row["entries"][:most]]
    more = len(row["entries"]) - most
    return "  ".join(shown + ([f"and {more} more"] if more > 0 else [])) or "(empty)"


def _name(entry: dict[str, Any]) -> str:
    return f"'{entry['token']}'" if "token" in entry else f"id {entry['id']}"

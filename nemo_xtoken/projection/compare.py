"""The difference between two projection matrices, row by row."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from nemo_xtoken.errors import InputError
from nemo_xtoken.projection.matrix import ProjectionMatrix
from nemo_xtoken.projection.rows import describe_row, row_distances
from nemo_xtoken.vocab.vocabulary import Vocabulary

__all__ = ["Difference", "compare", "describe_difference"]


@dataclass(frozen=True)
class Difference:
    """What differs between two W of one pair of tokenizers.

    Attributes:
        added, removed: int64, student ids whose row is empty in the first (the second) matrix alone.
        changed: int64, student ids with rows in both that differ, farthest first.
        distances: float64 ``[V_S]``, total variation between the rows, 0 to 1.
        rules: the rules of both files.
    """

    added: np.ndarray
    removed: np.ndarray
    changed: np.ndarray
    distances: np.ndarray
    rules: tuple[dict[str, Any], dict[str, Any]]

    @property
    def same(self) -> bool:
        """Whether no row differs."""
        return not (len(self.added) or len(self.removed) or len(self.changed))


def compare(a: ProjectionMatrix, b: ProjectionMatrix, tolerance: float = 1e-6) -> Difference:
    """Compares two matrices of one pair; they may store different numbers of entries a row, in any order.

    Args:
        tolerance: rows at no larger distance count as equal.  A file in bfloat16 needs about 0.005.

    Raises:
        InputError: they are of different pairs of tokenizers.
    """
    for side in ("student", "teacher"):
        digests = [getattr(m, f"{side}_digest") for m in (a, b)]
        if digests[0] != digests[1] or len({getattr(m, f"{side}_size") for m in (a, b)}) > 1:
            raise InputError(
                f"two W for different {side} tokenizers (digests {digests[0][:12]}.. and {digests[1][:12]}..)",
                "two W of one pair",
                "build one of them again with `xtoken build`",
            )
    distances = row_distances(a, b)
    empty_a, empty_b = a.empty_rows, b.empty_rows
    changed = np.flatnonzero(~empty_a & ~empty_b & (distances > tolerance))
    return Difference(
        added=np.flatnonzero(empty_a & ~empty_b),
        removed=np.flatnonzero(~empty_a & empty_b),
        changed=changed[np.argsort(-distances[changed], kind="stable")],
        distances=distances,
        rules=(dict(a.rule), dict(b.rule)),
    )


def describe_difference(
    difference: Difference,
    a: ProjectionMatrix,
    b: ProjectionMatrix,
    student: Vocabulary | None,
    teacher: Vocabulary | None,
    limit: int,
) -> dict[str, Any]:
    """Plain values: the counts, and the first ``limit`` rows of each kind as they were and as they are."""
    out: dict[str, Any] = {"same": difference.same, "rules": list(difference.rules)}
    for name in ("added", "removed", "changed"):
        ids = getattr(difference, name)
        out[name] = {
            "count": len(ids),
            "rows": [
                describe_row(a, int(s), student, teacher)
                | {"distance": round(float(difference.distances[s]), 6)}
                | {"after": describe_row(b, int(s), student, teacher)["entries"]}
                for s in ids[:limit]
            ],
        }
    return out

"""The coverage audit: which classes of student tokens the teacher has as they are.

C is the set of student tokens with an exact row in W (the same bytes, or the same role).  A loss that compares C token
by token pushes everything outside C down (X-Token, Proposition 1), one that goes through W has no such split.  So what
decides between losses is whether a class that matters lies outside C; each loss says which finding it suits.  The rule
by which tokens are counted is in `token_classes`.
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from nemo_xtoken.projection.build import build_projection
from nemo_xtoken.projection.matrix import ProjectionMatrix
from nemo_xtoken.projection.rows import KINDS, describe_row, readable, row_kinds
from nemo_xtoken.projection.token_classes import CLASSES, classify, is_text
from nemo_xtoken.vocab.vocabulary import Vocabulary

__all__ = ["FINDINGS", "INSIDE", "ClassCoverage", "CoverageAudit", "audit_coverage"]

#: What an audit can find: both sides have one tokenizer; a critical class lies outside C; all of them lie inside.
FINDINGS = ("one tokenizer", "outside", "inside")
#: Share of a critical class that must lie in C for H-KL.  Pairs of real tokenizers have all of a class or miss a fifth
#: of it and more.
INSIDE = 0.95


@dataclass(frozen=True)
class ClassCoverage:
    """How the student's tokens of one class are covered.

    Attributes:
        name, label, critical: of the `TokenClass`.
        exact, multi, empty: number of tokens with rows of that kind.
        fragments, exact_fragments: how many of them (of the exact ones) are not whole characters.
        examples: per kind, the lowest ids as ``'201' -> '2' 0.9009  '0' 0.0901``.
    """

    name: str
    label: str
    critical: bool
    exact: int
    multi: int
    empty: int
    fragments: int
    exact_fragments: int
    examples: dict[str, list[str]]

    @property
    def total(self) -> int:
        """Number of tokens."""
        return self.exact + self.multi + self.empty

    @property
    def outside(self) -> bool:
        """Whether it is a critical class of which too many whole tokens lie outside C."""
        whole = self.total - self.fragments
        return self.critical and self.exact - self.exact_fragments < INSIDE * whole


@dataclass(frozen=True)
class CoverageAudit:
    """What `audit_coverage` found.

    Attributes:
        student, teacher: the names of the tokenizers.
        student_size, teacher_size: ``V_S``, ``V_T``.
        classes: one for each of `CLASSES`, in that order.
        finding: one of `FINDINGS`.
        reason: the finding as a sentence, without its full stop.
        rule: the parameters that built W.
    """

    student: str
    teacher: str
    student_size: int
    teacher_size: int
    classes: tuple[ClassCoverage, ...]
    finding: str
    reason: str
    rule: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Plain values, every class with its total."""
        out = asdict(self)
        out["classes"] = [asdict(c) | {"total": c.total, "outside": c.outside} for c in self.classes]
        return out


def audit_coverage(
    student: Vocabulary, teacher: Vocabulary, matrix: ProjectionMatrix | None = None, examples: int = 3
) -> CoverageAudit:
    """Counts the student's tokens by class and kind of row.

    Args:
        student, teacher: the two vocabularies.
        matrix: their W; built by the paper's rule when not given.
        examples: most examples for a class and kind.
    """
    matrix = build_projection(student, teacher) if matrix is None else matrix
    kinds, numbers = row_kinds(matrix, student, teacher), classify(student)
    classes = []
    for number, token_class in enumerate(CLASSES):
        members = np.flatnonzero(numbers == number)
        counts: dict[str, int] = {}
        shown: dict[str, list[str]] = {}
        for k, kind in enumerate(KINDS):
            tokens = members[kinds[members] == k]
            counts[kind] = len(tokens)
            if len(tokens):
                shown[kind] = [_example(matrix, int(s), student, teacher, kind) for s in tokens[:examples]]
        broken = [int(s) for s in members if not is_text(student.token_bytes[s] or b"")]
        exact = int((kinds[broken] == 0).sum())
        classes.append(
            ClassCoverage(
                name=token_class.name,
                label=token_class.label,
                critical=token_class.critical,
                exact=counts["exact"],
                multi=counts["multi"],
                empty=counts["empty"],
                fragments=len(broken),
                exact_fragments=exact,
                examples=shown,
            )
        )
    finding, reason = _finding(classes, same=student.digest == teacher.digest or student.shares_ids(teacher))
    return CoverageAudit(
        student=student.name,
        teacher=teacher.name,
        student_size=student.size,
        teacher_size=teacher.size,
        classes=tuple(classes),
        finding=finding,
        reason=reason,
        rule=dict(matrix.rule),
    )


def _example(matrix: ProjectionMatrix, s: int, student: Vocabulary, teacher: Vocabulary, kind: str) -> str:
    row = describe_row(matrix, s, student, teacher)
    return f"'{row['token']}'" + (f" -> {readable(row)}" if kind == "multi" else "")


def _finding(classes: list[ClassCoverage], same: bool) -> tuple[str, str]:
    """The finding, by its name and as a sentence."""
    if same:
        return "one tokenizer", "The two tokenizers have the same tokens"
    outside = [c for c in classes if c.outside]
    if outside:
        counts = " and ".join(f"{c.exact:,} of the student's {c.total:,} {c.label}" for c in outside)
        return "outside", f"The teacher has {counts} as single tokens"
    critical = [c for c in classes if c.critical and c.total]
    counts = f"{sum(c.exact for c in critical):,} of {sum(c.total for c in critical):,}"
    return "inside", f"The teacher has the student's numerals and punctuation as single tokens ({counts})"

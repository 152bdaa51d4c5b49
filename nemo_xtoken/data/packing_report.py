"""What an epoch of packed samples holds."""

from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["REASONS", "REFUSED", "SAYS_NOTHING", "TOO_LONG", "TOO_SHORT", "PackingReport", "TeacherCounts"]

REFUSED = "that a chat template cannot render"
TOO_SHORT = "with fewer than 2 tokens on some side"
SAYS_NOTHING = "in which the student's template leaves out what the assistant says"
TOO_LONG = "of which no part with a label fits into a sample"
#: Why a document is in no sample.
REASONS = (REFUSED, TOO_SHORT, SAYS_NOTHING, TOO_LONG)


@dataclass(frozen=True)
class TeacherCounts:
    """What one epoch holds for one teacher.

    Attributes:
        tokens: labels.
        scored_chunks: chunks with a predictor on both sides.
        skipped_chunks: in parts that are longer than a whole sample on some side.
        skipped_tokens: labels in no sample: those chunks and what lies around them, and documents that are left out.
        fill: share of the input positions that are used.
    """

    tokens: int
    scored_chunks: int
    skipped_chunks: int
    skipped_tokens: int
    fill: float


@dataclass(frozen=True)
class PackingReport:
    """What one epoch holds.

    Attributes:
        samples, pieces, documents: how many; documents counts those that are in some sample.
        student_tokens, skipped_student_tokens, student_fill: as a teacher's.
        teachers: counts of each.
        left_out: reason (one of `REASONS`) -> documents that are in no sample.
        cut_documents: conversations, and documents without chunks, of which a sample holds the beginning alone.
        without_chunks: documents in samples that have no chunk for some teacher, and are learned by cross-entropy.
    """

    samples: int
    pieces: int
    documents: int
    student_tokens: int
    skipped_student_tokens: int
    student_fill: float
    teachers: tuple[TeacherCounts, ...]
    left_out: Mapping[str, int] = field(default_factory=dict)
    cut_documents: int = 0
    without_chunks: int = 0

    def __str__(self) -> str:
        def each(name: str, form: str = ",") -> str:
            return ", ".join(format(getattr(t, name), form) for t in self.teachers)

        lines = [
            f"{self.samples:,} samples of {self.documents:,} documents, {self.student_tokens:,} student and "
            f"{each('tokens')} teacher tokens, {each('scored_chunks')} chunks, positions used: "
            f"{self.student_fill:.1%} and {each('fill', '.1%')}"
        ]
        if self.without_chunks:
            lines.append(f"learned by cross-entropy alone: {self.without_chunks:,} documents without chunks")
        lines += [f"left out: {count:,} documents {reason}" for reason, count in self.left_out.items()]
        if self.cut_documents:
            lines.append(f"cut off: {self.cut_documents:,} documents, whose beginning fills a sample")
        if any(t.skipped_chunks for t in self.teachers):
            lines.append(f"left out: {each('skipped_chunks')} chunks that are in no sample, or longer than one")
        if self.skipped_student_tokens or any(t.skipped_tokens for t in self.teachers):
            lines.append(f"in no sample: {self.skipped_student_tokens:,} and {each('skipped_tokens')} tokens")
        return "\n  ".join(lines)

"""What an epoch of packed samples holds."""

from dataclasses import dataclass

__all__ = ["PackingReport", "TeacherCounts"]


@dataclass(frozen=True)
class TeacherCounts:
    """What one epoch holds for one teacher.

    Attributes:
        tokens: labels.
        scored_chunks: chunks with a predictor on both sides.
        skipped_chunks: in parts that are longer than a whole sample on some side.
        skipped_tokens: labels in no sample: those chunks and what lies around them, and documents without chunks.
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
        skipped_documents: without any chunk, or with no token that has a predecessor, on some side.
        teachers: counts of each.
    """

    samples: int
    pieces: int
    documents: int
    student_tokens: int
    skipped_student_tokens: int
    student_fill: float
    skipped_documents: int
    teachers: tuple[TeacherCounts, ...]

    def __str__(self) -> str:
        def each(name: str, form: str = ",") -> str:
            return ", ".join(format(getattr(t, name), form) for t in self.teachers)

        line = (
            f"{self.samples:,} samples of {self.documents:,} documents, {self.student_tokens:,} student and "
            f"{each('tokens')} teacher tokens, {each('scored_chunks')} chunks, positions used: "
            f"{self.student_fill:.1%} and {each('fill', '.1%')}"
        )
        if self.skipped_documents or any(t.skipped_chunks for t in self.teachers):
            line += (
                f"; skipped: {each('skipped_chunks')} chunks longer than a sample, {self.skipped_documents:,} "
                f"documents without chunks, {self.skipped_student_tokens:,} and {each('skipped_tokens')} tokens"
            )
        return line

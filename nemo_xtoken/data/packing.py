"""Which parts of which documents make up each sample: both sides are filled in lockstep, cut only between chunks.

A sample has T_S input positions on the student's side and T_T on the teacher's.  A piece of a document with tokens
``[start, end)`` has the inputs ``[start, end - 1)`` and the labels ``[start + 1, end)``: its last token is a label
only, so every position has a label.  A document that does not fit is continued in the next sample.  The continuation
starts with the token in front of its first chunk, which the piece before it had as its last label: the tokens of a
document are labels once each, and every chunk but one at the very start of a document has its predictor.
"""

from array import array
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from nemo_xtoken.data.prepared import PreparedDocuments
from nemo_xtoken.errors import InputError

__all__ = ["PackingReport", "Pieces", "pack_documents", "permutation"]

#: Columns of `Pieces.table`: document, token range on both sides, range of chunks.
DOCUMENT, STUDENT_START, STUDENT_END, TEACHER_START, TEACHER_END, CHUNK_START, CHUNK_END = range(7)


@dataclass(frozen=True)
class PackingReport:
    """What one epoch holds.

    Attributes:
        samples, pieces, documents: how many; documents counts those that are in some sample.
        student_tokens, teacher_tokens: labels.
        scored_chunks: chunks with a predictor on both sides.
        skipped_chunks: longer than a whole sample on some side.
        skipped_student_tokens, skipped_teacher_tokens: labels in no sample: those chunks and what lies around them, and
            documents without chunks.
        skipped_documents: without any chunk, or with no token that has a predecessor.
        student_fill, teacher_fill: share of the input positions that are used.
    """

    samples: int
    pieces: int
    documents: int
    student_tokens: int
    teacher_tokens: int
    scored_chunks: int
    skipped_chunks: int
    skipped_student_tokens: int
    skipped_teacher_tokens: int
    skipped_documents: int
    student_fill: float
    teacher_fill: float

    def __str__(self) -> str:
        line = (
            f"{self.samples:,} samples of {self.documents:,} documents, {self.student_tokens:,} student and "
            f"{self.teacher_tokens:,} teacher tokens, {self.scored_chunks:,} chunks, positions used: "
            f"{self.student_fill:.1%} and {self.teacher_fill:.1%}"
        )
        if self.skipped_chunks or self.skipped_documents:
            line += (
                f"; skipped: {self.skipped_chunks:,} chunks longer than a sample, {self.skipped_documents:,} documents "
                f"without chunks, {self.skipped_student_tokens:,} and {self.skipped_teacher_tokens:,} tokens"
            )
        return line


@dataclass(frozen=True)
class Pieces:
    """The pieces of all samples.

    Attributes:
        table: int64 ``[P, 7]``, the columns above.
        first: int64 ``[samples + 1]``; sample i has the pieces ``first[i]`` to ``first[i + 1]``.
        report: counts.
    """

    table: np.ndarray
    first: np.ndarray
    report: PackingReport


def permutation(n: int, *key: int) -> np.ndarray:
    """int64 ``[n]``: a shuffle that depends on ``key`` alone.

    Sorts raw bits of a counter-based generator, which numpy keeps the same in all versions (unlike ``permutation``).
    """
    bits = np.random.Philox(np.random.SeedSequence([k % 2**64 for k in key])).random_raw(n)
    return np.argsort(bits, kind="stable")


def pack_documents(
    prepared: PreparedDocuments, student_length: int, teacher_length: int, seed: int, pack: bool = True
) -> Pieces:
    """Packs the documents, in an order shuffled by the seed.

    Args:
        student_length, teacher_length: T_S and T_T.
        pack: several documents a sample; False: one piece each.

    Raises:
        InputError: a length below 2, or no sample has a chunk to score.
    """
    for side, length in (("student", student_length), ("teacher", teacher_length)):
        if length < 2:
            raise InputError(f"{side}_length={length}", "a sequence of at least 2 tokens", f"set {side}_length")
    packer = _Packer(student_length, teacher_length, pack)
    for document in permutation(len(prepared), seed, 0).tolist():
        packer.add(
            document,
            int(prepared.student_lengths[document]),
            int(prepared.teacher_lengths[document]),
            int(prepared.chunk_counts[document]),
            lambda document=document: prepared.document(document)[2],  # type: ignore[misc]
        )
    pieces = packer.finish(int(prepared.scored.sum()))
    if pieces.report.scored_chunks == 0:
        raise InputError(
            f"none of the {len(prepared)} documents has a chunk that can be scored in samples of {student_length} "
            f"student and {teacher_length} teacher tokens ({pieces.report})",
            "text that both tokenizers can encode, and sequences longer than its chunks",
            "check that the data is text, or raise student_length and teacher_length",
        )
    return pieces


class _Packer:
    def __init__(self, student_length: int, teacher_length: int, pack: bool) -> None:
        self.lengths = student_length, teacher_length
        self.pack = pack
        self.left_student, self.left_teacher = self.lengths
        self.table, self.first = array("q"), array("q", [0])  # flat: there may be tens of millions of pieces
        self.skipped_chunks = self.skipped_scored = self.skipped_documents = 0
        self.skipped_student = self.skipped_teacher = 0

    def add(
        self, document: int, n_student: int, n_teacher: int, count: int, chunks_of: Callable[[], np.ndarray]
    ) -> None:
        """One document; its chunks are read only where it has to be cut."""
        if count == 0 or n_student < 2 or n_teacher < 2:
            self.skipped_documents += 1
            self.skipped_student += max(n_student - 1, 0)
            self.skipped_teacher += max(n_teacher - 1, 0)
        elif n_student - 1 <= self.left_student and n_teacher - 1 <= self.left_teacher:
            self._put(document, 0, n_student, 0, n_teacher, 0, count)
        else:
            self._cut(document, n_student, n_teacher, chunks_of())

    def _cut(self, document: int, n_student: int, n_teacher: int, chunks: np.ndarray) -> None:
        # Unit j, the chunk j and the tokens in no chunk behind it (and, for the first, in front of it), is the labels
        # bounds[j] to bounds[j + 1]; token 0 is never a label.
        student, teacher = _bounds(chunks[:, 0], n_student), _bounds(chunks[:, 2], n_teacher)
        c, count = 0, len(chunks)
        while c < count:
            end = min(
                int(np.searchsorted(student, student[c] + self.left_student, "right")) - 1,
                int(np.searchsorted(teacher, teacher[c] + self.left_teacher, "right")) - 1,
            )
            if end > c:
                s, e, t, f = int(student[c]), int(student[end]), int(teacher[c]), int(teacher[end])
                if e > s:
                    self._put(document, s - 1, e, t - 1, f, c, end)
                else:  # a first chunk of one student token, which is no label: there is nothing to learn
                    self.skipped_teacher += f - t
                c = end
            elif student[c + 1] - student[c] > self.lengths[0] or teacher[c + 1] - teacher[c] > self.lengths[1]:
                labels = int(student[c + 1] - student[c]), int(teacher[c + 1] - teacher[c])
                self._put_long(document, c, chunks[c].tolist(), labels)
                c += 1
            else:
                self._close()

    def _put_long(self, document: int, c: int, chunk: list[int], labels: tuple[int, int]) -> None:
        """A unit that fits into no sample: without the tokens around its chunk, or not at all."""
        s, e, t, f = chunk
        scored = s > 0 and t > 0
        if scored and e - s <= self.lengths[0] and f - t <= self.lengths[1]:
            if e - s > self.left_student or f - t > self.left_teacher:
                self._close()
            self._put(document, s - 1, e, t - 1, f, c, c + 1)
            self.skipped_student += labels[0] - (e - s)
            self.skipped_teacher += labels[1] - (f - t)
        else:
            self.skipped_chunks += 1
            self.skipped_scored += scored
            self.skipped_student += labels[0]
            self.skipped_teacher += labels[1]

    def _put(self, document: int, s: int, e: int, t: int, f: int, c: int, d: int) -> None:
        self.table.extend((document, s, e, t, f, c, d))
        self.left_student -= e - s - 1
        self.left_teacher -= f - t - 1
        if not self.pack or self.left_student == 0 or self.left_teacher == 0:
            self._close()

    def _close(self) -> None:
        pieces = len(self.table) // 7
        if pieces > self.first[-1]:
            self.first.append(pieces)
            self.left_student, self.left_teacher = self.lengths

    def finish(self, scored: int) -> Pieces:
        self._close()
        table = np.array(self.table, np.int64).reshape(-1, 7)
        samples = len(self.first) - 1
        student = int((table[:, STUDENT_END] - table[:, STUDENT_START] - 1).sum())
        teacher = int((table[:, TEACHER_END] - table[:, TEACHER_START] - 1).sum())
        report = PackingReport(
            samples=samples,
            pieces=len(table),
            documents=len(np.unique(table[:, DOCUMENT])),
            student_tokens=student,
            teacher_tokens=teacher,
            scored_chunks=scored - self.skipped_scored,
            skipped_chunks=self.skipped_chunks,
            skipped_student_tokens=self.skipped_student,
            skipped_teacher_tokens=self.skipped_teacher,
            skipped_documents=self.skipped_documents,
            student_fill=student / max(samples * self.lengths[0], 1),
            teacher_fill=teacher / max(samples * self.lengths[1], 1),
        )
        return Pieces(table, np.array(self.first, np.int64), report)


def _bounds(starts: np.ndarray, length: int) -> np.ndarray:
    """int64 ``[K + 1]``: the first label of each unit, and the end."""
    bounds = np.append(starts, length).astype(np.int64)
    bounds[0] = 1
    return bounds

"""Which parts of which documents make up each sample: all sides are filled in lockstep, cut only between chunks.

A sample has T_S input positions on the student's side and T_T on each teacher's, which may differ between teachers.
A piece of a document with tokens ``[start, end)`` has the inputs ``[start, end - 1)`` and the labels
``[start + 1, end)``: its last token is a label only, so every position has a label.  A document that does not fit is
continued in the next sample.  The continuation starts with the token in front of its first chunk, which the piece
before it had as its last label: the tokens of a document are labels once each, and every chunk but one at the very
start of a document has its predictor.

A conversation makes no sense without its beginning: it is not continued, but starts in a sample that holds all of it,
and what exceeds a whole sample is left out (``whole``).

A document without chunks for some teacher has labels all the same, and is learned from them alone.  What cannot be
learned from at all is left out and counted, before the documents are shuffled: it changes nothing for the others.

With several teachers a document is cut where a chunk of every one of them begins at the same student token, and a
piece ends where the most demanding side is full.
"""

import functools
from array import array
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nemo_xtoken.data.packing_report import (
    REASONS,
    REFUSED,
    SAYS_NOTHING,
    TOO_LONG,
    TOO_SHORT,
    PackingReport,
    TeacherCounts,
)
from nemo_xtoken.data.prepared import PreparedDocuments
from nemo_xtoken.data.turns import is_refused
from nemo_xtoken.errors import InputError

__all__ = ["Pieces", "pack_documents", "permutation", "teacher_columns"]

#: The first columns of `Pieces.table`: document, token range of the student.
DOCUMENT, STUDENT_START, STUDENT_END = range(3)


def teacher_columns(number: int) -> slice:
    """The columns of a teacher in `Pieces.table`: token range, range of chunks."""
    return slice(3 + 4 * number, 7 + 4 * number)


@dataclass(frozen=True)
class Pieces:
    """The pieces of all samples.

    Attributes:
        table: int64 ``[P, 3 + 4 * teachers]``, the columns above.
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
    prepared: Sequence[PreparedDocuments],
    student_length: int,
    teacher_lengths: Sequence[int],
    seed: int,
    pack: bool = True,
    whole: bool = False,
) -> Pieces:
    """Packs the documents, in an order shuffled by the seed.

    Args:
        prepared: the same documents, aligned with each teacher.
        student_length: T_S.
        teacher_lengths: T_T of each teacher.
        pack: several documents a sample; False: one piece each.
        whole: a document starts in a sample that holds all of it; one that is longer than a sample is truncated.

    Raises:
        InputError: a length below 2, or no sample has a chunk to score for some teacher.
    """
    for side, length in (("student", student_length), *((f"teacher{m}", n) for m, n in enumerate(teacher_lengths))):
        if length < 2:
            raise InputError(f"{side}_length={length}", "a sequence of at least 2 tokens", "set a longer one")
    if any(not np.array_equal(p.digests, prepared[0].digests) for p in prepared[1:]):
        raise ValueError("the teachers' documents are not the same texts")
    documents = _Documents.of(prepared)
    reasons = _reasons(documents, whole)
    while True:
        packer = _Packer((student_length, *teacher_lengths), pack, whole)
        for document in np.flatnonzero(reasons >= 0):
            packer.leave_out(document, documents, REASONS[reasons[document]])
        kept = np.flatnonzero(reasons < 0)
        for document in kept[permutation(len(kept), seed, 0)].tolist():
            packer.add(document, documents)
        lost = np.array(packer.lost, np.int64)
        reasons[lost] = REASONS.index(TOO_LONG)
        if not len(lost):
            break
    at = reasons < 0
    pieces = packer.finish([int(p.scored[at].sum()) for p in prepared], int((documents.counts[at] == 0).any(1).sum()))
    tokens = documents.tokens
    for length, teacher in zip(teacher_lengths, pieces.report.teachers, strict=True):
        if teacher.scored_chunks == 0:
            raise InputError(
                f"none of the {len(tokens)} documents has a chunk that can be scored in samples of {student_length} "
                f"student and {length} teacher tokens ({pieces.report})",
                "text that both tokenizers can encode, and sequences longer than its chunks",
                "check that the data is text, or raise the lengths of the sequences",
            )
    return pieces


@dataclass(frozen=True)
class _Documents:
    """The same documents, aligned with each teacher.

    Attributes:
        tokens: int64 ``[N, 1 + teachers]``, of the student and of each teacher.
        counts: int64 ``[N, teachers]``, chunks.
    """

    prepared: Sequence[PreparedDocuments]
    tokens: np.ndarray
    counts: np.ndarray

    @classmethod
    def of(cls, prepared: Sequence[PreparedDocuments]) -> "_Documents":
        tokens = np.stack([prepared[0].student_lengths, *(p.teacher_lengths for p in prepared)], axis=1)
        return cls(prepared, tokens, np.stack([p.chunk_counts for p in prepared], axis=1))

    def chunks(self, document: int) -> list[np.ndarray]:
        """Of each teacher, int32 ``[K, 4]``."""
        return [p.document(document)[2] for p in self.prepared]

    def is_learned(self, document: int, end: int | None = None) -> bool:
        """Whether one of the student's tokens before ``end`` is a label."""
        return bool((self.prepared[0].document(document)[0][1:end] >= 0).any())


def _reasons(documents: _Documents, whole: bool) -> np.ndarray:
    """int64 ``[N]``: for a document that nothing can be learned from the number of the reason, -1 for the others."""
    reasons = np.full(len(documents.tokens), -1)
    reasons[(documents.tokens < 2).any(1)] = REASONS.index(TOO_SHORT)
    refused = is_refused(documents.tokens[:, 0], documents.tokens[:, 1:].max(1))
    reasons[refused] = REASONS.index(REFUSED)
    if whole:  # a chunk is labels; without one they have to be looked for
        for document in np.flatnonzero((reasons < 0) & (documents.counts == 0).any(1)).tolist():
            if not documents.is_learned(document):
                reasons[document] = REASONS.index(SAYS_NOTHING)
    return reasons


@dataclass(frozen=True)
class _Units:
    """A document cut at every place where a cut is allowed.

    A unit is the chunks between two cuts and the tokens in no chunk after them (for the first also before them).
    Token 0 is never a label.

    Attributes:
        labels: per side, the student first: int64 ``[U + 1]``, the first label of each unit, and the end.
        chunks: per teacher, int64 ``[U + 1]``, the first chunk of each unit, and the end.
    """

    labels: list[np.ndarray]
    chunks: list[np.ndarray]

    @classmethod
    def of(cls, chunks: Sequence[np.ndarray], tokens: Sequence[int]) -> "_Units":
        cuts = functools.reduce(np.intersect1d, (c[1:, 0] for c in chunks))
        labels, firsts = [_bounds(1, cuts, tokens[0])], []
        for c, n in zip(chunks, tokens[1:], strict=True):
            at = np.searchsorted(c[:, 0], cuts)
            labels.append(_bounds(1, c[at, 2], n))
            firsts.append(_bounds(0, at, len(c)))
        return cls(labels, firsts)

    def __len__(self) -> int:
        return len(self.labels[0]) - 1

    def sizes(self, start: int, end: int) -> list[int]:
        """Labels of the units ``start`` to ``end`` on each side."""
        return [int(x[end] - x[start]) for x in self.labels]

    def end(self, start: int, left: Sequence[int]) -> int:
        """The end of the units from ``start`` on that fit where so many positions of each side are left."""
        return min(int(np.searchsorted(x, x[start] + n, "right")) - 1 for x, n in zip(self.labels, left, strict=True))

    def ranges(self, start: int, end: int) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
        """Of the units ``start`` to ``end``: tokens on each side, with the one in front, and chunks of each teacher."""
        return (
            [(int(x[start]) - 1, int(x[end])) for x in self.labels],
            [(int(x[start]), int(x[end])) for x in self.chunks],
        )


class _Packer:
    """Fills samples with documents one by one.  All lists with an entry a side have the student's first."""

    def __init__(self, lengths: tuple[int, ...], pack: bool, whole: bool) -> None:
        self.lengths, self.pack, self.whole = lengths, pack, whole
        self.left = list(lengths)
        self.columns = 3 + 4 * (len(lengths) - 1)
        self.table, self.first = array("q"), array("q", [0])  # flat: there may be tens of millions of pieces
        self.left_out: dict[str, int] = {}
        self.lost: list[int] = []
        self.cut_documents = 0
        self.skipped_tokens = [0] * len(lengths)
        self.skipped_chunks = [0] * (len(lengths) - 1)
        self.skipped_scored = [0] * (len(lengths) - 1)

    def add(self, document: int, documents: _Documents) -> None:
        """One document; its chunks are read only where it has to be cut."""
        tokens = documents.tokens[document].tolist()
        fits = all(n - 1 <= length for n, length in zip(tokens, self.lengths, strict=True))
        if self.whole and fits and not self._holds(tokens):
            self._close()
        pieces = len(self.table)
        if self._holds(tokens):
            self._put(document, [(0, n) for n in tokens], [(0, n) for n in documents.counts[document].tolist()])
        elif self.whole or not (fits or documents.counts[document].all()):
            self._put_beginning(document, tokens, documents)
        else:
            self._cut(document, _Units.of(chunks := documents.chunks(document), tokens), chunks)
        if len(self.table) == pieces:
            self.lost.append(document)

    def leave_out(self, document: int, documents: _Documents, reason: str) -> None:
        """A document that nothing can be learned from."""
        self.left_out[reason] = self.left_out.get(reason, 0) + 1
        self._skip([max(n - 1, 0) for n in documents.tokens[document].tolist()])
        counts = documents.counts[document].tolist()
        self.skipped_chunks = [a + b for a, b in zip(self.skipped_chunks, counts, strict=True)]

    def _holds(self, tokens: list[int]) -> bool:
        return all(n - 1 <= left for n, left in zip(tokens, self.left, strict=True))

    def _put_beginning(self, document: int, tokens: list[int], documents: _Documents) -> None:
        """As much of each side as an empty sample holds, with the chunks in it; nothing where that has no label."""
        kept = [min(n, length + 1) for n, length in zip(tokens, self.lengths, strict=True)]
        if not documents.is_learned(document, kept[0]):
            return
        self._close()
        ranges = []
        for number, (c, end) in enumerate(zip(documents.chunks(document), kept[1:], strict=True)):
            inside = int(((c[:, 1] <= kept[0]) & (c[:, 3] <= end)).sum())
            ranges.append((0, inside))
            self._drop_chunks(number, c[inside:])
        self.cut_documents += 1
        self._skip([n - end for n, end in zip(tokens, kept, strict=True)])
        self._put(document, [(0, end) for end in kept], ranges)

    def _cut(self, document: int, units: _Units, chunks: list[np.ndarray]) -> None:
        unit = 0
        while unit < len(units):
            end = units.end(unit, self.left)
            if end > unit:
                sizes = units.sizes(unit, end)
                if sizes[0]:
                    self._put(document, *units.ranges(unit, end))
                else:  # a first chunk of one student token, which is not a label: there is nothing to learn
                    self._skip(sizes)
                unit = end
            elif any(n > length for n, length in zip(units.sizes(unit, unit + 1), self.lengths, strict=True)):
                self._put_long(document, units, unit, chunks)
                unit += 1
            else:
                self._close()

    def _drop(self, units: _Units, start: int, end: int, chunks: list[np.ndarray]) -> None:
        """Units that are in no sample."""
        self._skip(units.sizes(start, end))
        for number, (c, x) in enumerate(zip(chunks, units.chunks, strict=True)):
            self._drop_chunks(number, c[x[start] : x[end]])

    def _drop_chunks(self, teacher: int, gone: np.ndarray) -> None:
        self.skipped_chunks[teacher] += len(gone)
        self.skipped_scored[teacher] += int(((gone[:, 0] > 0) & (gone[:, 2] > 0)).sum())

    def _put_long(self, document: int, units: _Units, unit: int, chunks: list[np.ndarray]) -> None:
        """A unit that fits into no sample: without the tokens around its chunks, or not at all."""
        ranges = [(int(x[unit]), int(x[unit + 1])) for x in units.chunks]
        inside = [c[first:last] for c, (first, last) in zip(chunks, ranges, strict=True)]
        student = min(int(c[0, 0]) for c in inside), max(int(c[-1, 1]) for c in inside)
        sides = [student, *((int(c[0, 2]), int(c[-1, 3])) for c in inside)]
        sizes, cut = units.sizes(unit, unit + 1), [end - start for start, end in sides]
        if all(start > 0 for start, _ in sides) and all(n <= m for n, m in zip(cut, self.lengths, strict=True)):
            if any(n > left for n, left in zip(cut, self.left, strict=True)):
                self._close()
            self._put(document, [(start - 1, end) for start, end in sides], ranges)
            self._skip([n - m for n, m in zip(sizes, cut, strict=True)])
        else:
            self._drop(units, unit, unit + 1, chunks)

    def _skip(self, tokens: list[int]) -> None:
        self.skipped_tokens = [a + b for a, b in zip(self.skipped_tokens, tokens, strict=True)]

    def _put(self, document: int, tokens: list[tuple[int, int]], chunks: list[tuple[int, int]]) -> None:
        """A piece: token and chunk ranges; the first token of a side is not a label."""
        self.table.extend((document, *tokens[0]))
        for of_tokens, of_chunks in zip(tokens[1:], chunks, strict=True):
            self.table.extend((*of_tokens, *of_chunks))
        self.left = [left - (end - start - 1) for left, (start, end) in zip(self.left, tokens, strict=True)]
        if not self.pack or min(self.left) == 0:
            self._close()

    def _close(self) -> None:
        pieces = len(self.table) // self.columns
        if pieces > self.first[-1]:
            self.first.append(pieces)
            self.left = list(self.lengths)

    def finish(self, scored: Sequence[int], without_chunks: int) -> Pieces:
        """The table.

        Args:
            scored: chunks with predictors in the documents added, for each teacher.
            without_chunks: documents added that have none for some teacher.
        """
        self._close()
        table = np.array(self.table, np.int64).reshape(-1, self.columns)
        samples = len(self.first) - 1

        def labels(start: int) -> int:
            return int((table[:, start + 1] - table[:, start] - 1).sum())

        teachers = []
        for number, length in enumerate(self.lengths[1:]):
            tokens = labels(teacher_columns(number).start)
            teachers.append(
                TeacherCounts(
                    tokens=tokens,
                    scored_chunks=scored[number] - self.skipped_scored[number],
                    skipped_chunks=self.skipped_chunks[number],
                    skipped_tokens=self.skipped_tokens[1 + number],
                    fill=tokens / max(samples * length, 1),
                )
            )
        student = labels(STUDENT_START)
        report = PackingReport(
            samples=samples,
            pieces=len(table),
            documents=len(np.unique(table[:, DOCUMENT])),
            student_tokens=student,
            skipped_student_tokens=self.skipped_tokens[0],
            student_fill=student / max(samples * self.lengths[0], 1),
            left_out=self.left_out,
            cut_documents=self.cut_documents,
            without_chunks=without_chunks,
            teachers=tuple(teachers),
        )
        return Pieces(table, np.array(self.first, np.int64), report)


def _bounds(first: int, inner: np.ndarray, end: int) -> np.ndarray:
    return np.concatenate([[first], inner, [end]]).astype(np.int64)

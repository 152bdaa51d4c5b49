"""Vocabularies small enough to read in a failing test, and ways to count and to break the alignment."""

import time
from collections.abc import Sequence

import numpy as np

from nemo_xtoken.alignment.aligner import Aligner
from nemo_xtoken.alignment.cache import AlignedDocument, AlignmentCache, text_digest
from nemo_xtoken.data import PreparedDocuments
from nemo_xtoken.data.workers import AlignFunction, Text
from nemo_xtoken.vocab import Vocabulary
from nemo_xtoken.vocab.seams import Piece

WORDS = ["the", "th", " cat", " c", "at", " sat", "12", "345", "é", "中文", "\n\n", "ab", "abc", "bcd", "cde"]


class GreedyEncoder:
    """Longest token first, over the bytes; a picklable stand-in for a tokenizer."""

    def __init__(self, ids: dict[bytes, int]) -> None:
        self.ids, self.longest = ids, max(map(len, ids))

    def encode_batch(self, texts):
        out = []
        for text in texts:
            data, ids, at = text.encode(), [], 0
            while at < len(data):
                size = next(n for n in range(self.longest, 0, -1) if data[at : at + n] in self.ids)
                ids.append(self.ids[data[at : at + size]])
                at += size
            out.append(np.array(ids, np.int32))
        return out


def vocabulary(name: str, words: list[str], adds_bos: bool = False, eos: bool = True, pad: bool = True) -> Vocabulary:
    """All single bytes, some words, and the roles; ids start with the roles."""
    roles = {0: "pad", 1: "bos", 2: "eos"}
    tokens = [None, None, None, *(bytes([b]) for b in range(256)), *(w.encode() for w in words)]
    ids = {t: i for i, t in enumerate(tokens) if t is not None}
    return Vocabulary(
        name=name,
        behaviour=repr(words),
        token_bytes=tokens,
        roles=roles,
        encoder=GreedyEncoder(ids),
        bos_id=1,
        eos_id=2 if eos else None,
        pad_id=0 if pad else None,
        adds_bos=adds_bos,
    )


STUDENT = vocabulary("student", WORDS[::2], adds_bos=True)
TEACHER = vocabulary("teacher", [*WORDS[1::2], "the", " cat sat"])
TEACHER_BOS = vocabulary("teacher_bos", WORDS[1::3], adds_bos=True)


class CountingAligner(Aligner):
    """Counts the documents aligned in this process; optionally gives up at one of them."""

    def __init__(self, student: Vocabulary, teacher: Vocabulary, fail_at: int | None = None) -> None:
        super().__init__(student, teacher)
        self.calls, self.fail_at = 0, fail_at

    def align_many(self, student_ids, student_lengths, teacher_ids, teacher_lengths):
        if self.fail_at is not None and self.calls + len(student_lengths) > self.fail_at:
            raise KeyboardInterrupt
        self.calls += len(student_lengths)
        return super().align_many(student_ids, student_lengths, teacher_ids, teacher_lengths)


def align_texts(align: AlignFunction, texts: Sequence[str]) -> list[AlignedDocument]:
    """The documents of a batch one by one."""
    batch = align([Text(text_digest(text), Piece(text)) for text in texts])
    columns = (
        np.split(values, np.cumsum(lengths)[:-1])
        for values, lengths in (
            (batch.student_ids, batch.student_lengths),
            (batch.teacher_ids, batch.teacher_lengths),
            (batch.chunks, batch.chunk_counts),
        )
    )
    return [AlignedDocument(text_digest(text), *of) for text, *of in zip(texts, *columns, strict=True)]


def aligned(digest: bytes, student: list[int], teacher: list[int], chunks: Sequence[Sequence[int]]) -> AlignedDocument:
    return AlignedDocument(
        digest, np.array(student, np.int32), np.array(teacher, np.int32), np.array(chunks, np.int32).reshape(-1, 4)
    )


def prepared_from(folder, documents: list[AlignedDocument]) -> PreparedDocuments:
    """A view of documents that no tokenizer made."""
    cache = AlignmentCache(folder, "pair")
    with cache.lock():
        cache.write(documents)
    return PreparedDocuments(cache, np.array([d.digest for d in documents], "S16"))


def random_documents(random: np.random.Generator, count: int, longest: int = 12) -> list[AlignedDocument]:
    """Chunks of random sizes with random gaps around them; every token of the corpus has an id of its own."""
    out, next_id = [], 10
    for number in range(count):
        at, rows = [0, 0], []
        for _ in range(int(random.integers(0, longest))):
            row = []
            for side in (0, 1):
                start = at[side] + int(random.integers(0, 3) * (random.random() < 0.2))
                at[side] = start + int(random.choice([1, 1, 1, 2, 3, 7]))
                row += [start, at[side]]
            rows.append(row)
        sizes = [a + int(random.integers(0, 2)) for a in at]
        ids = []
        for size in sizes:
            ids.append(list(range(next_id, next_id + size)))
            next_id += size
        out.append(aligned(text_digest(f"document {number}"), ids[0], ids[1], rows))
    return out


class SlowAligner(Aligner):
    """Gives a test the time to kill its process."""

    def align_many(self, student_ids, student_lengths, teacher_ids, teacher_lengths):
        time.sleep(0.02 * len(student_lengths))
        return super().align_many(student_ids, student_lengths, teacher_ids, teacher_lengths)


def random_sides(random: np.random.Generator, count: int, teachers: int) -> list[list[AlignedDocument]]:
    """The same documents for several teachers: each cuts the student's tokens into chunks of its own, with gaps."""
    sides: list[list[AlignedDocument]] = [[] for _ in range(teachers)]
    next_id = [10] * (1 + teachers)
    for number in range(count):
        size = int(random.integers(0, 30))
        student = list(range(next_id[0], next_id[0] + size))
        next_id[0] += size
        for teacher, side in enumerate(sides):
            at, rows = [0, 0], []
            while True:
                start = [a + int(random.integers(0, 3) * (random.random() < 0.2)) for a in at]
                at = [a + int(random.choice([1, 1, 1, 1, 2, 3, 7])) for a in start]
                if at[0] > size:
                    break
                rows.append((start[0], at[0], start[1], at[1]))
            total = (rows[-1][3] if rows else 0) + int(random.integers(0, 2))
            ids = list(range(next_id[1 + teacher], next_id[1 + teacher] + total))
            next_id[1 + teacher] += total
            side.append(aligned(text_digest(f"document {number}"), student, ids, rows))
    return sides

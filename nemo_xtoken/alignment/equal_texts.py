"""Many documents aligned at once, where both sides decode to the same bytes: nearly always, and O(T) without a loop.

The tokens of all documents are put one after the other, with a separator of one byte behind each on both sides.  A
separator begins and ends at a common cut, so that no chunk reaches across, and tokens without bytes of two documents do
not stand at one cut.  What comes out for a document is what `Aligner.align` gives for it alone.
"""

from dataclasses import dataclass

import numpy as np

from nemo_xtoken.alignment.aligned import offsets_of
from nemo_xtoken.alignment.spans import Side, cuts_of_runs, match_places

__all__ = ["SideTable", "chunks_of_equal"]


@dataclass(frozen=True)
class SideTable:
    """What is needed of one vocabulary, by id.

    Attributes:
        data: bytes of each token, b"" for none.
        lengths: how many, int32 ``[V]``.
        codes: int32 ``[V]``; two tokens, of one side or of both, have equal codes where their bytes are equal.
        roles: int64 ``[V]``, a code of the role, -1 for none.
    """

    data: list[bytes]
    lengths: np.ndarray
    codes: np.ndarray
    roles: np.ndarray


def chunks_of_equal(
    student: SideTable,
    teacher: SideTable,
    student_ids: np.ndarray,
    student_lengths: np.ndarray,
    teacher_ids: np.ndarray,
    teacher_lengths: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Chunks of the documents whose two sides decode to the same bytes.

    Args:
        student_ids, teacher_ids: of all documents.
        student_lengths, teacher_lengths: int64 ``[n]``, how many of each.

    Returns:
        int32 ``[K, 4]``, of all documents, where token numbers count from the beginning of each; int64 ``[n]``, how
        many of each; and bool ``[n]``, which documents' sides differ: those have none here.
    """
    starts = offsets_of(student_lengths), offsets_of(teacher_lengths)
    n = len(student_lengths)
    sizes = [
        np.diff(np.concatenate([[0], np.cumsum(table.lengths[ids], dtype=np.int64)])[start])
        for table, ids, start in ((student, student_ids, starts[0]), (teacher, teacher_ids, starts[1]))
    ]
    differ = sizes[0] != sizes[1]
    while True:
        kept = np.flatnonzero(~differ)
        if len(kept) == n:
            flat = [(student_ids, student_lengths), (teacher_ids, teacher_lengths)]
        else:
            flat = [
                (ids[np.repeat(~differ, lengths)], lengths[kept])
                for ids, lengths in ((student_ids, student_lengths), (teacher_ids, teacher_lengths))
            ]
        chunks, document, wrong = _aligned(student, teacher, *flat[0], *flat[1])
        if not len(wrong):
            break
        differ[kept[wrong]] = True  # the others are not changed by leaving these out
    counts = np.zeros(n, np.int64)
    counts[kept] = np.bincount(document, minlength=len(kept))
    return chunks, counts, differ


def _aligned(
    student: SideTable,
    teacher: SideTable,
    student_ids: np.ndarray,
    student_lengths: np.ndarray,
    teacher_ids: np.ndarray,
    teacher_lengths: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Chunks and their document, or the documents whose bytes differ after all (each with equal sizes)."""
    sides, ids, starts = [], [], []
    for table, own, lengths in ((student, student_ids, student_lengths), (teacher, teacher_ids, teacher_lengths)):
        ends = np.cumsum(lengths) + np.arange(len(lengths))  # where the separators come to lie
        separated = np.full(len(own) + len(lengths), -1, np.int64)
        mask = np.ones(len(separated), bool)
        mask[ends] = False
        separated[mask] = own
        sides.append(Side.of(np.where(mask, table.lengths[separated], 1)))
        ids.append(separated)
        starts.append(np.concatenate([[0], ends + 1]))
    cuts = cuts_of_runs(sides[0], sides[1], np.array([[0, 0, sides[0].ends[-1]]])[: int(sides[0].ends[-1] > 0)])
    columns, counts, texts = [], [], []
    whole = np.ones(max(len(cuts) - 1, 0), bool)
    for side, own, at in zip(sides, ids, (cuts[:, 0], cuts[:, 1]), strict=True):
        low, high = at[:-1], at[1:]
        first, last = side.text[low], side.text[high - 1] + 1
        if len(side.silent):
            whole &= last - first == high - low
        columns += [first, last]
        counts.append(high - low)
        texts.append(own[side.text])
    wrong = _differing(student, teacher, texts, counts, cuts)
    if len(wrong):
        found = np.searchsorted(starts[0], columns[0][wrong], "right") - 1
        return np.empty((0, 4), np.int32), np.empty(0, np.int64), np.unique(found)
    chunks = np.stack(columns, axis=1)
    separator = ids[0][chunks[:, 0]] < 0
    chunks = chunks[whole & ~separator]
    codes = [table.roles[own[side.silent]] for table, own, side in zip((student, teacher), ids, sides, strict=True)]
    places = match_places(sides[0], sides[1], cuts, codes[0], codes[1])
    if len(places):
        chunks = np.concatenate([chunks, places])
        chunks = chunks[np.argsort(chunks[:, 0], kind="stable")]
    document = np.searchsorted(starts[0], chunks[:, 0], "right") - 1
    begin = np.stack([starts[0][document], starts[0][document], starts[1][document], starts[1][document]], axis=1)
    return (chunks - begin).astype(np.int32), document, np.empty(0, np.int64)


def _differing(
    student: SideTable,
    teacher: SideTable,
    texts: list[np.ndarray],
    counts: list[np.ndarray],
    cuts: np.ndarray,
) -> np.ndarray:
    """The segments between cuts whose bytes differ.

    Args:
        texts: ids of the tokens with bytes on each side, -1 for a separator.
        counts: tokens of each segment.
    """
    single = (counts[0] == 1) & (counts[1] == 1)
    firsts = [ids[at[:-1]] for ids, at in zip(texts, (cuts[:, 0], cuts[:, 1]), strict=True)]
    a, b = (
        np.where(ids < 0, -1, table.codes[ids])[single] for table, ids in zip((student, teacher), firsts, strict=True)
    )
    wrong = np.zeros(len(single), bool)
    wrong[single] = a != b
    # The segments of several tokens have equal sizes, so their bytes can be joined and compared at once.
    several = np.flatnonzero(~single)
    if len(several):
        joined = []
        for table, ids, count in zip((student, teacher), texts, counts, strict=True):
            inside = np.repeat(~single, count)
            joined.append(b"".join(map(table.data.__getitem__, ids[: len(inside)][inside].tolist())))
        if joined[0] != joined[1]:
            lengths = student.lengths[np.maximum(texts[0], 0)]
            ends = np.cumsum(lengths)
            at = cuts[several]
            sizes = ends[at_end(cuts, several) - 1] - ends[at[:, 0]] + lengths[at[:, 0]]
            unequal = np.frombuffer(joined[0], np.uint8) != np.frombuffer(joined[1], np.uint8)
            wrong[several] = np.add.reduceat(unequal, offsets_of(sizes)[:-1]) > 0
    return np.flatnonzero(wrong)


def at_end(cuts: np.ndarray, segments: np.ndarray) -> np.ndarray:
    """Student tokens with text before the end of segments."""
    return cuts[segments + 1, 0]

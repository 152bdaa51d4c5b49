import collections
import itertools
import tempfile
from pathlib import Path

import numpy as np
import pytest
from fakes import aligned, prepared_from, random_documents
from hypothesis import given, settings
from hypothesis import strategies as st

from nemo_xtoken.alignment.cache import text_digest
from nemo_xtoken.data.packing import pack_documents, permutation
from nemo_xtoken.data.packing_report import REFUSED, SAYS_NOTHING, TOO_LONG, TOO_SHORT
from nemo_xtoken.errors import InputError


def pieces_of(documents, student_length, teacher_length, **options):
    with tempfile.TemporaryDirectory() as folder:
        found = prepared_from(Path(folder), documents)
        return pack_documents([found], student_length, [teacher_length], **({"seed": 0} | options))


def plain(count: int, **options):
    """One document of 1-to-1 chunks, BOS on both sides."""
    chunks = [(i, i + 1, i, i + 1) for i in range(count)]
    return aligned(text_digest(str(count)), list(range(count)), list(range(count)), chunks)


def ranges(pieces) -> list[list[tuple[int, ...]]]:
    """Per sample: (student_start, student_end, chunk_start, chunk_end)."""
    rows = pieces.table[:, [1, 2, 5, 6]].tolist()
    return [[tuple(r) for r in rows[a:b]] for a, b in itertools.pairwise(pieces.first.tolist())]


def test_a_document_is_continued_with_one_token_of_context():
    # 10 tokens have 9 labels; samples of 4 positions: labels 1-4, 5-8, 9
    assert ranges(pieces_of([plain(10)], 4, 4)) == [[(0, 5, 0, 5)], [(4, 9, 5, 9)], [(8, 10, 9, 10)]]
    # n tokens fit into n - 1 positions
    assert ranges(pieces_of([plain(5)], 4, 4)) == [[(0, 5, 0, 5)]]


def test_the_shorter_side_decides_and_chunks_are_not_cut():
    chunks = [(0, 1, 0, 1), (1, 4, 1, 2), (4, 5, 2, 6), (5, 6, 6, 7)]
    document = aligned(b"x" * 16, list(range(6)), list(range(7)), chunks)
    pieces = pieces_of([document], 4, 4)
    assert pieces.table[:, 1:].tolist() == [[0, 4, 0, 2, 0, 2], [3, 5, 1, 6, 2, 3], [4, 6, 5, 7, 3, 4]]


def test_a_chunk_longer_than_a_sample_is_skipped_with_its_tokens():
    chunks = [(0, 1, 0, 1), (1, 2, 1, 2), (2, 8, 2, 3), (8, 9, 3, 4), (9, 10, 4, 5)]
    document = aligned(b"x" * 16, list(range(10)), list(range(5)), chunks)
    pieces = pieces_of([document], 4, 4)
    assert pieces.table[:, 1:].tolist() == [[0, 2, 0, 2, 0, 2], [7, 10, 2, 5, 3, 5]]
    report = pieces.report
    [teacher] = report.teachers
    assert (teacher.skipped_chunks, report.skipped_student_tokens, teacher.skipped_tokens) == (1, 6, 1)
    assert teacher.scored_chunks == 3
    assert report.samples == 1
    assert "1 chunks that are in no sample, or longer than one" in str(report)


def test_tokens_in_no_chunk_never_cost_a_chunk_that_fits():
    # 20 student tokens in no chunk behind the chunk 1
    chunks = [(0, 1, 0, 1), (1, 3, 1, 2), (23, 24, 2, 3)]
    document = aligned(b"x" * 16, list(range(24)), list(range(3)), chunks)
    pieces = pieces_of([document], 4, 4)
    assert pieces.table[:, 1:].tolist() == [[0, 3, 0, 2, 1, 2], [22, 24, 1, 3, 2, 3]]
    assert pieces.report.skipped_student_tokens == 20
    assert pieces.report.teachers[0].skipped_chunks == 0


def test_one_piece_a_sample_without_packing():
    documents = [plain(3), plain(4), plain(12)]
    pieces = pieces_of(documents, 6, 6, pack=False)
    assert np.diff(pieces.first).tolist() == [1, 1, 1, 1]
    assert pieces_of(documents, 6, 6).report.samples == 3


def test_documents_without_chunks_are_learned_by_cross_entropy_and_counted():
    silent = aligned(b"y" * 16, [1, 2, 3], [4, 5], [])
    pieces = pieces_of([plain(5), silent], 8, 8)
    report = pieces.report
    assert (report.documents, report.without_chunks, report.student_tokens) == (2, 1, 6)
    assert (report.left_out, report.skipped_student_tokens) == ({}, 0)
    assert "1 documents without chunks" in str(report)
    assert sorted(pieces.table[:, 1:].tolist()) == [[0, 3, 0, 2, 0, 0], [0, 5, 0, 5, 0, 5]]
    with pytest.raises(InputError, match="none of the 1 documents has a chunk that can be scored"):
        pieces_of([silent], 8, 8)


@pytest.mark.parametrize("whole", [False, True])
def test_a_document_without_chunks_fills_at_most_a_sample(whole):
    long = aligned(b"y" * 16, list(range(30)), list(range(50)), [])
    pieces = pieces_of([plain(5), long], 8, 10, whole=whole)
    assert sorted(pieces.table[:, 1:].tolist()) == [[0, 5, 0, 5, 0, 5], [0, 9, 0, 11, 0, 0]]
    assert pieces.report.cut_documents == 1
    assert pieces.report.skipped_student_tokens == 21
    assert pieces.report.teachers[0].skipped_tokens == 39


def no_document(kind: str, number: int):
    """Something that nothing can be learned from, and as what it is counted."""
    digest = text_digest(f"{kind} {number}")
    context = [~i for i in range(40)]
    return {
        "refused by a template": lambda: aligned(digest, [], [], []),
        "of one token": lambda: aligned(digest, [1], [1], [(0, 1, 0, 1)]),
        "of one token of the teacher": lambda: aligned(digest, [1, 2, 3], [1], []),
        "without the assistant's words": lambda: aligned(digest, context[:9], context[:9], []),
        "whose answer is behind the end": lambda: aligned(
            digest, [*context, 1, 2], [*context, 1, 2], [(40, 42, 40, 42)]
        ),
        "of one chunk longer than a sample": lambda: aligned(
            digest, list(range(40)), list(range(40)), [(0, 1, 0, 1), (1, 40, 1, 40)]
        ),
    }[kind]()


NO_DOCUMENTS = {
    "refused by a template": REFUSED,
    "of one token": TOO_SHORT,
    "of one token of the teacher": TOO_SHORT,
    "without the assistant's words": SAYS_NOTHING,
    "whose answer is behind the end": TOO_LONG,
    "of one chunk longer than a sample": TOO_LONG,
}


@pytest.mark.parametrize("pack", [True, False])
@pytest.mark.parametrize("kind", NO_DOCUMENTS)
def test_what_is_left_out_is_counted_and_changes_nothing_for_the_rest(kind, pack):
    whole = kind != "of one chunk longer than a sample"  # of a conversation the beginning is kept
    some = [plain(n) for n in range(3, 20)]
    options = {"whole": whole, "pack": pack, "seed": 3}
    alone = pieces_of(some, 16, 16, **options)
    mixed = [d for n, document in enumerate(some) for d in (document, *[no_document(kind, n)] * (n % 2))]
    at = np.array([n for n, d in enumerate(mixed) if d in some])
    found = pieces_of(mixed, 16, 16, **options)
    assert found.report.left_out == {NO_DOCUMENTS[kind]: len(mixed) - len(some)}
    assert f"{len(mixed) - len(some)} documents {NO_DOCUMENTS[kind]}" in str(found.report)
    assert found.first.tolist() == alone.first.tolist()
    assert found.table[:, 1:].tolist() == alone.table[:, 1:].tolist()
    assert found.table[:, 0].tolist() == at[alone.table[:, 0]].tolist()
    kept = found.report.student_tokens + found.report.skipped_student_tokens
    assert kept == sum(max(len(d.student_ids) - 1, 0) for d in mixed)


@pytest.mark.parametrize("lengths", [(1, 8), (8, 1), (0, 0), (-5, 8)])
def test_too_short_sequences(lengths):
    with pytest.raises(InputError, match="length="):
        pieces_of([plain(5)], *lengths)


def test_only_chunks_longer_than_any_sample():
    document = aligned(b"x" * 16, list(range(9)), list(range(9)), [(0, 1, 0, 1), (1, 9, 1, 9)])
    with pytest.raises(InputError, match="2 chunks that are in no sample, or longer than one"):
        pieces_of([document], 4, 4)


def test_documents_are_shuffled_by_the_seed_alone():
    documents = [plain(n) for n in range(5, 40)]
    tables = [pieces_of(documents, 64, 64, seed=s).table for s in (0, 0, 1)]
    np.testing.assert_array_equal(tables[0], tables[1])
    assert tables[0][:, 0].tolist() != tables[2][:, 0].tolist()
    assert tables[0][:, 0].tolist() != sorted(tables[0][:, 0].tolist())


def test_the_shuffle_is_fixed_for_all_time():
    """A resumed run needs the order of the run before it, whatever was upgraded in between."""
    assert permutation(8, 1234, 1, 0).tolist() == [3, 6, 7, 0, 5, 4, 1, 2]
    assert permutation(8, -1, 0).tolist() == [6, 4, 7, 0, 5, 3, 2, 1]
    assert sorted(permutation(1000, 5).tolist()) == list(range(1000))


@settings(deadline=None, max_examples=200)
@given(
    seed=st.integers(0, 2**32),
    count=st.integers(1, 12),
    student_length=st.integers(2, 40),
    teacher_length=st.integers(2, 40),
    pack=st.booleans(),
)
def test_every_chunk_and_label_is_in_one_sample_once(seed, count, student_length, teacher_length, pack):
    documents = random_documents(np.random.default_rng(seed), count)
    try:
        pieces = pieces_of(documents, student_length, teacher_length, seed=seed, pack=pack)
    except InputError:
        assert all(
            e - s > student_length or f - t > teacher_length or s == 0 or t == 0
            for d in documents
            for s, e, t, f in d.chunks.tolist()
        )
        return
    report, seen, labels = pieces.report, collections.Counter(), [collections.Counter(), collections.Counter()]
    kept = np.unique(pieces.table[:, 0])
    order = {d: i for i, d in enumerate(kept[permutation(len(kept), seed, 0)].tolist())}
    places = [(order[row[0]], row[1]) for row in pieces.table.tolist()]
    assert places == sorted(places)  # documents in the shuffled order, pieces in the document's
    for first, last in itertools.pairwise(pieces.first.tolist()):
        rows = pieces.table[first:last]
        assert 1 <= len(rows) <= (len(rows) if pack else 1)
        assert (rows[:, 2] - rows[:, 1] - 1).sum() <= student_length
        assert (rows[:, 4] - rows[:, 3] - 1).sum() <= teacher_length
        for d, s, e, t, f, c0, c1 in rows.tolist():
            document = documents[d]
            assert 0 <= s < e <= len(document.student_ids)
            assert 0 <= t < f <= len(document.teacher_ids)
            for side, low, high in ((0, s + 1, e), (1, t + 1, f)):
                labels[side].update((d, i) for i in range(low, high))
            for j in range(c0, c1):
                a, b, x, y = document.chunks[j].tolist()
                assert b <= e
                assert y <= f
                if a > 0 and x > 0:  # has predictors in the document: then also in the piece
                    assert a > s
                    assert x > t
                    seen[d, j] += 1
    assert set(seen.values()) == {1}
    fits = {
        (d, j)
        for d, document in enumerate(documents)
        for j, (a, b, x, y) in enumerate(document.chunks.tolist())
        if a > 0 and x > 0 and b - a <= student_length and y - x <= teacher_length
    }
    assert set(seen) == fits
    assert report.teachers[0].scored_chunks == len(fits)
    for side, (skipped, total) in enumerate(
        (
            (report.skipped_student_tokens, report.student_tokens),
            (report.teachers[0].skipped_tokens, report.teachers[0].tokens),
        )
    ):
        assert set(labels[side].values()) <= {1}
        assert total == len(labels[side])
        possible = sum(max(len(d[1 + side]) - 1, 0) for d in documents)
        assert possible == total + skipped

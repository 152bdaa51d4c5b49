"""One student side and several teacher sides in a sample: packed in lockstep, prepared once for each tokenizer."""

import collections
import itertools
import json
import tempfile
from pathlib import Path

import numpy as np
import pytest
from fakes import STUDENT, TEACHER, TEACHER_BOS, WORDS, GreedyEncoder, aligned, prepared_from, random_sides, vocabulary
from hypothesis import given, settings
from hypothesis import strategies as st

from nemo_xtoken.data import DataConfig, DistillationDataset, Tokenization, collate, prepare_documents, prepare_pairs
from nemo_xtoken.data.packing import DOCUMENT, STUDENT_END, STUDENT_START, pack_documents, permutation, teacher_columns
from nemo_xtoken.errors import InputError

TEXTS = [f"the cat {n} sat abcde {n * 345}\n\n中文 é {'abc the ' * (n * n % 31)}" for n in range(40)]


def pieces_of(sides, lengths, **options):
    with tempfile.TemporaryDirectory() as folder:
        found = [prepared_from(Path(folder) / str(n), documents) for n, documents in enumerate(sides)]
        return pack_documents(found, lengths[0], lengths[1:], **({"seed": 0} | options))


def in_order(chunks, sizes):
    """One document; tokens are numbered."""
    return aligned(b"x" * 16, list(range(sizes[0])), list(range(sizes[1])), chunks)


def test_a_piece_ends_where_the_most_demanding_side_is_full():
    # Ten student tokens; the first teacher's are the same, the second takes two of its own for each.
    one = in_order([(i, i + 1, i, i + 1) for i in range(10)], (10, 10))
    two = in_order([(i, i + 1, 2 * i, 2 * i + 2) for i in range(10)], (10, 20))
    table = pieces_of([[one], [two]], (8, 8, 7)).table
    # The second side: token 0 is no label, then 1 + 2 + 2 + 2 labels of its first four chunks fill it.
    assert table[:, [STUDENT_START, STUDENT_END]].tolist() == [[0, 4], [3, 7], [6, 10]]
    assert table[:, teacher_columns(0)].tolist() == [[0, 4, 0, 4], [3, 7, 4, 7], [6, 10, 7, 10]]
    assert table[:, teacher_columns(1)].tolist() == [[0, 8, 0, 4], [7, 14, 4, 7], [13, 20, 7, 10]]


def test_a_document_is_cut_where_chunks_of_all_teachers_begin():
    one = in_order([(i, i + 1, i, i + 1) for i in range(9)], (9, 9))
    threes = in_order([(i, i + 3, i // 3, i // 3 + 1) for i in range(0, 9, 3)], (9, 3))
    table = pieces_of([[one], [threes]], (4, 9, 9)).table
    assert table[:, [STUDENT_START, STUDENT_END]].tolist() == [[0, 3], [2, 6], [5, 9]]
    assert table[:, teacher_columns(1)].tolist() == [[0, 1, 0, 1], [0, 2, 1, 2], [1, 3, 2, 3]]


def test_the_same_teacher_twice_changes_nothing():
    [documents] = random_sides(np.random.default_rng(5), 12, 1)
    alone, twice = pieces_of([documents], (20, 24)), pieces_of([documents, documents], (20, 24, 24))
    np.testing.assert_array_equal(twice.table[:, :7], alone.table)
    np.testing.assert_array_equal(twice.table[:, teacher_columns(1)], alone.table[:, teacher_columns(0)])
    np.testing.assert_array_equal(twice.first, alone.first)
    assert twice.report.teachers == alone.report.teachers * 2
    assert str(twice.report).count("chunks") == str(alone.report).count("chunks")


def test_other_texts_are_no_teachers_of_one_run():
    first, second = random_sides(np.random.default_rng(5), 12, 2)
    with pytest.raises(ValueError, match="not the same texts"):
        pieces_of([first, second[::-1]], (20, 24, 24))


@settings(deadline=None, max_examples=150)
@given(
    seed=st.integers(0, 2**32),
    count=st.integers(1, 10),
    lengths=st.lists(st.integers(2, 30), min_size=2, max_size=4),
    pack=st.booleans(),
)
def test_every_chunk_and_label_is_in_one_sample_at_most_and_all_are_accounted_for(seed, count, lengths, pack):
    sides = random_sides(np.random.default_rng(seed), count, len(lengths) - 1)
    try:
        pieces = pieces_of(sides, lengths, seed=seed, pack=pack)
    except InputError:  # no chunk to score for some teacher
        return
    kept = np.unique(pieces.table[:, DOCUMENT])
    order = {d: i for i, d in enumerate(kept[permutation(len(kept), seed, 0)].tolist())}
    places = [(order[row[DOCUMENT]], row[STUDENT_START]) for row in pieces.table.tolist()]
    assert places == sorted(places)
    labels = [collections.Counter() for _ in lengths]
    chunks = [collections.Counter() for _ in sides]
    for first, last in itertools.pairwise(pieces.first.tolist()):
        rows = pieces.table[first:last].tolist()
        assert len(rows) >= 1
        assert pack or len(rows) == 1
        used = [0] * len(lengths)
        for row in rows:
            d, s, e = row[:3]
            ranges = [(s, e), *(tuple(row[teacher_columns(m)][:2]) for m in range(len(sides)))]
            for side, (low, high) in enumerate(ranges):
                assert 0 <= low < high
                used[side] += high - low - 1
                labels[side].update((d, i) for i in range(low + 1, high))
            for m, documents in enumerate(sides):
                t, f, c0, c1 = row[teacher_columns(m)]
                assert e <= len(documents[d].student_ids)
                assert f <= len(documents[d].teacher_ids)
                for j in range(c0, c1):
                    a, b, x, y = documents[d].chunks[j].tolist()
                    assert b <= e
                    assert y <= f
                    if a > 0 and x > 0:  # has predictors in the document: then also in the piece
                        assert a > s
                        assert x > t
                        chunks[m][d, j] += 1
        assert all(n <= length for n, length in zip(used, lengths, strict=True))
    report = pieces.report
    totals = [(report.student_tokens, report.skipped_student_tokens)]
    totals += [(t.tokens, t.skipped_tokens) for t in report.teachers]
    for side, (total, skipped) in enumerate(totals):
        assert set(labels[side].values()) <= {1}
        assert total == len(labels[side])
        documents = sides[max(side - 1, 0)]
        assert total + skipped == sum(max(len(d[1 + (side > 0)]) - 1, 0) for d in documents)
    for m, counts in enumerate(report.teachers):
        assert set(chunks[m].values()) <= {1}
        assert counts.scored_chunks == len(chunks[m])


def write(folder, texts=TEXTS):
    path = folder / "data.jsonl"
    path.write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    return str(path)


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    """A data set with a teacher, one that puts BOS, and one with the student's own tokenizer."""
    folder = tmp_path_factory.mktemp("three")
    config = DataConfig([write(folder)], 48, 40, cache_dir=str(folder), held_out=4, progress=False)
    sides = [Tokenization(TEACHER), Tokenization(TEACHER_BOS, 64), Tokenization(STUDENT, 48)]
    return folder, config, *config.build(STUDENT, sides, num_samples=200)


def test_samples_hold_every_side(three):
    _, _, data, held_out = three
    teachers = (TEACHER, TEACHER_BOS, STUDENT)
    seen = [0, 0, 0]
    for part in (data, held_out):
        for index in range(part.epoch_length):
            sample, [*pieces] = part[index], part.describe(index)
            assert [side.tokens.shape for side in (sample.student, *sample.teachers)] == [
                (1, 48), (1, 40), (1, 64), (1, 48)
            ]  # fmt: skip
            for m, (teacher, side) in enumerate(zip(teachers, sample.teachers, strict=True)):
                at = 0
                for number, piece in enumerate(pieces):
                    ids = part.prepared[m].document(piece["document"])[1][slice(*piece[f"teacher{m}_tokens"])]
                    n = len(ids) - 1
                    np.testing.assert_array_equal(side.labels[0, at : at + n], ids[1:])
                    np.testing.assert_array_equal(side.tokens[0, at : at + n], ids[:-1])
                    assert (side.documents[0, at : at + n] == number).all()
                    at += n
                assert (side.labels[0, at:] == -100).all()
                for _, first, count, other, others in side.chunks.tolist():
                    text = sample.student.labels[0, first : first + count].numpy()
                    said = side.labels[0, other : other + others].numpy()
                    assert STUDENT.decode_bytes(text) == teacher.decode_bytes(said)
                    seen[m] += 1
            for name in ("tokens", "labels", "positions", "documents"):  # the student's own tokenizer: the same side
                np.testing.assert_array_equal(getattr(sample.teachers[2], name), getattr(sample.student, name))
            chunks = sample.teachers[2].chunks
            np.testing.assert_array_equal(chunks[:, 1:3], chunks[:, 3:])
            assert (chunks[:, 2] == 1).all()
    assert seen == [
        a.scored_chunks + b.scored_chunks for a, b in zip(data.report.teachers, held_out.report.teachers, strict=True)
    ]


def test_a_batch_of_every_side(three):
    batch = collate([three[2][i] for i in (3, 1)])
    for side in batch.teachers:
        chunks = side.chunks.tolist()
        assert chunks == sorted(chunks)
        assert {c[0] for c in chunks} == {0, 1}
    assert batch.teachers[1].tokens.shape == (2, 64)
    assert batch.student.samples.tolist() == [3, 1]


def test_one_teacher_has_the_fingerprint_of_its_settings_and_more_have_others(three):
    folder, config, data, _ = three
    make = lambda *sides: config.build(STUDENT, sides)[0].fingerprint  # noqa: E731
    one, two = Tokenization(TEACHER), Tokenization(TEACHER_BOS)
    found = [make(one), make(two), make(one, two), make(two, one), make(one, Tokenization(TEACHER_BOS, 41))]
    assert len({*found, data.fingerprint}) == 6
    assert make(one) == found[0]
    assert folder


def test_each_tokenizer_is_prepared_once_and_for_all_runs(tmp_path):
    path, again = write(tmp_path), vocabulary("another name", [*WORDS[1::2], "the", " cat sat"])
    assert again.digest == TEACHER.digest
    first, second, own = prepare_pairs(path, STUDENT, [TEACHER, again, STUDENT], cache_dir=tmp_path, progress=False)
    assert first is second
    shards = sorted((tmp_path / "alignment").rglob("shard-*"))
    assert len({shard.parent for shard in shards}) == 2
    alone = prepare_documents(path, STUDENT, TEACHER, cache_dir=tmp_path, progress=False)
    assert sorted((tmp_path / "alignment").rglob("shard-*")) == shards
    assert alone.digest == first.digest
    for i in range(len(TEXTS)):
        student_ids, teacher_ids, _ = own.document(i)
        np.testing.assert_array_equal(student_ids, teacher_ids)


def test_the_students_own_tokenizer_reads_a_text_once(tmp_path, monkeypatch):
    read = []
    encode = GreedyEncoder.encode_batch
    monkeypatch.setattr(GreedyEncoder, "encode_batch", lambda self, texts: read.extend(texts) or encode(self, texts))
    prepare_documents(write(tmp_path), STUDENT, STUDENT, cache_dir=tmp_path, progress=False)
    assert read == TEXTS


def test_a_side_that_is_too_short_is_named(three):
    folder, config, *_ = three
    with pytest.raises(InputError, match="teacher1_length=1"):
        config.build(STUDENT, [Tokenization(TEACHER), Tokenization(STUDENT, 1)])
    assert isinstance(three[2], DistillationDataset)
    assert folder

"""A long document is cut into pieces, and has the ids, chunks and counts of the whole; memory does not grow with it."""

import json
import unicodedata

import numpy as np
import pytest
from tokenizer_zoo import TEXT, zoo

from nemo_xtoken.alignment import Aligner
from nemo_xtoken.data import prepare_documents, workers
from nemo_xtoken.data.workers import DocumentAligner, Text, align_documents, document_ids

PAIRS = [("llama", "qwen"), ("qwen_nfc", "llama"), ("sp_bpe", "qwen"), ("sp_unigram", "sp_bpe"), ("llama", "sp_model")]
TEXTS = {
    "plain": TEXT,
    "accents apart": unicodedata.normalize("NFD", "Été à la plage\nnaïve café, Ångström übel\n" * 60),
    "no seam": "0123456789" * 300,
    "blanks in front": "  " + TEXT,
}


@pytest.mark.parametrize(("pair", "count"), [(PAIRS[0], 1), *((pair, 0) for pair in PAIRS)])
def test_in_pieces_as_in_one(tmp_path, monkeypatch, pair, count):
    """Short documents stand between the long ones, so that batches of both kinds alternate."""
    monkeypatch.setattr(workers, "_PIECE_CHARACTERS", 150)
    student, teacher = (zoo()[name] for name in pair)
    texts = [part for text in TEXTS.values() for part in (text, "short")]
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    found = prepare_documents(path, student, teacher, workers=count, cache_dir=tmp_path / "cache", progress=False)
    aligner = Aligner(student, teacher)
    for i, text in enumerate(texts):
        ids = document_ids(student, student.encode(text)), document_ids(teacher, teacher.encode(text))
        chunks = aligner.align(*ids)
        for part, expected in zip(found.document(i), (*ids, chunks), strict=True):
            np.testing.assert_array_equal(part, expected)
        assert found.scored[i] == ((chunks[:, 0] > 0) & (chunks[:, 2] > 0)).sum()
    (shard,) = found.shards()
    sides = [[document_ids(v, v.encode(t)) for t in dict.fromkeys(texts)] for v in (student, teacher)]
    chunks = [aligner.align(*ids) for ids in zip(*sides, strict=True)]
    for side, name in enumerate(("student", "teacher")):
        assert int(shard.metadata[f"{name}_labels"]) == sum(len(ids) - 1 for ids in sides[side])
        covered = sum(int((c[:, 2 * side + 1] - np.maximum(c[:, 2 * side], 1)).sum()) for c in chunks)
        assert int(shard.metadata[f"{name}_aligned"]) == covered


def test_most_long_documents_are_settled_piece_by_piece(monkeypatch):
    """Else the test above would only show that documents are aligned as a whole."""
    monkeypatch.setattr(workers, "_PIECE_CHARACTERS", 150)
    for pair in PAIRS[:3]:
        align = DocumentAligner(*(zoo()[name] for name in pair), Aligner(*(zoo()[name] for name in pair)))
        batches = list(align_documents(align, [(b"x" * 16, TEXT)], 0))
        assert len(batches) > 10
        assert all(batch.part is not None and batch.part.settled for batch in batches), pair
        assert max(len(batch.student_ids) for batch in batches) < 300


def test_an_unsettled_piece_is_noticed():
    """Two sides that differ up to the end of a piece, as no seam allows."""
    student, teacher = zoo()["qwen_nfc"], zoo()["llama"]
    text = "ete e\u0301"
    ids = student.encode(text), teacher.encode(text)
    aligner = Aligner(student, teacher)
    assert aligner.align_part(*ids, True, False) is None
    np.testing.assert_array_equal(aligner.align_part(*ids, True, True), aligner.align(*ids))
    assert aligner.align_part(ids[0][1:], ids[1], False, True) is None


@pytest.mark.parametrize("method", ["spans", "dp"])
def test_what_a_worker_gets_is_bounded(method):
    align = DocumentAligner(zoo()["llama"], zoo()["qwen"], Aligner(zoo()["llama"], zoo()["qwen"], method))
    long = "one more word " * 40_000
    documents = [(b"a" * 16, "tiny"), (b"b" * 16, long), (b"c" * 16, "tiny")] + [(b"d" * 16, "x" * 30)] * 5000
    batches: list[list[Text]] = list(workers._batches(align, documents))
    sizes = [sum(len(t.piece.text) for t in batch) for batch in batches]
    if method == "spans":
        assert max(sizes) <= 2 * workers._PIECE_CHARACTERS
    assert max(map(len, batches)) <= workers._BATCH_DOCUMENTS
    assert len(batches) < 20  # and short ones do not travel alone
    assert "".join(t.piece.text for batch in batches for t in batch) == "".join(text for _, text in documents)

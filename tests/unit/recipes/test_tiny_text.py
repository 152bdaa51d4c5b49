"""The text and tokenizers of the embedded recipe: made once, the same every time, numerals as the recipe says."""

import json
from pathlib import Path

import pytest

from nemo_xtoken.projection.build import build_projection
from nemo_xtoken.recipes import tiny_text
from nemo_xtoken.vocab.loading import load_vocabulary


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NEMO_XTOKEN_CACHE", str(tmp_path_factory.mktemp("cache")))
        paths = [tiny_text.text_file(), tiny_text.student_tokenizer(), tiny_text.teacher_tokenizer()]
        stamps = {p: p.stat().st_mtime_ns for p in tiny_text.folder().rglob("*") if p.is_file()}
        assert [tiny_text.text_file(), tiny_text.student_tokenizer(), tiny_text.teacher_tokenizer()] == paths
        assert {p: p.stat().st_mtime_ns for p in tiny_text.folder().rglob("*") if p.is_file()} == stamps
        yield paths


def test_documents(made):
    documents = [json.loads(line)["text"] for line in Path(made[0]).read_text().splitlines()]
    assert documents == list(tiny_text.documents())
    assert all(documents)
    assert sum(" + " in d and " = " in d for d in documents) >= tiny_text.SUMS


def test_the_student_packs_numerals_and_the_teacher_splits_them(made):
    student, teacher = load_vocabulary(made[1]), load_vocabulary(made[2])
    assert (student.size, teacher.size) == (tiny_text.STUDENT_VOCABULARY, tiny_text.TEACHER_VOCABULARY)
    for number in range(1000):
        text = str(number)
        assert len(student.encode(text)) == 1
        assert len(teacher.encode(text)) == len(text)
    assert student.roles[student.eos_id] == teacher.roles[teacher.eos_id] == "eos"


def test_w_of_the_pair(made):
    student, teacher = load_vocabulary(made[1]), load_vocabulary(made[2])
    matrix = build_projection(student, teacher)
    s = student.id_of_bytes[b"201"]
    pieces = {teacher.token_bytes[t]: float(w) for t, w in zip(matrix.ids[s], matrix.weights[s], strict=True) if t >= 0}
    assert pieces == {
        b"2": pytest.approx(0.9009, abs=1e-4),
        b"0": pytest.approx(0.0901, abs=1e-4),
        b"1": pytest.approx(0.0090, abs=1e-4),
    }
    assert matrix.empty_rows.mean() < 0.02

"""The figures of benchmarks/boundary_floor.py, without a model: what cannot follow, and boundaries that are kept."""

import json
from pathlib import Path

import boundary_floor
import numpy as np
from tokenizer_zoo import write_folder, zoo

from nemo_xtoken.vocab.neighbours import Neighbours

ROOT = Path(__file__).resolve().parents[3]


def test_the_page_has_the_table():
    """Of both teachers and both students' tokenizers."""
    rows = json.loads((ROOT / "benchmarks" / "boundary_floor.json").read_text("utf-8"))["rows"]
    assert {(row["teacher"], row["student"]) for row in rows} == {
        (teacher, student) for teacher in ("gemma3-270m", "smollm2-135m-instruct") for student in ("llama3", "qwen3")
    }
    assert boundary_floor.table(rows) in (ROOT / "docs" / "method.md").read_text("utf-8")


def test_a_digit_cannot_follow_a_digit_of_threes(tmp_path):
    write_folder("llama", tmp_path / "llama")
    teacher = zoo()["qwen"]
    student = boundary_floor.Student(str(tmp_path / "llama"), teacher, Neighbours(teacher))
    text = "is 7 + 8 and"
    ids = (student.vocabulary.encode(text).astype(np.int64), teacher.encode(text).astype(np.int64))
    found = student.boundaries(ids, len(ids[1]))
    after = next(at for at in found.values() if teacher.display(int(ids[1][at[1] - 1])) == "7")
    masks = student.masks(ids, after)
    digit, blank = teacher.id_of_bytes[b"5"], int(ids[1][after[1]])
    assert not masks["possible"][digit]
    assert not masks["open"][digit]
    assert masks["possible"][blank]
    assert masks["open"][blank]
    assert masks["own"]
    assert student.keeps(b"is 7", [b" + 8", b"5 + 8", b""]).tolist() == [True, False, True]

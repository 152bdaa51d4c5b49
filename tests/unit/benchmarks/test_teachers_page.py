"""What the documents say of teachers elsewhere is what the measurement's file has, and the goals are met there."""

import json
import re

import pytest
import teachers_page
from teacher_sources import Shape, taught

RESULTS = json.loads(teachers_page.RESULTS.read_text("utf-8"))
SOURCES = {row["teacher"]: row for row in RESULTS["sources"]["sources"]}


def test_the_documents_have_the_figures():
    made, named = teachers_page.blocks(RESULTS), set()
    for document in teachers_page.DOCUMENTS:
        text = document.read_text("utf-8")
        assert teachers_page.filled(text, made) == text, f"{document.name}: python benchmarks/teachers.py --page"
        named |= set(re.findall(r"<!-- teachers: (\w+) -->", text))
    assert named == set(made)


def test_a_student_does_not_wait_for_enough_replicas():
    shape = RESULTS["sources"]["shape"]
    needed = shape["rows"] * shape["length"] / shape["seconds"] / shape["rate"]
    remote = {int(name.split()[1]): row for name, row in SOURCES.items() if name.startswith("remote")}
    assert min(remote) < needed < max(remote)
    for replicas, row in remote.items():
        assert (row["waiting"] <= 0.02) == (replicas >= needed), replicas
        assert 1 < row["wire"] <= 1.02
    assert SOURCES["colocated"]["waiting"] == pytest.approx(needed / (1 + needed), abs=0.05)


def test_trainings_are_of_all_forms():
    rows = {row["form"]: row for row in RESULTS["training"]["training"]}
    assert list(rows) == ["colocated", "fp32", "bf16", "fp8", "sampled"]
    for name in ("CE", "held-out bits a byte"):  # exact states change nothing but the order of additions
        assert rows["fp32"][name] == pytest.approx(rows["colocated"][name], rel=1e-3)


class Counting:
    """A teacher that computes nothing; ``most``: rows that were wanted and not forgotten at a time."""

    def __init__(self):
        self.wanted, self.got, self.most = {}, [], 0

    def want(self, row):
        self.wanted[row.key] = row
        self.most = max(self.most, len(self.wanted))

    def get(self, key):
        self.got.append(self.wanted[key].key)

    def forget(self, key):
        del self.wanted[key]


def test_the_student_that_measures_asks_two_steps_ahead_and_for_each_row_once():
    shape = Shape(hidden=4, length=8, rows=2, seconds=0.0, steps=5, rate=800.0)
    teacher = Counting()
    assert taught(teacher, shape)["waiting"] <= 1
    assert teacher.got == [row.key for step in shape.data() for row in step]
    assert len(set(teacher.got)) == 6 * 2
    assert (teacher.most, teacher.wanted) == (3 * 2, {})

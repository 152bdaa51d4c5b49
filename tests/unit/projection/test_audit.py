"""The coverage audit: counts per class, Table 8 of the paper, and the finding that follows."""

import functools
import itertools
import json

import pytest
from real_tokenizers import real
from tokenizer_zoo import NAMES, zoo

from nemo_xtoken.projection.audit import ClassCoverage, audit_coverage
from nemo_xtoken.projection.build import build_projection
from nemo_xtoken.projection.token_classes import CLASSES


@functools.cache
def audited(student, teacher):
    return audit_coverage(real(student), real(teacher))


def by_name(audit):
    return {c.name: c for c in audit.classes}


@pytest.mark.parametrize(
    ("teacher", "exact", "finding"),
    [
        ("qwen3", {"digits_1": 13, "digits_2": 0, "digits_3": 0, "punctuation": 88}, "outside"),
        ("phi4mini", {"digits_1": 13, "digits_2": 100, "digits_3": 1000, "punctuation": 88}, "inside"),
    ],
)
def test_table_8_of_the_paper(teacher, exact, finding):
    audit = audited("llama3", teacher)
    classes = by_name(audit)
    totals = {"digits_1": 13, "digits_2": 100, "digits_3": 1000, "punctuation": 88}
    assert {name: classes[name].total for name in totals} == totals
    assert {name: classes[name].exact for name in totals} == exact
    assert audit.finding == finding


def test_llama3_has_109566_tokens_of_qwen3_by_bytes():
    classes = by_name(audited("llama3", "qwen3"))
    assert sum(c.exact for c in classes.values()) - classes["special"].exact == 109_566


@pytest.mark.parametrize(("student", "teacher"), [("mistral_v1", "llama3"), ("llama3", "mistral_v1")])
def test_single_bytes_do_not_decide_between_real_families(student, teacher):
    """A SentencePiece teacher lacks the byte pair ' \\xD7' of the paper's 88, which is no text."""
    classes = by_name(audited(student, teacher))
    assert not classes["punctuation"].outside
    assert classes["digits_3"].outside == (student == "llama3")


@pytest.mark.parametrize(("student", "teacher"), list(itertools.permutations(NAMES, 2)))
def test_every_pair_counts_every_token_once(student, teacher):
    s, t = zoo()[student], zoo()[teacher]
    w = build_projection(s, t)
    audit = audit_coverage(s, t, w)
    assert [c.name for c in audit.classes] == [c.name for c in CLASSES]
    tokens = sum(data is not None or i in s.roles for i, data in enumerate(s.token_bytes))
    assert sum(c.total for c in audit.classes) == tokens
    assert sum(c.exact for c in audit.classes) == w.coverage["exact"]
    assert sum(c.multi for c in audit.classes) == w.coverage["multi"] + w.coverage["truncated"]
    for c in audit.classes:
        assert all(c.examples[kind] for kind in c.examples)
        assert set(c.examples) == {kind for kind in ("exact", "multi", "empty") if getattr(c, kind)}
    json.dumps(audit.to_json())


def test_numerals_that_the_teacher_spells_out_lie_outside():
    audit = audit_coverage(zoo()["llama"], zoo()["qwen"])
    classes = by_name(audit)
    assert (classes["digits_1"].exact, classes["digits_1"].total) == (13, 13)
    assert (classes["digits_2"].exact, classes["digits_2"].total) == (0, 100)
    assert (classes["digits_3"].exact, classes["digits_3"].total) == (0, 1000)
    assert (
        "'12' -> '1' 0.9091  '2' 0.0909"
        in audit_coverage(zoo()["llama"], zoo()["qwen"], examples=99).classes[1].examples["multi"]
    )
    assert audit.finding == "outside"
    assert "0 of the student's 100 2-digit numerals and 0 of the student's 1,000 3-digit numerals" in audit.reason
    assert audit.reason.count(". ") == 0


def test_those_of_a_student_without_longer_numerals_lie_inside():
    audit = audit_coverage(zoo()["qwen"], zoo()["llama"])
    assert by_name(audit)["digits_2"].total == 0
    assert audit.finding == "inside"
    assert "numerals and punctuation" in audit.reason


def test_one_tokenizer_on_both_sides_needs_no_w():
    audit = audit_coverage(zoo()["llama"], zoo()["llama"])
    assert audit.finding == "one tokenizer"
    assert all(c.exact == c.total for c in audit.classes)


@pytest.mark.parametrize(
    ("counts", "outside"),
    [
        ({"exact": 95, "multi": 5}, False),
        ({"exact": 94, "multi": 6}, True),
        ({"exact": 0, "empty": 3}, True),
        ({}, False),
        ({"exact": 10, "multi": 5, "fragments": 5}, False),  # what is missing is no text
        ({"exact": 8, "multi": 7, "fragments": 5, "exact_fragments": 3}, True),
        ({"exact": 0, "multi": 9, "critical": False}, False),
    ],
)
def test_when_a_class_lies_outside(counts, outside):
    fields = {"name": "n", "label": "l", "critical": True, "exact": 0, "multi": 0, "empty": 0}
    fields |= {"fragments": 0, "exact_fragments": 0, "examples": {}}
    assert ClassCoverage(**(fields | counts)).outside == outside

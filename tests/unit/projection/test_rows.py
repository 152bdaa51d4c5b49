"""Rows of W: their kinds, distances, and how they read."""

import numpy as np
import pytest
from tokenizer_zoo import zoo

from nemo_xtoken.errors import InputError
from nemo_xtoken.projection.build import ProjectionRule, build_projection
from nemo_xtoken.projection.matrix import ProjectionMatrix
from nemo_xtoken.projection.rows import KINDS, describe_row, entries, readable, row_distances, row_kinds


def matrix(rows, width=10, k=4):
    """A W ``[len(rows), width]`` from rows as dicts."""
    ids, weights = np.full((len(rows), k), -1, np.int32), np.zeros((len(rows), k), np.float32)
    for s, row in enumerate(rows):
        for slot, (t, w) in enumerate(row.items()):
            ids[s, slot], weights[s, slot] = t, w
    return ProjectionMatrix(ids=ids, weights=weights, teacher_size=width, student_digest="s", teacher_digest="t")


@pytest.mark.parametrize("pair", [("llama", "qwen"), ("sp_bpe", "tiktoken"), ("tiktoken", "sp_model")])
def test_kinds_count_what_the_build_counted(pair):
    student, teacher = (zoo()[name] for name in pair)
    w = build_projection(student, teacher)
    counts = np.bincount(row_kinds(w, student, teacher) + 1, minlength=4)
    assert counts[1] == w.coverage["exact"]
    assert counts[2] == w.coverage["multi"] + w.coverage["truncated"]
    assert counts[3] + counts[0] == w.coverage["empty"]
    assert KINDS == ("exact", "multi", "empty")


def test_one_piece_is_not_exact():
    """All weight on the first piece is one entry, but another token than the student's."""
    student, teacher = zoo()["llama"], zoo()["qwen"]
    w = build_projection(student, teacher, ProjectionRule.named("prefix"))
    s = student.id_of_bytes[b"987"]
    assert (w.ids[s] >= 0).sum() == 1
    assert row_kinds(w, student, teacher)[s] == 1


def test_kinds_want_the_pair():
    w = build_projection(zoo()["llama"], zoo()["qwen"])
    with pytest.raises(InputError, match="W of"):
        row_kinds(w, zoo()["qwen"], zoo()["llama"])


def test_distances_are_the_weight_that_lies_elsewhere():
    a = matrix([{1: 1.0}, {1: 0.75, 2: 0.25}, {}, {3: 1.0}, {}, {1: 0.5, 2: 0.5}])
    b = matrix([{1: 1.0}, {2: 0.5, 1: 0.5}, {4: 1.0}, {}, {}, {3: 0.5, 2: 0.25, 4: 0.25}], k=7)
    np.testing.assert_allclose(row_distances(a, b), [0, 0.25, 1, 1, 0, 0.75], atol=1e-12)
    np.testing.assert_allclose(row_distances(b, a), row_distances(a, b))


def test_entries_give_empty_rows_a_rest_when_asked():
    w = matrix([{}, {4: 0.5, 2: 0.5}])
    assert [list(x) for x in entries(w)] == [[1, 1], [4, 2], [0.5, 0.5]]
    rows, ids, weights = entries(w, rest=True)
    assert (rows[-1], ids[-1], weights[-1]) == (0, 10, 1)


def test_a_row_reads_heaviest_first():
    student, teacher = zoo()["llama"], zoo()["qwen"]
    w = build_projection(student, teacher)
    row = describe_row(w, student.id_of_bytes[b"987"], student, teacher)
    assert row["token"] == "987"
    assert readable(row) == "'9' 0.9009  '8' 0.0901  '7' 0.0090"
    assert readable(row, most=1) == "'9' 0.9009  and 2 more"
    bare = describe_row(w, row["id"], None, None)
    assert "token" not in bare
    assert readable(bare).startswith(f"id {teacher.id_of_bytes[b'9']} 0.9009")
    assert readable({"entries": []}) == "(empty)"

"""The difference of two W."""

import numpy as np
import pytest
from tokenizer_zoo import zoo

from nemo_xtoken.errors import InputError
from nemo_xtoken.projection.build import ProjectionRule, build_projection
from nemo_xtoken.projection.compare import compare, describe_difference


@pytest.fixture(scope="module")
def pair():
    return zoo()["llama"], zoo()["qwen"]


def test_a_matrix_equals_itself_whatever_its_width(pair):
    a, b = build_projection(*pair), build_projection(*pair, ProjectionRule(max_pieces=4, beta=0.5))
    assert compare(a, a).same
    assert compare(a, b).same  # beta is divided out


def test_rows_added_removed_and_changed():
    pair = zoo()["qwen"], zoo()["sp_bpe"]  # has tokens of more than four pieces
    whole, prefix = (build_projection(*pair, ProjectionRule.named(name)) for name in ("whole", "prefix"))
    difference = compare(whole, prefix)
    np.testing.assert_array_equal(difference.added, np.flatnonzero(whole.empty_rows & ~prefix.empty_rows))
    assert len(difference.added)
    assert not len(difference.removed)
    np.testing.assert_array_equal(compare(prefix, whole).removed, difference.added)
    several = np.flatnonzero((whole.ids >= 0).sum(1) > 1)
    assert set(difference.changed) == set(several)
    distances = difference.distances[difference.changed]
    assert (np.diff(distances) <= 0).all()
    np.testing.assert_allclose(distances, 1 - whole.weights[difference.changed].max(1), atol=1e-6)
    assert not len(compare(whole, prefix, tolerance=0.2).changed)


def test_it_reads_with_tokenizers_and_without(pair):
    student, teacher = pair
    a, b = build_projection(*pair), build_projection(*pair, ProjectionRule(gamma=0.5))
    difference = compare(a, b)
    told = describe_difference(difference, a, b, student, teacher, limit=3)
    assert told["changed"]["count"] == len(difference.changed) > 3
    assert len(told["changed"]["rows"]) == 3
    first = told["changed"]["rows"][0]
    assert first["token"] == student.display(first["id"])
    assert [e["id"] for e in first["entries"]] == [e["id"] for e in first["after"]]
    assert first["distance"] == pytest.approx(first["entries"][0]["weight"] - first["after"][0]["weight"], abs=2e-6)
    assert "token" not in describe_difference(difference, a, b, None, None, 1)["changed"]["rows"][0]


def test_another_pair_is_refused(pair):
    with pytest.raises(InputError, match="different teacher tokenizers"):
        compare(build_projection(*pair), build_projection(pair[0], zoo()["tiktoken"]))

"""The common set: which tokens pair, and who wins where two want the same."""

import numpy as np
import pytest
from cases import random_matrix
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizer_zoo import zoo

from nemo_xtoken.errors import InputError
from nemo_xtoken.losses.nrl import nrl_exact_pairs
from nemo_xtoken.parallel.common_set import CommonSet
from nemo_xtoken.projection.build import build_projection
from nemo_xtoken.projection.matrix import ProjectionMatrix


def matrix_of(rows, v_t):
    """W of ``[{teacher id: weight}]``."""
    ids, weights = np.full((len(rows), 4), -1, np.int32), np.zeros((len(rows), 4), np.float32)
    for s, row in enumerate(rows):
        ids[s, : len(row)], weights[s, : len(row)] = list(row), list(row.values())
    return ProjectionMatrix(ids, weights, v_t, "s", "t")


def pairs(common):
    return list(zip(common.student.tolist(), common.teacher.tolist(), strict=True))


def brute_widened(strict, matrix):
    """One student token after the other, the strongest claim first."""
    out = dict(pairs(strict))
    claims = []
    for s in range(matrix.student_size):
        row = {int(t): float(w) for t, w in zip(matrix.ids[s], matrix.weights[s], strict=True) if t >= 0}
        if s not in out and row:
            t = min(row, key=lambda t: (-row[t], t))
            claims.append((-row[t], s, t))
    for _, s, t in sorted(claims):
        if t not in out.values():
            out[s] = t
    return sorted(out.items())


def test_widening_keeps_exact_pairs_then_takes_the_larger_weight_then_the_smaller_id():
    rows = [{3: 1.0}, {3: 0.6, 4: 0.4}, {5: 0.7, 6: 0.3}, {5: 0.8, 6: 0.2}, {7: 0.5, 2: 0.5}, {2: 0.5, 8: 0.5}, {}]
    matrix = matrix_of(rows, 9)
    strict = nrl_exact_pairs(matrix)
    assert pairs(strict) == [(0, 3)]
    # 1 wants 3, which is taken; 3 has more weight on 5 than 2; 4 and 5 both want 2, the smaller id gets it
    assert pairs(strict.widened(matrix)) == [(0, 3), (3, 5), (4, 2)]
    assert strict.widened(matrix).student_outside.tolist() == [False, True, True, False, False, True, True]
    assert np.flatnonzero(~strict.widened(matrix).teacher_outside).tolist() == [2, 3, 5]


def test_of_equal_exact_rows_the_smaller_student_id_counts():
    matrix = matrix_of([{}, {4: 1.0}, {2: 1.0}, {4: 1.0}], 5)
    assert pairs(nrl_exact_pairs(matrix)) == [(1, 4), (2, 2)]


@given(seed=st.integers(0, 10_000), empty=st.sampled_from([0.0, 0.3, 1.0]))
@settings(deadline=None, max_examples=60)
def test_widening_equals_taking_claims_one_by_one(seed, empty):
    matrix = random_matrix(np.random.default_rng(seed), 17, 12, empty=empty)
    strict = nrl_exact_pairs(matrix)
    assert pairs(strict.widened(matrix)) == brute_widened(strict, matrix)


def test_strict_pairs_of_tokenizers_have_equal_forms_and_lie_on_exact_rows():
    vocabularies = zoo()
    names = list(vocabularies)[:4]
    for a in names:
        for b in names:
            student, teacher = vocabularies[a], vocabularies[b]
            strict = CommonSet.strict(student, teacher)
            assert len(strict) > 200
            for s, t in pairs(strict):
                assert student.token_bytes[s] == teacher.token_bytes[t]
                assert student.roles.get(s) == teacher.roles.get(t)
            matrix = build_projection(student, teacher)
            assert matrix.ids[strict.student, 0].tolist() == strict.teacher.tolist()
            assert (matrix.weights[strict.student, 0] == 1).all()
            # none is left out: every form that both have is there
            both = {x for x in student.token_bytes if x} & {x for x in teacher.token_bytes if x}
            assert len(strict) == len(both) + len(set(student.id_of_role) & set(teacher.id_of_role))


def test_one_tokenizer_pairs_with_itself():
    vocabulary = next(iter(zoo().values()))
    strict = CommonSet.strict(vocabulary, vocabulary)
    assert strict.student.tolist() == strict.teacher.tolist()


@pytest.mark.parametrize(
    ("student", "teacher"), [([0, 0], [1, 2]), ([0, 1], [2, 2]), ([0, 1], [2]), ([0, 9], [1, 2]), ([-1, 0], [1, 2])]
)
def test_bad_pairs_are_refused(student, teacher):
    with pytest.raises(InputError, match="common set"):
        CommonSet(np.array(student), np.array(teacher), 5, 5)


def test_a_matrix_of_another_size_is_refused():
    with pytest.raises(InputError, match="4 x 5"):
        CommonSet(np.arange(2), np.arange(2), 3, 5).widened(matrix_of([{}] * 4, 5))

"""GOLD and H-KL, value and gradient, against dense float64 autograd; Proposition 1; the sign of either form."""

import functools

import numpy as np
import pytest
import torch
import torch.distributed as dist
from cases import Problem
from dense import gold
from harness import close, compare, compare_ranks, compared, gradcheck, logit_gradient, ours, reference
from hypothesis import given, settings
from hypothesis import strategies as st
from ranks import run_ranks
from real_tokenizers import real

from nemo_xtoken.errors import InputError
from nemo_xtoken.losses.chunks import MERGES
from nemo_xtoken.losses.gold import Gold
from nemo_xtoken.losses.h_kl import HybridKL
from nemo_xtoken.losses.nrl import nrl_exact_pairs
from nemo_xtoken.losses.p_kl import ProjectedKL
from nemo_xtoken.losses.partial_kl import PARTIAL_KLS, PublishedPartialKL
from nemo_xtoken.parallel.common_set import CommonSet
from nemo_xtoken.parallel.exchange import VocabularyExchange
from nemo_xtoken.parallel.vocabulary_shard import VocabularyShard
from nemo_xtoken.projection.build import build_projection
from nemo_xtoken.projection.matrix import ProjectionMatrix

KINDS = [(loss, form) for loss in ("gold", "h_kl") for form in PARTIAL_KLS]


def make_of(problem, loss, form, cap=4096):
    strict = nrl_exact_pairs(problem.matrix)
    if loss == "gold":
        return lambda s: Gold(strict, s, form, cap)
    return lambda s: HybridKL(strict, problem.matrix, s, form, cap)


def reference_of(problem, loss, form, cap=None):
    common = nrl_exact_pairs(problem.matrix)
    if loss == "h_kl":
        common = common.widened(problem.matrix)
    pairs = list(zip(common.student.tolist(), common.teacher.tolist(), strict=True))
    return functools.partial(gold, pairs=pairs, form=form, cap=cap)


@pytest.mark.parametrize("merge", MERGES)
@pytest.mark.parametrize(("loss", "form"), KINDS)
@pytest.mark.parametrize("case", [{}, {"empty": 1.0}, {"v_s": 31, "v_t": 23}])
def test_value_and_gradient_equal_the_dense_reference(merge, loss, form, case):
    problem = Problem(seed=3, pad_s=32, pad_t=32, **case)
    for tau, cap in ((1.0, 4096), (2.5, 4096), (1.0, 3)):
        got = ours(problem, make_of(problem, loss, form, cap), merge, tau)
        compare(got, reference(problem, reference_of(problem, loss, form, cap), merge, tau), 1e-9)


def test_the_widened_set_is_wider_and_matters():
    problem = Problem(seed=3)
    strict = nrl_exact_pairs(problem.matrix)
    assert 3 < len(strict) < len(strict.widened(problem.matrix)) < problem.v_s
    assert (
        ours(problem, make_of(problem, "gold", "rest"), "first")[1]
        != ours(problem, make_of(problem, "h_kl", "rest"), "first")[1]
    )


def test_metrics_are_the_masses_and_parts():
    problem = Problem(seed=6)
    _, kd, _, _, metrics = ours(problem, make_of(problem, "h_kl", "rest"), "first")
    assert metrics["partial_kl"] + metrics["sorted_l1"] == pytest.approx(kd, rel=1e-12)
    assert metrics["sorted_l1_missing"] == 0
    chunks = problem.batch["chunks"].shape[0]
    assert 0 < metrics["student_uncommon"] < chunks
    assert 0 < metrics["teacher_uncommon"] < chunks


def on_rank(problem):
    return every_kind(problem, dist.group.WORLD)


def every_kind(problem, group=None):
    return [
        ours(problem, make_of(problem, loss, form, cap), merge, group=group)
        for loss, form in KINDS
        for merge, cap in (*((merge, 4096) for merge in MERGES), ("first", 3))
    ]


@pytest.mark.parametrize("ranks", [2, 4])
def test_tensor_parallel_ranks_equal_one_process(ranks):
    problem = Problem(seed=7, pad_s=24, pad_t=40)
    results = run_ranks(ranks, on_rank, problem)
    for i, want in enumerate(every_kind(problem)):
        compare_ranks([result[i] for result in results], want, 1e-9)


@pytest.mark.parametrize(("loss", "form"), KINDS)
@pytest.mark.parametrize("merge", MERGES)
def test_gradcheck_of_the_hand_written_backward(loss, form, merge):
    problem = Problem(seed=11, b=1, t_s=6, t_t=7, v_s=9, v_t=11, pad_s=10, pad_t=12, h=3)
    assert gradcheck(problem, make_of(problem, loss, form), merge)


def two_distributions(seed, v_s=12, v_t=15, scale=3.0, n=4):
    random = torch.Generator().manual_seed(seed)
    z = scale * torch.randn(n, v_s, generator=random, dtype=torch.float64)
    p_t = torch.softmax(scale * torch.randn(n, v_t, generator=random, dtype=torch.float64), 1)
    return z, p_t


COMMON = CommonSet(np.array([0, 2, 3, 7, 8]), np.array([4, 1, 0, 9, 14]), 12, 15)
SHARD = VocabularyShard(12, 12)


def test_proposition_1_every_uncommon_logit_is_pushed_down():
    """X-Token, Proposition 1: under GOLD's common KL it has the gradient p_S[j] * M_C(T), whatever the teacher says."""
    z, p_t = two_distributions(seed=0)
    _, gradient = logit_gradient(PublishedPartialKL(COMMON.exchange(SHARD)), z, p_t, SHARD)
    outside = COMMON.student_outside
    mass = p_t[:, COMMON.teacher].sum(1, keepdim=True)
    close(gradient[:, outside], torch.softmax(z, 1)[:, outside] * mass, 1e-12)
    assert (gradient[:, outside] > 0).all()  # descent goes down


def test_a_numeral_that_the_teacher_spells_out_is_pushed_down_by_gold_and_up_by_p_kl():
    """The student has "2", "0", "1", "201" and another token, the teacher all but "201", and says "2"."""
    ids, weights = np.full((5, 3), -1, np.int32), np.zeros((5, 3), np.float32)
    for s, row in enumerate([{0: 1.0}, {1: 1.0}, {2: 1.0}, {0: 0.9009, 1: 0.0901, 2: 0.009}, {3: 1.0}]):
        ids[s, : len(row)], weights[s, : len(row)] = list(row), list(row.values())
    weights /= weights.sum(1, keepdims=True)
    matrix = ProjectionMatrix(ids, weights, 4, "s", "t")
    shard = VocabularyShard(5, 5)
    z = torch.tensor([[0.0, 0.0, 0.0, 1.0, 1.0]], dtype=torch.float64)
    p_t = torch.tensor([[0.9, 0.02, 0.02, 0.06]], dtype=torch.float64)
    published = PublishedPartialKL(nrl_exact_pairs(matrix).exchange(shard))
    projected = ProjectedKL(VocabularyExchange.co_sharded(matrix, shard))
    assert float(logit_gradient(published, z, p_t, shard)[1][0, 3]) == pytest.approx(float(z.softmax(1)[0, 3]))
    assert float(logit_gradient(projected, z, p_t, shard)[1][0, 3]) < -0.1


def test_so_it_is_with_the_numerals_of_llama_3_and_qwen3():
    """Qwen3 writes digits one by one: 2-digit and 3-digit numerals of Llama-3 are in W, but in no pair."""
    student, teacher = real("llama3"), real("qwen3")
    numeral, digit = student.id_of_bytes[b"201"], teacher.id_of_bytes[b"2"]
    strict = CommonSet.strict(student, teacher)
    assert numeral not in strict.student
    shard = VocabularyShard(student.size, student.size)
    random = torch.Generator().manual_seed(0)
    z = torch.randn(1, student.size, generator=random, dtype=torch.float64)
    z[0, numeral] = 8.0
    p_t = torch.softmax(torch.randn(1, teacher.size, generator=random, dtype=torch.float64), 1) * 0.1
    p_t[0, digit] += 0.9
    projected = ProjectedKL(VocabularyExchange.co_sharded(build_projection(student, teacher), shard))
    up = float(logit_gradient(projected, z, p_t, shard)[1][0, numeral])
    down = float(logit_gradient(PublishedPartialKL(strict.exchange(shard)), z, p_t, shard)[1][0, numeral])
    p_s = float(torch.softmax(z, 1)[0, numeral])
    assert p_s > 0.01
    assert up < -0.1
    assert down == pytest.approx(p_s * float(p_t[0, torch.from_numpy(strict.teacher)].sum()), rel=1e-9)
    assert down > 0.009


def test_rest_pushes_uncommon_logits_up_where_the_teacher_is_outside():
    """The same point with a class REST: p_S[j] * (1 - R_T / R_S), negative where the teacher has more mass outside."""
    z, p_t = two_distributions(seed=0)
    _, gradient = logit_gradient(PARTIAL_KLS["rest"](COMMON.exchange(SHARD)), z, p_t, SHARD)
    outside = COMMON.student_outside
    p_s = torch.softmax(z, 1)
    rest_s = p_s[:, outside].sum(1, keepdim=True)
    rest_t = p_t[:, COMMON.teacher_outside].sum(1, keepdim=True)
    close(gradient[:, outside], p_s[:, outside] * (1 - rest_t / rest_s), 1e-10)
    assert (gradient[:, outside] < 0).all(1).any()


@given(seed=st.integers(0, 10_000), scale=st.floats(0.01, 30))
@settings(deadline=None, max_examples=30)
def test_closed_by_rest_it_is_never_negative(seed, scale):
    problem = Problem(seed=seed, b=1)
    problem.weight_s = problem.weight_s * scale
    for loss in ("gold", "h_kl"):
        for merge in MERGES:
            got = ours(problem, make_of(problem, loss, "rest", cap=5), merge)
            assert got[1] > -1e-9
            assert np.isfinite(got[1])
            if merge != "chain_rule":
                assert got[4]["partial_kl"] > -1e-9


def test_the_published_partial_kl_can_be_negative():
    """A student that has moved its mass into C is paid for it; with REST it pays."""
    z, p_t = two_distributions(seed=1, scale=0.1)
    z[:, COMMON.student_outside] -= 5.0
    for form, paid in (("paper", True), ("rest", False)):
        partial_kl = compared(PARTIAL_KLS[form](COMMON.exchange(SHARD)), torch.softmax(z, 1), p_t)[0][0]
        assert ((partial_kl < -0.1) if paid else (partial_kl > 0.1)).all()


@given(seed=st.integers(0, 10_000), scale=st.floats(0.01, 20), shift=st.floats(-10, 10))
@settings(deadline=None, max_examples=100)
def test_the_published_form_is_not_negative_with_its_remainder(seed, scale, shift):
    """The partial KL is at least M_T - M_S, the masses on C, and the sorted distance at least their difference."""
    z, p_t = two_distributions(seed, scale=scale)
    z[:, COMMON.student_outside] += shift
    for cap in (2, 4096):
        value, _, _, _, partial_kl, _, _ = compared(Gold(COMMON, SHARD, "paper", cap), torch.softmax(z, 1), p_t)[0]
        p_s = torch.softmax(z, 1)
        assert (partial_kl > p_t[:, COMMON.teacher].sum(1) - p_s[:, COMMON.student].sum(1) - 1e-9).all()
        assert (value > -1e-9).all()


@pytest.mark.parametrize(("loss", "form"), KINDS)
def test_extreme_logits_stay_finite(loss, form):
    problem = Problem(seed=4, dtype=torch.float32)
    problem.weight_s, problem.weight_t = problem.weight_s * 200, problem.weight_t * 200
    for merge in MERGES:
        for value in ours(problem, make_of(problem, loss, form), merge)[:4]:
            assert torch.isfinite(torch.as_tensor(value)).all()


@pytest.mark.parametrize("form", PARTIAL_KLS)
def test_zero_where_the_student_agrees(form):
    """Equal on C, and the remainder permuted: neither part has anything to say."""
    z, _ = two_distributions(seed=5, v_s=15)
    common, shard = CommonSet(np.arange(9), np.arange(9), 15, 15), VocabularyShard(15, 15)
    p_t = torch.softmax(z, 1)
    p_t[:, 9:] = p_t[:, 9:].flip(1)
    value = compared(Gold(common, shard, form), torch.softmax(z, 1), p_t)[0][0]
    assert float(value.abs().max()) < 1e-12
    _, gradient = logit_gradient(PARTIAL_KLS[form](common.exchange(shard)), z, p_t, shard)
    if form == "rest":
        assert float(gradient.abs().max()) < 1e-12
    else:  # Proposition 1 again: the published form is not stationary where the student is right
        assert float(gradient[:, 9:].min()) > 0


def test_an_unknown_form_is_refused():
    with pytest.raises(InputError, match="partial_kl='closed'"):
        Gold(COMMON, SHARD, partial_kl="closed")

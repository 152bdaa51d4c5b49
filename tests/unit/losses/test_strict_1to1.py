"""Strict 1-to-1: which chunks count, and the reverse KL on the student's top tokens against dense float64 autograd."""

import copy
import functools

import harness
import numpy as np
import pytest
import torch
import torch.distributed as dist
from cases import Problem, match_labels
from dense import strict_1to1
from harness import close, compare, compare_ranks, compared, gradcheck, logit_gradient, reference, signal_of
from hypothesis import given, settings
from hypothesis import strategies as st
from ranks import run_ranks
from tokenizer_zoo import zoo

from nemo_xtoken.losses.chunks import MERGES
from nemo_xtoken.losses.nrl import nrl_exact_pairs
from nemo_xtoken.losses.pair import VocabularyPair
from nemo_xtoken.losses.registry import LOSSES, chunk_selection
from nemo_xtoken.losses.strict_1to1 import ExactPairs, StrictOneToOne
from nemo_xtoken.parallel.common_set import CommonSet
from nemo_xtoken.parallel.vocabulary_shard import VocabularyShard

COMMON = CommonSet(np.array([0, 2, 3, 7, 8, 9]), np.array([4, 1, 0, 9, 14, 2]), 12, 15)
SHARD = VocabularyShard(12, 13)


def matched(**case):
    """A problem where some chunks count, and the same with these chunks alone."""
    problem = Problem(**({"seed": 3, "b": 3} | case))
    mask = match_labels(problem, nrl_exact_pairs(problem.matrix))
    assert 2 < mask.sum() < len(mask)
    alone = copy.copy(problem)
    alone.batch = problem.batch | {"chunks": problem.batch["chunks"][mask]}
    return problem, alone


def ours(problem, *arguments, **settings):
    """`harness.ours` on the chunks that the loss scores."""
    labels, chunks = [problem.batch[f"{side}_labels"] for side in ("student", "teacher")], problem.batch["chunks"]
    scored = copy.copy(problem)
    chosen = ExactPairs(nrl_exact_pairs(problem.matrix))(*labels, chunks)
    scored.batch = problem.batch | {"chunks": chunks[chosen]}
    return harness.ours(scored, *arguments, **settings)


def make_of(problem, k):
    return lambda shard: StrictOneToOne(nrl_exact_pairs(problem.matrix), shard, k)


def reference_of(problem, k):
    common = nrl_exact_pairs(problem.matrix)
    return functools.partial(
        strict_1to1, pairs=list(zip(common.student.tolist(), common.teacher.tolist(), strict=True)), k=k
    )


@pytest.mark.parametrize("k", [1, 3, 100])
@pytest.mark.parametrize("case", [{}, {"v_s": 31, "v_t": 23, "pad_s": 32}])
def test_value_and_gradient_equal_the_dense_reference(k, case):
    problem, alone = matched(**case)
    for merge, tau in (("chain_rule", 1.0), ("mean", 2.5), ("first", 1.0)):
        want = reference(alone, reference_of(problem, k), merge, tau)
        compare(ours(problem, make_of(problem, k), merge, tau), want, 1e-9)
        assert (want[1] > 0) == (k > 1)  # on one token both sides are certain


def test_a_merge_changes_nothing():
    """A chunk of one token a side is its distribution in every merge."""
    problem, _ = matched()
    found = {merge: ours(problem, make_of(problem, 3), merge) for merge in MERGES}
    for merge in MERGES:
        compare(found[merge], found["first"], 1e-12)


def every_kind(problem, group=None):
    return [ours(problem, make_of(problem, k), "chain_rule", tau, group=group) for k, tau in ((2, 1.0), (5, 1.7))]


def on_rank(problem):
    return every_kind(problem, dist.group.WORLD)


@pytest.mark.parametrize("ranks", [2, 4])
def test_tensor_parallel_ranks_equal_one_process(ranks):
    problem, _ = matched(seed=7, pad_s=24, pad_t=40)
    results = run_ranks(ranks, on_rank, problem)
    for i, want in enumerate(every_kind(problem)):
        compare_ranks([result[i] for result in results], want, 1e-9)


def test_gradcheck_of_the_hand_written_backward():
    _, problem = matched(seed=11, b=2, t_s=8, t_t=9, v_s=9, v_t=11, pad_s=10, pad_t=12, h=3)
    assert gradcheck(problem, make_of(problem, 3), "chain_rule")


def two_distributions(seed, scale=3.0, n=4):
    random = torch.Generator().manual_seed(seed)
    z = scale * torch.randn(n, 13, generator=random, dtype=torch.float64)
    z[:, 12:] = -torch.inf
    return z, torch.softmax(scale * torch.randn(n, 15, generator=random, dtype=torch.float64), 1)


@given(seed=st.integers(0, 10_000), k=st.integers(1, 7), scale=st.floats(0.01, 300))
@settings(deadline=None, max_examples=80)
def test_never_negative_and_finite(seed, k, scale):
    z, p_t = two_distributions(seed, scale)
    for dtype in (torch.float32, torch.float64):
        values, gradient = compared(StrictOneToOne(COMMON, SHARD, k), torch.softmax(z, 1).to(dtype), p_t.to(dtype))
        assert float(values[0].min()) > (-1e-6 if dtype == torch.float32 else -1e-12)
        assert torch.isfinite(values).all()
        assert torch.isfinite(gradient * torch.softmax(z, 1).to(dtype)).all()


def test_of_equal_probabilities_the_smaller_student_id_is_compared():
    loss = StrictOneToOne(COMMON, SHARD, 2)
    p_s = torch.full((1, 13), 1 / 12, dtype=torch.float64)
    p_s[:, 12] = 0
    _, p_t = two_distributions(0)
    values, gradient = compared(loss, p_s, p_t[:1])
    assert gradient[0].nonzero().squeeze(1).tolist() == [0, 2]
    t = p_t[0, [4, 1]] / p_t[0, [4, 1]].sum()
    assert float(values[0]) == pytest.approx(float((0.5 * (0.5 / t).log()).sum()), rel=1e-12)


def test_zero_value_and_gradient_where_the_student_agrees_on_the_pairs():
    z, p_t = two_distributions(2)
    z[:, torch.from_numpy(COMMON.student)] = p_t[:, torch.from_numpy(COMMON.teacher)].log() + 1.5
    for k in (3, 16):
        value, gradient = logit_gradient(StrictOneToOne(COMMON, SHARD, k), z, p_t, SHARD)
        assert float(value.abs().max()) < 1e-12
        assert float(gradient.abs().max()) < 1e-12


def test_extreme_logits_stay_finite():
    problem, _ = matched(seed=4, dtype=torch.float32)
    problem.weight_s, problem.weight_t = problem.weight_s * 200, problem.weight_t * 200
    for value in ours(problem, make_of(problem, 16), "chain_rule")[:4]:
        assert torch.isfinite(torch.as_tensor(value)).all()


def test_the_chunks_that_count_are_those_of_two_single_tokens_of_one_form():
    student, teacher = zoo()["llama"], zoo()["qwen"]
    common = CommonSet.strict(student, teacher)
    s, t = int(common.student[5]), int(common.teacher[5])
    other = int(common.teacher[6])
    student_labels = torch.tensor([[s, s, s, s], [s, -100, s, s]])
    teacher_labels = torch.tensor([[t, other, t, t], [t, t, t, t]])
    chunks = torch.tensor([[0, 0, 1, 0, 1], [0, 1, 1, 1, 1], [0, 2, 2, 2, 1], [1, 0, 1, 0, 2], [1, 2, 1, 3, 1]])
    want = [True, False, False, False, True]
    assert ExactPairs(common)(student_labels, teacher_labels, chunks).tolist() == want
    selection = chunk_selection("strict_1to1", VocabularyPair(student, teacher))
    assert selection(student_labels, teacher_labels, chunks).tolist() == want
    assert selection(student_labels, teacher_labels, chunks[:0]).tolist() == []
    for name in LOSSES:
        found = chunk_selection(name, VocabularyPair(student, teacher))
        assert (found is None) == (name not in {"strict_1to1", "prefix_kl", "alm"})


def test_the_chunks_selected_are_all_that_the_pass_sees():
    problem, alone = matched()
    shard = VocabularyShard(problem.v_s, problem.weight_s.shape[0])
    signal = signal_of(problem, make_of(problem, 3)(shard), "first")
    labels = problem.batch["student_labels"]
    selection = ExactPairs(nrl_exact_pairs(problem.matrix))
    once = signal.selected(selection, labels)
    assert torch.equal(once.chunks, alone.batch["chunks"])
    assert torch.equal(once.selected(selection, labels).chunks, once.chunks)
    assert once.selected(None, labels) is once


def test_the_metrics_are_the_masses_left_out():
    z, p_t = two_distributions(0)
    p_s = torch.softmax(z, 1)
    values = compared(StrictOneToOne(COMMON, SHARD, 100), p_s, p_t)[0]
    close(values[1], 1 - p_t[:, torch.from_numpy(COMMON.teacher)].sum(1), 1e-12)
    close(values[2], 1 - p_s[:, torch.from_numpy(COMMON.student)].sum(1), 1e-12)

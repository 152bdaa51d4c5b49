"""Losses that compare slots, by Triton's kernels against torch's; run by test_kernels.py interpreted."""

import harness
import numpy as np
import pytest
import torch
import torch.distributed as dist
from random_texts import Texts
from ranks import run_ranks

from nemo_xtoken.kernels.reference import TORCH
from nemo_xtoken.kernels.triton_kernels import INTERPRETED, TritonKernels
from nemo_xtoken.losses.base import ModelOutput
from nemo_xtoken.losses.bpm import BytePrefixKL
from nemo_xtoken.losses.csd import CommonSupport, Completions
from nemo_xtoken.losses.pair import VocabularyPair
from nemo_xtoken.objective.terms import cross_tokenizer_loss
from nemo_xtoken.parallel.head import OutputHead

assert INTERPRETED
TRITON = TritonKernels(block=16)
#: Special tokens of the student and of the teacher: with one of its own a side has a class REST.
ROLES = {"both": (("one",), ("two",)), "student": (("one",), ()), "equal": (("one",), ("one",))}
LOSSES = pytest.mark.parametrize("name", ["csd", "bpm"])


def make(problem, name, kernels):
    pair = VocabularyPair(problem.student, problem.teacher, classes=problem.classes)
    if name == "bpm":
        return lambda shard: BytePrefixKL(pair.byte_prefixes, shard, kernels)
    completions = Completions(pair.classes, (pair.student.byte_length, pair.teacher.byte_length))
    return lambda shard: CommonSupport(pair.strict, completions, shard, 0.7, kernels)


def found(problem, name, kernels, tau=1.0, tile_rows=9, group=None):
    return harness.ours(problem, make(problem, name, kernels), "first", tau, tile_rows, group, kernels)


def same(got, wanted, rtol):
    harness.compare(got, wanted, rtol)
    assert got[4].keys() == wanted[4].keys()
    for name, value in wanted[4].items():
        assert abs(got[4][name] - value) <= rtol * max(1, abs(value)), name


def test_they_go_by_logits():
    problem = Texts(0)
    for name in ("csd", "bpm"):
        for kernels in (TRITON, TORCH):
            made = make(problem, name, kernels)(harness.student_shard(problem))
            assert (made.column_pairs() is None) == (kernels is TORCH)


@LOSSES
@pytest.mark.parametrize(
    ("seed", "roles", "tau", "tile_rows", "dtype"),
    [
        (0, "both", 1.0, 9, torch.float64),
        (1, "student", 2.5, 1000, torch.float64),
        (2, "equal", 1.0, 1, torch.float64),
        (0, "student", 1.7, 9, torch.float32),
    ],
)
def test_a_loss_by_logits_is_the_one_by_probabilities(name, seed, roles, tau, tile_rows, dtype):
    """In tiles of one chunk there are those without a comparison by columns, and those without any other."""
    problem = Texts(seed, ROLES[roles], dtype=dtype)
    rtol = 1e-11 if dtype == torch.float64 else 3e-5
    same(found(problem, name, TRITON, tau, tile_rows), found(problem, name, TORCH, tau, tile_rows), rtol)


@LOSSES
@pytest.mark.parametrize("roles", ["both", "equal"])
def test_extreme_logits(name, roles):
    """Probabilities of 0 on either side."""
    problem = Texts(1, ROLES[roles])
    problem.weight_s, problem.weight_t = problem.weight_s * 30, problem.weight_t * 30
    got, wanted = (found(problem, name, kernels) for kernels in (TRITON, TORCH))
    assert all(np.isfinite(x).all() for x in wanted[:4])
    same(got, wanted, 1e-9)


@LOSSES
def test_without_a_gradient(name):
    problem, totals = Texts(1), []
    for kernels in (TRITON, TORCH):
        shard = harness.student_shard(problem)
        signal = harness.signal_of(problem, make(problem, name, kernels)(shard), "first")
        student = ModelOutput(problem.hidden_s.flatten(0, 1), OutputHead(problem.weight_s, shard))
        with torch.no_grad():
            terms = cross_tokenizer_loss(student, problem.batch["student_labels"], [signal], kernels=kernels)
        totals.append(terms.kd[0].total)
    torch.testing.assert_close(*totals, rtol=1e-11, atol=0)


def on_rank(problem):
    return [found(problem, name, TRITON, 1.3, group=dist.group.WORLD) for name in ("csd", "bpm")]


def test_ranks_equal_one_process():
    problem = Texts(2, ROLES["both"])
    results = run_ranks(2, on_rank, problem)
    for number, name in enumerate(("csd", "bpm")):
        harness.compare_ranks([one[number] for one in results], found(problem, name, TORCH, 1.3), 1e-10)

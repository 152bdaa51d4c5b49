"""The plain KL per position: against torch's own, and with output layers of different padding over ranks."""

import numpy as np
import pytest
import torch
import torch.distributed as dist
from cases import Problem
from dense import DIRECTIONS
from harness import compare, compare_ranks, compared, gradcheck, logit_gradient, ours, reference
from hypothesis import given, settings
from hypothesis import strategies as st
from ranks import run_ranks

from nemo_xtoken.errors import InputError
from nemo_xtoken.losses.chunks import MERGES
from nemo_xtoken.losses.same_tokenizer import SameTokenizerKL
from nemo_xtoken.parallel.vocabulary_shard import VocabularyShard

PADS = [(32, 32), (32, 48), (48, 32)]  # the student's and the teacher's


def make_of(direction="forward", size=29):
    return lambda shard: SameTokenizerKL(shard, size, direction)


def same_problem(pads, **kind):
    return Problem(seed=3, v_s=29, v_t=29, pad_s=pads[0], pad_t=pads[1], **kind)


@pytest.mark.parametrize("merge", MERGES)
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("pads", PADS)
def test_value_and_gradient_equal_the_dense_reference(merge, direction, pads):
    problem = same_problem(pads)
    dense = lambda p_s, p_t: DIRECTIONS[direction](p_t, p_s)  # noqa: E731
    for tau in (1.0, 2.5):
        got = ours(problem, make_of(direction), merge, tau)
        compare(got, reference(problem, dense, merge, tau), 1e-9)


def every_kind(group=None):
    return [
        ours(same_problem(pads), make_of(direction), merge, group=group)
        for pads in PADS
        for direction in ("forward", "js")
        for merge in ("mean", "chain_rule")
    ]


def on_rank():
    return every_kind(dist.group.WORLD)


@pytest.mark.parametrize("ranks", [2, 4])
def test_tensor_parallel_ranks_equal_one_process(ranks):
    results = run_ranks(ranks, on_rank)
    for i, want in enumerate(every_kind()):
        compare_ranks([result[i] for result in results], want, 1e-9)


def test_per_position_it_is_the_usual_kl_divergence():
    """Chunks of one token each: torch's kl_div of the two log-softmaxes, whatever the merge."""
    problem = same_problem((32, 48), b=2, t_s=9, t_t=9)
    problem.batch["teacher_labels"] = problem.batch["student_labels"].clone()
    problem.batch["chunks"] = torch.tensor([[i, t, 1, t, 1] for i in range(2) for t in range(8)])
    z_s = (problem.hidden_s @ problem.weight_s.T)[:, :8, :29]
    z_t = (problem.hidden_t @ problem.weight_t.T)[:, :8, :29]
    want = torch.nn.functional.kl_div(z_s.log_softmax(-1), z_t.log_softmax(-1), log_target=True, reduction="sum")
    for merge in MERGES:
        assert ours(problem, make_of(), merge)[1] == pytest.approx(float(want), rel=1e-10)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_gradcheck_of_the_hand_written_backward(direction):
    problem = Problem(seed=11, b=1, t_s=6, t_t=7, v_s=9, v_t=9, pad_s=10, pad_t=12, h=3)
    assert gradcheck(problem, make_of(direction, 9), "mean")


@given(seed=st.integers(0, 10_000), scale=st.floats(0.01, 30))
@settings(deadline=None, max_examples=60)
def test_never_negative_and_zero_at_agreement(seed, scale):
    random = torch.Generator().manual_seed(seed)
    z, other = scale * torch.randn(2, 3, 17, generator=random, dtype=torch.float64)
    shard = VocabularyShard(17, 17)
    for direction in DIRECTIONS:
        loss = SameTokenizerKL(shard, 17, direction)
        assert float(compared(loss, torch.softmax(z, 1), torch.softmax(other, 1))[0].min()) > -1e-12
        value, gradient = logit_gradient(loss, z, torch.softmax(z, 1), shard)
        assert float(value.abs().max()) < 1e-12
        assert float(gradient.abs().max()) < 1e-12


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_extreme_logits_stay_finite(direction):
    problem = same_problem((32, 48), dtype=torch.float32)
    problem.weight_s, problem.weight_t = problem.weight_s * 200, problem.weight_t * 200
    for merge in MERGES:
        for value in ours(problem, make_of(direction), merge)[:4]:
            assert np.isfinite(value).all()


def test_vocabularies_of_different_sizes_are_refused():
    with pytest.raises(InputError, match="a student of 29 and a teacher of 30"):
        SameTokenizerKL(VocabularyShard(29, 32), 30)

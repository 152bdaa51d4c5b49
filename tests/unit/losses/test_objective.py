"""CE + scale * KD: what the scale is, and that a global batch gives the same total however it is cut."""

import math
from types import SimpleNamespace

import pytest
import torch
from cases import Problem
from harness import signal_of, student_shard

from nemo_xtoken.errors import InputError
from nemo_xtoken.losses.base import LossSum, ModelOutput
from nemo_xtoken.losses.p_kl import ProjectedKL
from nemo_xtoken.objective.scale import DynamicScale, ObjectiveConfig, StepCounts, kd_weights
from nemo_xtoken.objective.terms import cross_tokenizer_loss
from nemo_xtoken.parallel.exchange import VocabularyExchange
from nemo_xtoken.parallel.head import OutputHead
from nemo_xtoken.teachers.output import main_grad_of


def sums(total, count):
    return LossSum(torch.tensor(float(total)), count)


@pytest.mark.parametrize("scale", [-1, -1e-9, math.nan, math.inf, "fast", "", "1.0"])
def test_bad_scales_are_refused(scale):
    with pytest.raises(InputError, match=r"objective\.scale"):
        ObjectiveConfig(scale=scale)


@pytest.mark.parametrize(("scale", "needs"), [(0, False), (0.0, False), (0.5, True), ("dynamic", True)])
def test_only_scale_0_needs_no_teacher(scale, needs):
    assert ObjectiveConfig(scale=scale).needs_teacher is needs


def test_a_fixed_scale_stays():
    scale = DynamicScale(ObjectiveConfig(scale=0.25))
    assert scale.known == 0.25
    scale.update(8.0, 2.0)
    assert scale.known == scale.mean(8.0, 2.0) == 0.25


def test_the_dynamic_scale_is_the_ratio_of_the_step_before():
    scale = DynamicScale(ObjectiveConfig(scale="dynamic"))
    assert scale.known == scale.mean(6.0, 2.0) == 1  # at the first step
    scale.update(6.0, 2.0)
    assert scale.known == scale.mean(5.0, 5.0) == 3  # whatever this step's are
    scale.update(5.0, 10.0)
    assert scale.mean(6.0, 2.0) == 0.5


@pytest.mark.parametrize(("ce", "kd"), [(6.0, 0.0), (0.0, 2.0), (math.nan, 2.0), (6.0, math.nan), (math.inf, 2.0)])
def test_a_step_without_a_ratio_changes_nothing(ce, kd):
    scale = DynamicScale(ObjectiveConfig(scale="dynamic"))
    scale.update(6.0, 2.0)
    scale.update(ce, kd)
    assert scale.ratio == 3


def test_the_scale_per_micro_batch_makes_both_terms_equal():
    scale = DynamicScale(ObjectiveConfig(scale="dynamic_per_microbatch"))
    assert scale.known is None
    assert float(scale.within(sums(8, 4), [sums(1, 2)], [1.0])) == (8 / 4) / (1 / 2)
    assert float(scale.within(sums(8, 4), [sums(0, 2)], [1.0])) == 1  # nothing to divide by
    assert float(scale.within(sums(8, 4), [sums(0, 0)], [1.0])) == 1
    two = scale.within(sums(8, 4), [sums(1, 2), sums(6, 3)], [0.8, 0.1])
    assert float(two) == pytest.approx((8 / 4) / (0.8 * 1 / 2 + 0.1 * 6 / 3), rel=1e-6)
    assert scale.mean(6.0, 2.0) == 3
    assert scale.mean(6.0, 0.0) == 1


@pytest.mark.parametrize("cut", [[8], [1] * 8, [4, 4], [1, 7], [3, 0, 5]])
@pytest.mark.parametrize("kind", [0.7, "dynamic"])
@pytest.mark.parametrize("alphas", [(1.0,), (0.8, 0.2, 1.5)])
def test_a_global_batch_gives_the_same_however_it_is_cut(cut, kind, alphas):
    random = torch.Generator().manual_seed(5)
    tokens = torch.randint(0, 9, (8,), generator=random)
    chunks = torch.randint(0, 9, (len(alphas), 8), generator=random)
    chunks[0, 2] = 0
    ce = torch.rand(8, generator=random, dtype=torch.float64) * tokens
    kd = torch.rand(len(alphas), 8, generator=random, dtype=torch.float64) * chunks
    scale = DynamicScale(ObjectiveConfig(scale=kind))
    scale.update(4.0, 3.0)
    counts = StepCounts(int(tokens.sum()), tuple(chunks.sum(1).tolist()))
    weights = torch.tensor(kd_weights(scale.known, alphas, counts), dtype=torch.float64)
    total = sum(ce[part].sum() + (weights * kd[:, part].sum(1)).sum() for part in torch.arange(8).split(cut))
    factor = 0.7 if kind == 0.7 else 4 / 3
    distillation = sum(a * k.sum() / n for a, k, n in zip(alphas, kd, counts.chunks, strict=True))
    expected = ce.sum() / counts.tokens + factor * distillation
    assert float(total) / counts.tokens == pytest.approx(float(expected), rel=1e-12)


def test_without_chunks_the_cross_entropy_is_left():
    assert kd_weights(2.0, (0.5, 0.5), StepCounts(4, (0, 2))) == [0.0, 2.0]


@pytest.mark.parametrize("kind", ["", "Static", "softmax"])
def test_teacher_weights_that_there_are_not(kind):
    with pytest.raises(InputError, match="teacher_weights"):
        ObjectiveConfig(teacher_weights=kind)


def test_a_bad_budget_is_refused():
    with pytest.raises(InputError, match="tile_mib=0"):
        ObjectiveConfig(tile_mib=0)


@pytest.mark.parametrize("tied", [False, True])
def test_the_weights_gradient_goes_to_main_grad_as_megatron_wants_it(tied):
    """Added to what is there, whatever the micro-batch; autograd has the rest, of a tied embedding."""
    problem = Problem(seed=2)
    shard = student_shard(problem)
    signal = signal_of(problem, ProjectedKL(VocabularyExchange.co_sharded(problem.matrix, shard)), "chain_rule")
    labels, found = problem.batch["student_labels"], {}
    for direct in (False, True):
        hidden = problem.hidden_s.flatten(0, 1).clone().requires_grad_()
        weight = problem.weight_s.clone().requires_grad_()
        weight.main_grad, weight.grad_added_to_main_grad = torch.ones_like(weight), False
        if tied:
            weight.zero_out_wgrad = True
        head = OutputHead(weight, shard, main_grad=weight.main_grad if direct else None)
        terms = cross_tokenizer_loss(ModelOutput(hidden, head), labels, [signal], tile_rows=4)
        (terms.objective + (3 * weight.sum() if tied else 0)).backward()
        assert weight.grad_added_to_main_grad is direct
        if not direct or tied:  # as Megatron's hook of the parameter does
            weight.main_grad += weight.grad
        found[direct] = weight.main_grad, hidden.grad
        with torch.no_grad():  # evaluation leaves it alone
            before = weight.main_grad.clone()
            cross_tokenizer_loss(ModelOutput(hidden, head), labels, [signal], tile_rows=4)
            assert torch.equal(weight.main_grad, before)
    for a, b in zip(found[True], found[False], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-13)


class Optimizer:
    grad_scaler = None

    def scale_loss(self, loss):
        return loss


class Scaling(Optimizer):
    grad_scaler = 1024.0


class Several(Optimizer):
    def __init__(self, *parts):
        self.chained_optimizers = parts


@pytest.mark.parametrize(
    ("change", "direct"),
    [
        ({}, True),
        ({"grad_scale_func": Optimizer().scale_loss}, True),
        ({"grad_scale_func": Several(Optimizer(), Optimizer()).scale_loss}, True),
        ({"fp16": True}, False),
        ({"grad_scale_func": Scaling().scale_loss}, False),
        ({"grad_scale_func": Several(Optimizer(), Scaling()).scale_loss}, False),
    ],
)
def test_where_a_loss_is_scaled_afterwards_autograd_gets_the_gradient(change, direct):
    weight = torch.zeros(4, 2, dtype=torch.bfloat16, requires_grad=True)
    assert main_grad_of(weight, torch.bfloat16, SimpleNamespace()) is None  # no Megatron
    weight.main_grad = torch.zeros(4, 2)
    config = SimpleNamespace(fp16=False, grad_scale_func=None)
    vars(config).update(change)
    assert (main_grad_of(weight, torch.bfloat16, config) is weight.main_grad) == direct
    assert main_grad_of(weight, torch.float64, config) is None
    with torch.no_grad():
        assert main_grad_of(weight, torch.bfloat16, config) is None
    assert main_grad_of(weight.requires_grad_(False), torch.bfloat16, config) is None

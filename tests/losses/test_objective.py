"""CE + scale * KD: what the scale is, and that a global batch gives the same total however it is cut."""

import math

import pytest
import torch

from nemo_xtoken.errors import InputError
from nemo_xtoken.losses.base import LossSum
from nemo_xtoken.losses.objective import DynamicScale, ObjectiveConfig, StepCounts, kd_weight


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
    assert float(scale.within(sums(8, 4), sums(1, 2))) == (8 / 4) / (1 / 2)
    assert float(scale.within(sums(8, 4), sums(0, 2))) == 1  # nothing to divide by
    assert float(scale.within(sums(8, 4), sums(0, 0))) == 1
    assert scale.mean(6.0, 2.0) == 3
    assert scale.mean(6.0, 0.0) == 1


@pytest.mark.parametrize("cut", [[8], [1] * 8, [4, 4], [1, 7], [3, 0, 5]])
@pytest.mark.parametrize("kind", [0.7, "dynamic"])
def test_a_global_batch_gives_the_same_however_it_is_cut(cut, kind):
    random = torch.Generator().manual_seed(5)
    tokens, chunks = (torch.randint(0, 9, (8,), generator=random) for _ in range(2))
    chunks[2] = 0
    ce, kd = (torch.rand(8, generator=random, dtype=torch.float64) * n for n in (tokens, chunks))
    scale = DynamicScale(ObjectiveConfig(scale=kind))
    scale.update(4.0, 3.0)
    counts = StepCounts(int(tokens.sum()), int(chunks.sum()))
    weight = kd_weight(scale.known, counts)
    total = sum(ce[part].sum() + weight * kd[part].sum() for part in torch.arange(8).split(cut))
    factor = 0.7 if kind == 0.7 else 4 / 3
    expected = ce.sum() / counts.tokens + factor * kd.sum() / counts.chunks
    assert float(total) / counts.tokens == pytest.approx(float(expected), rel=1e-12)


def test_without_chunks_the_cross_entropy_is_left():
    assert kd_weight(2.0, StepCounts(4, 0)) == 0


def test_a_bad_budget_is_refused():
    with pytest.raises(InputError, match="tile_mib=0"):
        ObjectiveConfig(tile_mib=0)

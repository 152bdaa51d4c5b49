"""Triton's kernels against torch's: run by test_kernels.py in processes of their own, interpreted or on a GPU.

Whether Triton interprets is settled when it is imported.
"""

import harness
import pytest
import torch
import torch.distributed as dist
from cases import Problem
from ranks import run_ranks

from nemo_xtoken.kernels.reference import TorchKernels
from nemo_xtoken.kernels.tile_kernels import Gather, RowGradient
from nemo_xtoken.kernels.triton_kernels import INTERPRETED, TritonKernels
from nemo_xtoken.losses.base import ModelOutput
from nemo_xtoken.losses.directions import DIRECTIONS
from nemo_xtoken.losses.nrl import NrlProjectedKL
from nemo_xtoken.losses.p_kl import ProjectedKL
from nemo_xtoken.losses.partial_kl import PublishedPartialKL
from nemo_xtoken.losses.same_tokenizer import SameTokenizerKL
from nemo_xtoken.objective.terms import cross_tokenizer_loss
from nemo_xtoken.parallel.exchange import VocabularyExchange
from nemo_xtoken.parallel.head import OutputHead

DEVICE = "cpu" if INTERPRETED else "cuda"
TORCH, TRITON = TorchKernels(), TritonKernels(block=16)
TOLERANCES = {torch.float32: 2e-6, torch.float64: 1e-13}
#: a block; several and a part of one
SIZES = pytest.mark.parametrize(("width", "dtype"), [(16, torch.float32), (37, torch.float64), (37, torch.float32)])


def numbers(*shape, dtype=torch.float64, seed=0):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def probabilities(*shape, dtype=torch.float64, seed=0):
    p = torch.softmax(4 * numbers(*shape, dtype=dtype, seed=seed), 1)
    p[0, ::2] = 0
    return p


def close(a, b, dtype):
    assert a.dtype == b.dtype == dtype
    torch.testing.assert_close(a, b, rtol=20 * TOLERANCES[dtype], atol=TOLERANCES[dtype], equal_nan=True)


@SIZES
@pytest.mark.parametrize("temperature", [1.0, 1.7])
def test_softmax(width, temperature, dtype):
    for padding in (0, 3, width):
        z = 5 * numbers(4, width, dtype=dtype)
        z[1] *= 60  # most probabilities underflow
        z[2, 1] = float("-inf")
        z[:, width - padding :] = float("-inf")
        before, whole = z.clone(), 3 + numbers(4, dtype=dtype)
        found = TRITON.softmax(z, width - padding, temperature)
        for over_ranks in (None, whole):
            wanted = TORCH.softmax(z, width - padding, temperature)
            norm = wanted.norm
            close(found.norm, norm, dtype)
            # a factor of more than 1 has no meaning
            over_ranks = None if over_ranks is None else torch.maximum(norm, over_ranks)
            p = found.probabilities(over_ranks)
            close(p, wanted.probabilities(over_ranks), dtype)
            assert (p[:, width - padding :] == 0).all()
        assert torch.equal(z, before)


def test_softmax_of_what_is_not_a_number_is_none():
    z = numbers(2, 37)
    z[1, 20] = float("nan")
    found = TRITON.softmax(z, 37, 1.0)
    assert found.norm.isnan().tolist() == [False, True]
    assert found.probabilities(None)[1].isnan().all()


@pytest.mark.parametrize("rows", [3, 0])
@pytest.mark.parametrize(("columns", "width"), [(37, 21), (21, 37), (16, 16)])
@pytest.mark.parametrize("disjoint", [True, False])
def test_gather(rows, columns, width, disjoint):
    random = torch.Generator().manual_seed(columns)
    in_place = (torch.rand(columns, generator=random) < 0.5).float()
    order = torch.randperm(width, generator=random)
    if disjoint:
        order = order[(order >= columns) | (in_place[order.clamp_max(columns - 1)] == 0)]
    chosen, constant = order[:4], order[4:6] if disjoint else order[:0]
    slots = torch.full((width,), -1, dtype=torch.int32)
    slots[chosen], slots[constant] = torch.arange(4, dtype=torch.int32), -2
    plan = Gather(width, *(x.to(DEVICE) for x in (in_place, chosen, constant, slots)), disjoint)
    x, table, value = numbers(rows, columns), numbers(4, rows, seed=1), numbers(rows, seed=2)
    for constants in (value, None) if not constant.numel() else (value,):
        found, wanted = (k.gather(x, plan, table, constants) for k in (TRITON, TORCH))
        assert torch.equal(found, wanted)
    empty = Gather(width, plan.in_place, *(plan.columns[:0],) * 2, torch.full_like(plan.slots, -1), disjoint)
    assert torch.equal(TRITON.gather(x, empty, table[:0]), TORCH.gather(x, empty, table[:0]))


@SIZES
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_compare(direction, width, dtype):
    mask = torch.arange(width, device=DEVICE) % 3 > 0
    for masked, coefficients in ((mask, None), (None, None), (mask, 0.1 + numbers(4, dtype=dtype).abs())):
        p, q = probabilities(4, width, dtype=dtype), probabilities(4, width, dtype=dtype, seed=1)
        q[1, 1:3], p[1, 2:4] = 0, 0  # on one side, on the other, on both
        found, wanted = (
            k.compare(DIRECTIONS[direction], p.clone(), q.clone(), masked, coefficients) for k in (TRITON, TORCH)
        )
        close(found.total, wanted.total, dtype)
        for a, b in zip(found[1:], wanted[1:], strict=True):
            assert (a is None) == (b is None)
            if a is not None:
                close(a, b, dtype)


def test_what_is_not_a_number_stays_so():
    p, q = probabilities(3, 37), probabilities(3, 37, seed=1)
    p[0, 20], q[1, 30] = float("nan"), float("nan")
    for direction in DIRECTIONS.values():
        total = TRITON.compare(direction, p.clone(), q.clone(), None, p.new_ones(3)).total
        assert total.isnan().tolist() == [True, True, False]


@SIZES
@pytest.mark.parametrize("temperature", [1.0, 1.7])
@pytest.mark.parametrize("parts", [0, 1, 3])
def test_gradient_by_the_logits(parts, temperature, width, dtype):
    """Rows each with a source of their own, several of one source, and by the logarithm."""
    at = torch.tensor([[0, 2, 5], [1, 2, 3], [5, 0, 4]], device=DEVICE)
    labels = torch.tensor([0, width - 1, -2, width, width + 30, 3], device=DEVICE)
    results = []
    for kernels in (TRITON, TORCH):
        p = probabilities(6, width, dtype=dtype)
        kinds = [
            RowGradient(numbers(3, width, dtype=dtype, seed=2), at[0], p=p[at[0]]),
            RowGradient(numbers(2, width, dtype=dtype, seed=3), at[1], torch.tensor([1, 0, 1], device=DEVICE)),
            RowGradient(numbers(3, width, dtype=dtype, seed=4), at[2], at[2] % 3, by_logarithm=True),
        ]
        waiting = [kernels.through_softmax(kind, p, lambda inner: inner.mul_(2)) for kind in kinds[:parts]]
        by_label, inner = numbers(6, dtype=dtype, seed=5), numbers(6, dtype=dtype, seed=6)
        results.append(kernels.by_logits(p, by_label, inner, labels, temperature, waiting))
    close(*results, dtype)


#: Divergences over the exchange of a problem's W.
DIVERGENCES = {
    "forward": ProjectedKL,
    "reverse": lambda exchange: ProjectedKL(exchange, "reverse"),
    "js": lambda exchange: ProjectedKL(exchange, "js"),
    "top-k": lambda exchange: ProjectedKL(exchange, top_k=5),
    "published": PublishedPartialKL,
    "geometric mean": lambda exchange: NrlProjectedKL(exchange, 5),
}


def whole(problem, name, merge, tau, kernels, group=None):
    def make(shard):
        if name == "same tokenizer":
            divergence = SameTokenizerKL(shard, problem.v_t, "js", kernels=kernels)
        else:
            divergence = DIVERGENCES[name](VocabularyExchange.co_sharded(problem.matrix, shard, kernels))
        return divergence.to(DEVICE)

    return harness.ours(problem, make, merge, tau, 7, group, kernels)


def moved(problem):
    """The problem on the device of the test."""
    for name in ("hidden_s", "weight_s", "hidden_t", "weight_t"):
        setattr(problem, name, getattr(problem, name).to(DEVICE))
    problem.batch = {name: x.to(DEVICE) for name, x in problem.batch.items()}
    return problem


@pytest.mark.parametrize(
    ("name", "merge", "tau"),
    [
        ("forward", "chain_rule", 1.0),
        ("forward", "mean", 2.5),
        ("reverse", "first", 1.7),
        ("top-k", "chain_rule", 1.0),
        ("published", "chain_rule", 1.0),
        ("geometric mean", "first", 1.0),
        ("reverse", "chain_rule", 2.5),
        ("js", "chain_rule", 1.0),
        ("same tokenizer", "mean", 1.0),
        ("same tokenizer", "chain_rule", 1.7),
    ],
)
def test_the_whole_objective(name, merge, tau):
    sizes = {"v_t": 23, "pad_t": 24} if name == "same tokenizer" else {"reach": 0.7}
    problem = moved(Problem(seed=3, b=1, **sizes))
    wanted = whole(problem, name, merge, tau, TORCH)
    harness.compare(whole(problem, name, merge, tau, TRITON), wanted, 1e-11)


@pytest.mark.parametrize(("reach", "empty"), [(1.0, 0.0), (1.0, 0.3), (0.6, 0.0)])
@pytest.mark.parametrize("name", ["forward", "js"])
def test_where_a_side_has_nothing_on_rest(name, reach, empty):
    problem = moved(Problem(seed=5, b=1, reach=reach, empty=empty))
    wanted = whole(problem, name, "chain_rule", 1.0, TORCH)
    harness.compare(whole(problem, name, "chain_rule", 1.0, TRITON), wanted, 1e-11)


@pytest.mark.parametrize("softcap", [None, 3.0])
def test_several_teachers_by_logits_and_by_probabilities(softcap):
    """In one tile, at two temperatures; a student whose logits are scaled and bounded."""
    problem = moved(Problem(seed=6, b=1, reach=0.7))
    shard = harness.student_shard(problem)
    results = []
    for kernels in (TORCH, TRITON):
        made = [
            DIVERGENCES[name](VocabularyExchange.co_sharded(problem.matrix, shard, kernels)).to(DEVICE)
            for name in ("forward", "js", "top-k", "forward")
        ]
        forms = ("chain_rule", 1.0), ("first", 1.7), ("chain_rule", 1.0), ("mean", 1.0)
        signals = [harness.signal_of(problem, d, *form) for d, form in zip(made, forms, strict=True)]
        for taken in (signals, signals[:2], signals[1:2], []) if softcap is None else (signals, []):
            hidden = problem.hidden_s.flatten(0, 1).clone().requires_grad_()
            weight = problem.weight_s.clone().requires_grad_()
            student = ModelOutput(hidden, OutputHead(weight, shard, scale=0.8, softcap=softcap))
            labels = problem.batch["student_labels"]
            weights = [0.5, 0.7, 1.1, 0.3][: len(taken)]
            terms = cross_tokenizer_loss(student, labels, taken, 0.7, weights, 5, kernels)
            terms.objective.backward()
            results.append([terms.objective.detach(), hidden.grad, weight.grad, *(kd.total for kd in terms.kd)])
    half = len(results) // 2
    for found, wanted in zip(results[half:], results[:half], strict=True):
        for a, b in zip(found, wanted, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-11 * float(b.abs().max()))


@pytest.mark.parametrize("kept", [0, 2])
def test_tiles_without_a_chunk_in_distillation_alone(kept):
    """They have no gradient."""
    problem = moved(Problem(seed=6, b=1, reach=0.7))
    problem.batch["chunks"] = problem.batch["chunks"][:kept]
    shard = harness.student_shard(problem)
    results = []
    for kernels in (TORCH, TRITON):
        made = ProjectedKL(VocabularyExchange.co_sharded(problem.matrix, shard, kernels)).to(DEVICE)
        hidden = problem.hidden_s.flatten(0, 1).clone().requires_grad_()
        student = ModelOutput(hidden, OutputHead(problem.weight_s, shard))
        signal = harness.signal_of(problem, made, "chain_rule")
        terms = cross_tokenizer_loss(student, problem.batch["student_labels"], [signal], 0.0, [1.0], 3, kernels)
        terms.objective.backward()
        results.append((terms.objective.detach(), hidden.grad))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
    assert (results[0][1] == 0).all(1).sum() >= len(hidden) // 2


def test_extreme_logits():
    problem = moved(Problem(seed=4, dtype=torch.float32))
    problem.weight_s, problem.weight_t = problem.weight_s * 200, problem.weight_t * 200
    wanted = whole(problem, "forward", "chain_rule", 1.0, TORCH)
    harness.compare(whole(problem, "forward", "chain_rule", 1.0, TRITON), wanted, 1e-5)


def on_rank(problem):
    return whole(problem, "forward", "chain_rule", 1.0, TRITON, dist.group.WORLD)


@pytest.mark.skipif(not INTERPRETED, reason="the ranks talk by gloo")
def test_ranks_equal_one_process():
    problem = Problem(seed=7, pad_s=24, pad_t=40, dtype=torch.float32)
    wanted = whole(problem, "forward", "chain_rule", 1.0, TORCH)
    harness.compare_ranks(run_ranks(2, on_rank, problem), wanted, 1e-5)

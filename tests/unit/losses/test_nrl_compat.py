"""The public losses, value and gradient, against a dense float64 form of what is known of them; in any layout."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch
import torch.distributed as dist
from cases import Problem
from dense import dense_w, largest, nrl_gold, nrl_p_kl, nrl_relaxed
from harness import WEIGHTS, compare, compare_ranks, gradcheck, ours, student_shard, teacher_output
from ranks import run_ranks

from nemo_xtoken.errors import InputError
from nemo_xtoken.losses.nrl import NrlGold, NrlProjectedKL, nrl_exact_pairs, nrl_relaxed_pairs, row_sums
from nemo_xtoken.losses.registry import LOSSES as LOSSES_BY_NAME
from nemo_xtoken.losses.registry import DivergenceOptions, check_options
from nemo_xtoken.parallel.exchange import VocabularyExchange
from nemo_xtoken.projection.matrix import ProjectionMatrix, RawSlots

LOSSES = ("p_kl", "gold", "h_kl")
EITHER_WAY = (*LOSSES, *(f"{loss} reverse" for loss in LOSSES))
#: rows empty and tokens unreached; a teacher with fewer uncommon tokens; nothing in common
PROBLEMS = {"open": {}, "small teacher": {"v_s": 31, "v_t": 12, "pad_s": 32}, "apart": {"empty": 1.0}}


def make_of(problem, loss, k):
    loss, _, way = loss.partition(" ")
    direction = way or "forward"
    if loss == "p_kl":
        return lambda shard: NrlProjectedKL(
            VocabularyExchange.co_sharded(problem.matrix, shard), k, direction=direction
        )
    relaxed = loss == "h_kl"
    common = nrl_relaxed_pairs(problem.matrix) if relaxed else nrl_exact_pairs(problem.matrix)
    return lambda shard: NrlGold(common, shard, k, direction=direction)


def dense(problem, loss, k, tau, w=None, pairs=None):
    """(ce, kd, grad hidden, grad weight) by autograd, in float64; W and pairs are the problem's, where not given."""
    loss, _, way = loss.partition(" ")
    hidden = problem.hidden_s.double().flatten(0, 1).clone().requires_grad_()
    weight = problem.weight_s.double().clone().requires_grad_()
    z_s = (hidden @ weight.T)[:, : problem.v_s].reshape(problem.hidden_s.shape[0], -1, problem.v_s)
    z_t = (problem.hidden_t.double() @ problem.weight_t.double().T)[..., : problem.v_t]
    labels = problem.batch["student_labels"]
    ce = torch.nn.functional.cross_entropy(z_s.flatten(0, 1), labels.flatten(), ignore_index=-100, reduction="sum")
    if loss == "p_kl":
        w = dense_w(problem.matrix, problem.v_s, problem.v_t) if w is None else w
        kd = nrl_p_kl(z_s, z_t, problem.batch, w, k, tau, way == "reverse")
    else:
        exact = nrl_exact_pairs(problem.matrix)
        if pairs is None:
            pairs = list(zip(exact.student.tolist(), exact.teacher.tolist(), strict=True))
            pairs = nrl_relaxed(problem.matrix) if loss == "h_kl" else pairs
        kd = nrl_gold(z_s, z_t, problem.batch, pairs, k, tau, way == "reverse")
    (WEIGHTS[0] * ce + WEIGHTS[1] * kd).backward()
    return ce.item(), kd.item(), hidden.grad.numpy(), weight.grad.numpy()


@pytest.mark.parametrize("loss", EITHER_WAY)
@pytest.mark.parametrize("case", PROBLEMS)
def test_value_and_gradient_equal_the_dense_reference(loss, case):
    problem = Problem(seed=3, **PROBLEMS[case])
    for k, tau in ((5, 1.0), (5, 2.5), (8192, 1.0)):
        got = ours(problem, make_of(problem, loss, k), "chain_rule", tau)  # the merge is not asked for
        compare(got, dense(problem, loss, k, tau), 1e-6 if "p_kl" in loss else 1e-9)  # W is stored in float32


@pytest.mark.parametrize("name", ["nrl_p_kl", "nrl_gold", "nrl_h_kl"])
def test_directions_by_the_option(name):
    assert check_options(name, DivergenceOptions(direction="reverse"))["direction"] == "reverse"
    with pytest.raises(InputError, match="theirs has no other"):
        LOSSES_BY_NAME[name].check(None, check_options(name, DivergenceOptions(direction="js")))


def raw_problem(seed=3, **settings):
    """A problem whose W is made of the slots of a file as NVIDIA's tools leave them, and these as plain lists.

    Slots that name a token with weight 0, a token twice, a weight in the last slot whatever stands there, rows that do
    not sum to 1, rows of weight 1 with and without an empty second slot, in bfloat16.
    """
    problem = Problem(seed=seed, **settings)
    numbers = np.random.default_rng(seed)
    v_s, v_t, k = problem.v_s, problem.v_t, 4
    ids = np.full((v_s, k), -1, np.int32)
    weights = np.zeros((v_s, k), np.float32)
    for s in range(v_s):
        kind = s % 6
        if kind == 0:  # empty
            continue
        a, b, junk = numbers.choice(v_t, 3, replace=False)
        ids[s], weights[s] = {
            1: ([a, -1, -1, -1], [1.0, 0, 0, 0]),  # exact there
            2: ([a, b, -1, -1], [1.0, 0, 0, 0]),  # a second slot: not exact there, a single entry in W
            3: ([a, b, -1, -1], [0.9, 0.09, 0, 0]),  # does not sum to 1
            4: ([a, a, b, -1], [0.41, 0.41, 0.1, 0]),  # .82 together, and no pair there
            5: ([a, b, b, junk], [0.7, 0.1, 0, 0.2]),  # the weight of the scale trick
        }[kind]
    weights = torch.from_numpy(weights).bfloat16().float().numpy()
    merged = np.zeros((v_s, v_t))
    for s, j in itertools.product(range(v_s), range(k)):
        if ids[s, j] >= 0:
            merged[s, ids[s, j]] += weights[s, j]
    sums = merged.sum(1, keepdims=True)
    dense_raw = torch.from_numpy(np.concatenate([merged, np.zeros((v_s, 1))], 1))
    normal = merged / np.where(sums > 0, sums, 1)
    out_ids, out_weights = np.full((v_s, k), -1, np.int32), np.zeros((v_s, k), np.float32)
    for s in range(v_s):
        for j, t in enumerate(np.flatnonzero(normal[s])):
            out_ids[s, j], out_weights[s, j] = t, normal[s, t]
    problem.matrix = ProjectionMatrix(out_ids, out_weights, v_t, "s", "t", raw=RawSlots(ids, weights))
    return problem, ids.tolist(), weights.tolist(), dense_raw


def strict_there(ids, weights):
    """GOLD's pairs, from what is known of theirs: one claim for a teacher token, the smallest student id's."""
    claims = {}
    for s, (row, weight) in enumerate(zip(ids, weights, strict=True)):
        if max(weight) == 1.0 and row[1] == -1:
            claims.setdefault(row[weight.index(max(weight))], s)
    return sorted((s, t) for t, s in claims.items())


def relaxed_there(ids, weights):
    claims = {}
    for s, (row, weight) in enumerate(zip(ids, weights, strict=True)):
        if max(weight) >= 0.6:
            claims.setdefault(row[weight.index(max(weight))], []).append((-max(weight), s))
    return sorted((min(found)[1], t) for t, found in claims.items())


@pytest.mark.parametrize("loss", LOSSES)
def test_on_a_file_of_theirs_it_looks_at_their_slots(loss):
    problem, ids, weights, raw = raw_problem()
    pairs = {"gold": strict_there, "h_kl": relaxed_there}.get(loss, lambda *_: [])(ids, weights)
    if loss != "p_kl":
        found = (nrl_exact_pairs if loss == "gold" else nrl_relaxed_pairs)(problem.matrix)
        assert list(zip(found.student.tolist(), found.teacher.tolist(), strict=True)) == pairs
        without = dataclasses.replace(problem.matrix, raw=None)
        assert len((nrl_exact_pairs if loss == "gold" else nrl_relaxed_pairs)(without).student) > len(pairs) > 0
    for k, tau in ((5, 1.0), (8192, 2.0)):
        make = make_of(problem, loss, k)
        if loss == "p_kl":

            def make(shard, k=k):
                exchange = VocabularyExchange.co_sharded(problem.matrix, shard)
                return NrlProjectedKL(exchange, k, row_sums(problem.matrix, shard))

        want = dense(problem, loss, k, tau, w=raw, pairs=pairs)
        compare(ours(problem, make, "chain_rule", tau), want, 1e-6 if loss == "p_kl" else 1e-9)


def test_the_slots_survive_a_file_of_ours(tmp_path):
    problem, ids, weights, _ = raw_problem()
    problem.matrix.save(tmp_path / "w.safetensors")
    found = ProjectionMatrix.load(tmp_path / "w.safetensors").raw
    assert (found.ids.tolist(), found.weights.tolist()) == (ids, weights)


@pytest.mark.parametrize("loss", EITHER_WAY)
def test_in_float32_it_is_the_same_to_float_precision(loss):
    problem = Problem(seed=3, b=3, dtype=torch.float32)
    compare(ours(problem, make_of(problem, loss, 9), "chain_rule"), dense(problem, loss, 9, 1.0), 1e-5)


def every_kind(problem, group=None):
    return [
        ours(problem, make_of(problem, loss, k), "chain_rule", tau, group=group)
        for loss in EITHER_WAY
        for k, tau in ((5, 1.0), (8192, 2.0))
    ]


def on_rank(problem):
    return every_kind(problem, dist.group.WORLD)


@pytest.mark.parametrize("ranks", [2, 4])
def test_tensor_parallel_ranks_equal_one_process(ranks):
    problem = Problem(seed=7, pad_s=24, pad_t=40)
    results = run_ranks(ranks, on_rank, problem)
    for i, want in enumerate(every_kind(problem)):
        compare_ranks([result[i] for result in results], want, 1e-9)


@pytest.mark.parametrize("loss", EITHER_WAY)
def test_gradcheck_of_the_hand_written_backward(loss):
    problem = Problem(seed=10, b=1, t_s=7, t_t=8, v_s=9, v_t=11, pad_s=10, pad_t=12, h=3)
    assert (problem.batch["chunks"][:, [2, 4]] > 1).any(0).all()
    assert gradcheck(problem, make_of(problem, loss, 4), "chain_rule")


@pytest.mark.parametrize("loss", EITHER_WAY)
def test_extreme_logits_stay_finite(loss):
    problem = Problem(seed=4, dtype=torch.float32)
    problem.weight_s, problem.weight_t = problem.weight_s * 200, problem.weight_t * 200
    for value in ours(problem, make_of(problem, loss, 6), "chain_rule")[:4]:
        assert torch.isfinite(torch.as_tensor(value)).all()


def sets_on_rank(problem, k):
    divergence = make_of(problem, "p_kl", k)(student_shard(problem, dist.group.WORLD))
    output = teacher_output(problem, divergence.ownership, dist.group.WORLD)
    return divergence.tokens[divergence.for_batch(output).kept].tolist()


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_the_set_is_that_of_the_largest_logits_of_all_positions(ranks):
    """Equal logits too: the smaller ids are in it, wherever they lie.  Positions outside of chunks count."""
    problem = Problem(seed=2, pad_s=24, pad_t=32)
    problem.hidden_t, problem.weight_t = problem.hidden_t.round(), problem.weight_t.round()  # products without error
    problem.weight_t[5:20] = problem.weight_t[5]  # 15 tokens that tie
    z = (problem.hidden_t @ problem.weight_t.T)[..., : problem.v_t]
    for k in (1, 6, 10, 31):
        want, _ = largest(z.flatten(0, 1).max(0).values, range(problem.v_t), k)
        results = run_ranks(ranks, sets_on_rank, problem, k)
        assert sorted(itertools.chain(*results)) == sorted(want)


def test_a_token_that_no_position_ranks_high_is_not_compared():
    """The one set of the micro-batch is the point: what the student does elsewhere is not seen by the loss."""
    problem = Problem(seed=3, dtype=torch.float64)
    _, _, _, gradient, metrics = ours(problem, make_of(problem, "p_kl", 2), "chain_rule")
    assert metrics["student_left_out"] > 1
    assert np.isfinite(gradient).all()


def test_the_mean_of_logarithms_can_be_negative():
    """Chunks of several teacher tokens that disagree: their geometric mean sums to far less than 1."""
    problem = Problem(seed=3)
    problem.weight_t = problem.weight_t * 4
    chunks = problem.batch["chunks"]
    problem.batch["chunks"] = chunks[chunks[:, 4] > 1]
    problem.weight_s = problem.weight_s * 0.01
    values = [ours(problem, make_of(problem, loss, 8192), "chain_rule")[4] for loss in ("gold", "h_kl")]
    assert min(value["partial_kl"] for value in values) < 0


def test_pairs_of_h_kl_need_a_weight_of_six_tenths():
    problem = Problem(seed=5, v_s=60, pad_s=64, v_t=40, pad_t=40)
    problem.matrix.weights[:7] *= np.float32(0.6)
    problem.matrix.weights[7:14] *= np.float32(0.59)
    common = nrl_relaxed_pairs(problem.matrix)
    got = list(zip(common.student.tolist(), common.teacher.tolist(), strict=True))
    assert got == nrl_relaxed(problem.matrix, np.float32(0.6))
    assert len(got) > len(nrl_exact_pairs(problem.matrix))
    assert not any(7 <= s < 14 and problem.matrix.weights[s].max() < 0.6 for s, _ in got)

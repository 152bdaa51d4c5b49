"""Several teachers in one pass: the sum of separate passes, value and gradient; how sure each is, and its weight."""

import math

import pytest
import torch
import torch.distributed as dist
from cases import Problem
from harness import close, student_shard, teacher_output
from ranks import run_ranks

from nemo_xtoken.errors import InputError
from nemo_xtoken.losses.base import ChunkLossConfig, ModelOutput, TeacherSignal
from nemo_xtoken.losses.h_kl import HybridKL
from nemo_xtoken.losses.nrl import nrl_exact_pairs
from nemo_xtoken.losses.p_kl import ProjectedKL
from nemo_xtoken.losses.same_tokenizer import SameTokenizerKL
from nemo_xtoken.objective import tiles
from nemo_xtoken.objective.fused_pass import FusedPass
from nemo_xtoken.objective.teacher_weights import STATISTICS, TeacherWeights
from nemo_xtoken.objective.terms import cross_tokenizer_loss
from nemo_xtoken.parallel.exchange import VocabularyExchange
from nemo_xtoken.parallel.head import OutputHead

V_S = 23
ALPHAS = 0.8, 0.35, 1.4
CONFIGS = ChunkLossConfig("chain_rule", 1.0), ChunkLossConfig("mean", 2.5), ChunkLossConfig("first", 1.3)


def problems():
    """One student; three teachers with other vocabularies, lengths and chunks, the last with the student's tokens."""
    found = [
        Problem(seed=1, v_s=V_S),
        Problem(seed=2, v_s=V_S, v_t=41, pad_t=44, t_t=13),
        Problem(seed=3, v_s=V_S, v_t=V_S, t_t=9, pad_t=28),
    ]
    same = found[2].batch
    same["chunks"] = torch.tensor([[i, t, 1, t, 1] for i in range(2) for t in range(8)])
    for problem in found:
        problem.hidden_s, problem.weight_s = found[0].hidden_s, found[0].weight_s
        problem.batch["student_labels"] = found[0].batch["student_labels"]
    same["teacher_labels"] = same["student_labels"]
    return found


def divergences(found, shard):
    strict = nrl_exact_pairs(found[1].matrix)
    return [
        ProjectedKL(VocabularyExchange.co_sharded(found[0].matrix, shard)),
        HybridKL(strict, found[1].matrix, shard),
        SameTokenizerKL(shard, V_S),
    ]


def one_pass(which, ce_weight=1.0, group=None, statistic=None, tile_rows=4):
    """(sums, gradients of hidden states and of the weight) with the teachers of these numbers."""
    found = problems()
    ranks, rank = (1, 0) if group is None else (dist.get_world_size(group), dist.get_rank(group))
    shard = student_shard(found[0], group)
    signals = [
        TeacherSignal(
            teacher_output(found[n], divergence.ownership, group),
            found[n].batch["teacher_labels"],
            found[n].batch["chunks"],
            divergence,
            CONFIGS[n],
            statistic=statistic,
        )
        for n, divergence in enumerate(divergences(found, shard))
        if n in which
    ]
    hidden = found[0].hidden_s.flatten(0, 1).clone().requires_grad_()
    weight = found[0].weight_s.chunk(ranks)[rank].clone().requires_grad_()
    student = ModelOutput(hidden, OutputHead(weight, shard))
    labels, alphas = found[0].batch["student_labels"], [ALPHAS[n] for n in which]
    terms = cross_tokenizer_loss(student, labels, signals, ce_weight, alphas, tile_rows)
    terms.objective.backward()
    sums = {"objective": terms.objective.detach(), "ce": terms.ce.total}
    for n, kd in zip(which, terms.kd, strict=True):
        sums |= {f"kd{n}": kd.total} | {f"{name}{n}": value for name, value in kd.metrics.items()}
    return {n: float(x) for n, x in sums.items() if "exchange" not in n}, hidden.grad.numpy(), weight.grad.numpy()


def on_rank(which, statistic):
    return one_pass(which, group=dist.group.WORLD, statistic=statistic)


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("which", [(0, 1), (1, 2), (0, 1, 2)])
def test_one_pass_is_the_sum_of_separate_passes(which, ranks):
    alone = [one_pass(()), *(one_pass((n,), ce_weight=0.0) for n in which)]
    results = [one_pass(which)] if ranks == 1 else run_ranks(ranks, on_rank, which, None)
    for sums, by_hidden, _ in results:
        close(sums["objective"], sum(a[0]["objective"] for a in alone), 1e-10, "objective")
        for n, (found, *_) in zip(which, alone[1:], strict=True):
            close(sums[f"kd{n}"], found[f"kd{n}"], 1e-10, f"teacher {n}")
        close(by_hidden, sum(a[1] for a in alone), 1e-10, "gradient of hidden states")
    whole = torch.cat([torch.as_tensor(r[2]) for r in results])
    close(whole, sum(a[2] for a in alone), 1e-10, "gradient of the weight")


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("tile_rows", [5, 100])
def test_a_tile_may_be_compared_by_parts(rows, tile_rows, monkeypatch):
    """Whose logits are made at once, of the student and of teachers at several temperatures."""
    want = one_pass((0, 1, 2), tile_rows=100)
    monkeypatch.setattr(tiles, "BLOCK_BYTES", rows * 8 * problems()[0].weight_s.shape[0])
    compared, original = [], FusedPass._tile

    def tile(self, which, *others):
        compared.append(which.rows.stop - which.rows.start)
        return original(self, which, *others)

    monkeypatch.setattr(FusedPass, "_tile", tile)
    made, logits = [], OutputHead.logits
    monkeypatch.setattr(OutputHead, "logits", lambda self, hidden: (made.append(hidden), logits(self, hidden))[1])
    found = one_pass((0, 1, 2), tile_rows=tile_rows)
    for name, value in want[0].items():
        close(found[0][name], value, 1e-12, name)
    for a, b in zip(found[1:], want[1:], strict=True):
        close(a, b, 1e-12)
    assert len(compared) > len(made) / 4  # of each tile the student's and up to three teachers' logits
    if tile_rows == 100:
        assert len(made) == 4


@pytest.mark.parametrize("name", STATISTICS)
def test_statistics_are_those_of_the_teachers_positions(name):
    """At temperature 1, whatever the loss's is, over the positions in chunks; the same on two ranks and in any tile."""
    results = [one_pass((0, 1, 2), statistic=name, tile_rows=rows) for rows in (1, 4, 100)]
    results += run_ranks(2, on_rank, (0, 1, 2), name)
    for n, problem in enumerate(problems()):
        log_p = torch.log_softmax((problem.hidden_t @ problem.weight_t.T)[..., : problem.v_t], -1)
        want = tokens = 0.0
        for i, _, student_tokens, first, count in problem.batch["chunks"].tolist():
            rows, labels = log_p[i, first : first + count], problem.batch["teacher_labels"][i, first : first + count]
            values = {
                "cross_entropy": -rows[torch.arange(count), labels],
                "entropy": -(rows.exp() * rows).sum(1),
                "confidence": rows.amax(1),
            }
            want += float(values[name].sum())
            tokens += student_tokens
        for sums, *_ in results:
            assert sums[f"statistic{n}"] == pytest.approx(want, rel=1e-9)
            assert sums[f"statistic_tokens{n}"] == tokens


def test_static_weights_are_taken_as_they_are():
    weights = TeacherWeights("static", {"a": 0.8, "b": 0.7})
    assert weights.statistic is None
    assert weights.alphas == (0.8, 0.7)
    assert weights.weighted({"a": 2.0, "b": 10.0}) == pytest.approx(8.6)
    assert weights.weighted({"b": 10.0}) == pytest.approx(7.0)


@pytest.mark.parametrize(
    ("kind", "sums", "scores"),
    [
        ("cross_entropy", {"a": (30.0, 10), "b": (20.0, 20)}, {"a": -3.0, "b": -1.0}),
        ("entropy", {"a": (30.0, 10), "b": (20.0, 20)}, {"a": -3.0, "b": -1.0}),
        ("confidence", {"a": (-7.0, 10), "b": (-2.0, 10)}, {"a": math.exp(-0.7), "b": math.exp(-0.2)}),
    ],
)
def test_adaptive_weights_are_the_softmax_of_the_scores(kind, sums, scores):
    weights = TeacherWeights(kind, {"a": 1.0, "b": 1.0})
    assert weights.alphas == (0.5, 0.5)  # nothing is known yet
    found = {name: weights.score(*values) for name, values in sums.items()}
    assert found == pytest.approx(scores)
    weights.update(found)
    odds = math.exp(scores["b"] - scores["a"])
    assert weights.alphas == pytest.approx((1 / (1 + odds), odds / (1 + odds)))
    weights.update({"a": -500.0, "b": 300.0})  # no overflow
    assert weights.alphas == pytest.approx((0.0, 1.0))
    weights.update({})  # a step without chunks
    assert weights.alphas == pytest.approx((0.0, 1.0))


def test_a_teachers_own_weight_is_its_factor_in_the_softmax():
    weights = TeacherWeights("entropy", {"a": 3.0, "b": 1.0})
    assert weights.alphas == (0.75, 0.25)
    weights.update({"a": -2.0})  # of b nothing is known yet
    assert weights.alphas == (0.75, 0.25)
    weights.update({"b": -2.0})
    assert weights.alphas == pytest.approx((0.75, 0.25))


def test_the_state_comes_back_for_the_same_teachers_alone():
    weights = TeacherWeights("entropy", {"a": 3.0, "b": 1.0})
    weights.update({"a": -1.0, "b": -2.5})
    for kind, names, back in (("entropy", "ab", True), ("entropy", "ac", False), ("confidence", "ab", False)):
        other = TeacherWeights(kind, dict.fromkeys(names, 1.0))
        other.load_state_dict(weights.state_dict())
        assert other.scores == (weights.scores if back else {})


@pytest.mark.parametrize("weight", [0.0, -1.0, math.nan, math.inf])
def test_weights_that_are_none(weight):
    with pytest.raises(InputError, match="for the teacher 'b'"):
        TeacherWeights("static", {"a": 1.0, "b": weight})
    with pytest.raises(InputError, match="teacher_weights='loss'"):
        TeacherWeights("loss", {"a": 1.0})

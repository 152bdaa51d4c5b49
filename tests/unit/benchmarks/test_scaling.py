"""The terms of the estimate on paper against counters of real runs: FLOPs and bytes, exactly."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from ranks import run_ranks
from torch.utils.flop_counter import FlopCounterMode

ROOT = Path(__file__).resolve().parents[3]

import scaling  # noqa: E402
from cases import Problem  # noqa: E402
from harness import signal_of, student_shard  # noqa: E402

from nemo_xtoken.losses.base import ModelOutput  # noqa: E402
from nemo_xtoken.losses.gold import Gold  # noqa: E402
from nemo_xtoken.losses.nrl import nrl_exact_pairs  # noqa: E402
from nemo_xtoken.losses.p_kl import ProjectedKL  # noqa: E402
from nemo_xtoken.losses.sorted_l1 import DEFAULT_CAP, UniversalLogitDistance  # noqa: E402
from nemo_xtoken.objective.terms import cross_tokenizer_loss  # noqa: E402
from nemo_xtoken.parallel.exchange import VocabularyExchange  # noqa: E402
from nemo_xtoken.parallel.head import OutputHead  # noqa: E402
from nemo_xtoken.run.estimates.loss_traffic import COMMON, SORTED_CAP, LossTraffic, traffic_of  # noqa: E402

CAP = 2  # values of a side that are compared one by one: fewer than any rank has
LOSSES = {
    "p_kl": lambda problem, shard: ProjectedKL(VocabularyExchange.co_sharded(problem.matrix, shard)),
    "gold": lambda problem, shard: Gold(nrl_exact_pairs(problem.matrix), shard, cap=CAP),
    "uld": lambda problem, shard: UniversalLogitDistance(shard, problem.v_t, cap=CAP),
}
TRAFFIC = {
    "p_kl": COMMON,
    "gold": LossTraffic(0, 0, sorted_shares=(1, 1), exchanges=False),
    "uld": LossTraffic(0, 0, sorted_shares=(1, 1), summed=3, exchanges=False),
}
KINDS = {"all_to_all_single": 1, "all_gather_into_tensor": 1, "all_reduce": 0}  # which argument is sent


def in_place(_self, a, b, **_kwargs):
    """FLOPs of ``addmm_``, which torch's counter does not know, from the shapes it gives."""
    return 2 * a[0] * a[1] * b[1]


def counted(loss, tp_run=True):
    """FLOPs, bytes by collective, and the sizes that the formulas take, of one micro-batch on this rank."""
    group = dist.group.WORLD if tp_run else None
    ranks, rank = (dist.get_world_size(), dist.get_rank()) if tp_run else (1, 0)
    problem = Problem(seed=1, b=3, pad_s=32, pad_t=32, dtype=torch.float32)
    shard = student_shard(problem, group)
    divergence = LOSSES[loss](problem, shard)
    signal = signal_of(problem, divergence, "chain_rule", group=group)
    hidden = problem.hidden_s.flatten(0, 1).clone().requires_grad_()
    weight = problem.weight_s.chunk(ranks)[rank].clone().requires_grad_()
    student = ModelOutput(hidden, OutputHead(weight, shard))
    sent = dict.fromkeys(KINDS, 0)

    def counting(name, call):
        def wrapped(*args, **kwargs):
            x = args[KINDS[name]]
            sent[name] += x.numel() * x.element_size()
            return call(*args, **kwargs)

        return wrapped

    originals = {name: getattr(dist, name) for name in KINDS}
    try:
        for name, call in originals.items():
            setattr(dist, name, counting(name, call))
        with FlopCounterMode(display=False, custom_mapping={torch.ops.aten.addmm_: in_place}) as counter:
            cross_tokenizer_loss(student, problem.batch["student_labels"], [signal], tile_rows=5).objective.backward()
    finally:
        for name, call in originals.items():
            setattr(dist, name, call)
    exchange = getattr(divergence, "exchange", None)
    sizes = scaling.LossSizes(
        rows=int((problem.batch["student_labels"] != -100).sum()),
        teacher_rows=int(signal.chunks[:, 4].sum()),
        chunks=signal.chunks.shape[0],
        positions=hidden.shape[0],
        student_hidden=hidden.shape[1],
        teacher_hidden=signal.output.hidden.shape[1],
        student_columns=weight.shape[0],
        teacher_columns=signal.output.head.weight.shape[0],
        tp=ranks,
        crossing=0.0 if exchange is None else float(exchange.crossing[rank]),
        returning=0.0 if exchange is None else float(sum(exchange.received)),
        traffic=TRAFFIC[loss],
        cap=CAP,
    )
    by_operation = counter.get_flop_counts()["Global"]
    products = sum(n for operation, n in by_operation.items() if "mm" in str(operation))
    return products, sent, sizes


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_flops_and_bytes_are_those_of_the_formulas(ranks, loss):
    results = [counted(loss, False)] if ranks == 1 else run_ranks(ranks, counted, loss)
    for flops, sent, sizes in results:
        assert flops == sizes.flops
        assert sent["all_to_all_single"] == sizes.exchanged
        assert sent["all_gather_into_tensor"] == sizes.gathered
        assert sent["all_reduce"] == sizes.reduced
        assert (ranks > 1) == (sizes.wire > 0)


def test_the_estimates_know_how_these_losses_send():
    assert SORTED_CAP == DEFAULT_CAP
    for loss, by in TRAFFIC.items():
        own = traffic_of(loss)
        assert (own.summed, own.exchanges, own.largest > 0) == (by.summed, by.exchanges, loss != "p_kl")


def test_the_estimate_is_of_the_right_size():
    """Published parameter counts, shares that add up, and what must and must not depend on the layout."""
    published = {
        scaling.LLAMA_1B: 1.24,
        scaling.LLAMA_8B: 8.03,
        scaling.QWEN_4B: 4.02,
        scaling.QWEN_14B: 14.8,
        scaling.QWEN_32B: 32.8,
        scaling.QWEN_30B_A3B: 30.5,
    }
    for model, billions in published.items():
        assert model.parameters / 1e9 == pytest.approx(billions, rel=0.01)
    for job in scaling.jobs():
        estimate = scaling.estimate(job, scaling.Gpu())
        assert estimate["student"] + estimate["teacher"] + estimate["loss"] == pytest.approx(1)
        assert estimate["fits"]
        assert estimate["exchange_bytes"] <= 0.05 * estimate["dense_bytes"]
        assert len(scaling.row(job, scaling.Gpu())) == len(scaling.HEADINGS)
    one, eight = (scaling.estimate(scaling.jobs()[i], scaling.Gpu()) for i in (1, 2))
    assert one["loss"] == pytest.approx(eight["loss"])

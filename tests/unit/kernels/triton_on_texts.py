"""The fused passes on texts of small tokenizers, interpreted; run by test_kernels.py in a process of its own."""

import harness
import pytest
import torch
import torch.distributed as dist
from loss_counts import TEXTS, counts_of, seconds_on_h100
from ranks import run_ranks
from tokenizer_zoo import zoo

from nemo_xtoken.kernels.reference import TORCH
from nemo_xtoken.kernels.triton_kernels import INTERPRETED, TritonKernels
from nemo_xtoken.objective.cross_tokenizer import CrossTokenizerLoss

assert INTERPRETED


def numbers(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def on_texts(pair, loss, kernels, merge="chain_rule", tau=1.0, group=None):
    """Objective, gradients and metrics of texts with chunks of one and of several tokens.

    Args:
        pair: the vocabularies; ranks that train some of their own may get others.
    """
    student, teacher = pair
    made = CrossTokenizerLoss(
        student, teacher, loss, scale=1.3, temperature=tau, merge=merge, kernels=kernels, group=group
    )
    batch = made.batch([TEXTS[0][:30]])  # each position takes the interpreter a tenth of a second
    ranks, rank = (1, 0) if group is None else (dist.get_world_size(group), dist.get_rank(group))
    padded = [-(-v.size // 4) * 4 + 4 for v in (student, teacher)]
    weight = numbers(padded[0], 6).chunk(ranks)[rank].clone().requires_grad_()
    theirs = numbers(padded[1], 6, seed=1).chunk(ranks)[rank]
    hidden = numbers(*batch.student_tokens.shape, 6, seed=2).requires_grad_()
    made(batch, hidden, numbers(*batch.teacher_tokens.shape, 6, seed=3), weight, theirs).backward()
    terms = made.terms
    metrics = {name: float(value) for name, value in terms.kd[0].metrics.items() if name != "exchange_bytes"}
    return (
        terms.ce.total.item(),
        terms.kd[0].total.item(),
        hidden.grad.cpu().numpy(),
        weight.grad.cpu().numpy(),
        metrics,
    )


def prefix_on_rank(pair, kernels):
    return on_texts(pair, "prefix_kl", kernels, tau=1.7, group=dist.group.WORLD)


def test_ranks_equal_one_process_and_torch():
    pair = zoo()["tiktoken"], zoo()["sp_unigram"]
    wanted = on_texts(pair, "prefix_kl", TORCH, tau=1.7)
    assert wanted[4]["by_leaves"] > 2
    harness.compare_ranks([on_texts(pair, "prefix_kl", TritonKernels(block=512), tau=1.7)], wanted, 1e-10)
    harness.compare_ranks(run_ranks(2, prefix_on_rank, pair, TritonKernels(block=512)), wanted, 1e-9)


#: operations, waits for the device, passes over the student's and over the teacher's tile.
MOST = {
    "p_kl": (15, 0, 5, 3),
    "prefix_kl": (23, 0, 5, 4),
    "h_kl": (20, 0, 10, 8),
    "gold": (20, 0, 10, 8),
    "uld": (18, 0, 10, 7),
    "strict_1to1": (16, 0, 8, 3),
    "csd": (19, 0, 5, 3),
    "bpm": (21, 0, 5, 4),
}
#: How often the time of the products.
LONGEST = {"p_kl": 1.5, "prefix_kl": 1.6, "strict_1to1": 1.6, "csd": 1.5, "bpm": 1.6}


@pytest.mark.parametrize("loss", MOST)
def test_what_a_tile_is_made_of(loss):
    found = counts_of(loss, zoo()["llama"], zoo()["qwen"], TEXTS[:1], TritonKernels())
    figures = [found[name] for name in ("operations", "waits", "student_passes", "teacher_passes")]
    assert all(0 <= here <= most for here, most in zip(figures, MOST[loss], strict=True)), (figures, found["most"])
    whole, products = seconds_on_h100(found)
    assert whole <= products * LONGEST.get(loss, 2.2)

"""ALM against chunk likelihoods written out in dense float64 torch."""

import pytest
import torch
import torch.distributed as dist
from cases import Problem
from harness import WEIGHTS, compare, compare_ranks, gradcheck, ours
from hypothesis import given, settings
from hypothesis import strategies as st
from ranks import run_ranks
from tokenizer_zoo import zoo

from nemo_xtoken.alignment.aligner import Aligner
from nemo_xtoken.losses.alm import ChunkLikelihood, UnbiasedEnds
from nemo_xtoken.losses.directions import bernoulli_kl


def make(problem, power=1.0):
    return lambda shard: ChunkLikelihood(shard, problem.v_t, power)


def dense(problem, tau=1.0, power=1.0):
    hidden = problem.hidden_s.double().flatten(0, 1).clone().requires_grad_()
    weight = problem.weight_s.double().clone().requires_grad_()
    z_s = (hidden @ weight.T)[:, : problem.v_s].reshape(problem.hidden_s.shape[0], -1, problem.v_s)
    z_t = (problem.hidden_t.double() @ problem.weight_t.double().T)[..., : problem.v_t]
    labels = problem.batch["student_labels"], problem.batch["teacher_labels"]
    ce = torch.nn.functional.cross_entropy(z_s.flatten(0, 1), labels[0].flatten(), ignore_index=-100, reduction="sum")
    kd = 0.0
    for i, a, n, c, m in problem.batch["chunks"].tolist():
        p, q = (
            torch.stack([torch.softmax(z[i, t] / tau, 0)[x[i, t]] for t in range(start, start + count)]).prod()
            ** (1 / power)
            for z, x, start, count in ((z_t, labels[1], c, m), (z_s, labels[0], a, n))
        )
        kd = kd + tau**2 * (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log())
    (WEIGHTS[0] * ce + WEIGHTS[1] * kd).backward()
    return ce.item(), kd.item(), hidden.grad.numpy(), weight.grad.numpy()


@pytest.mark.parametrize(("tau", "power"), [(1.0, 1.0), (2.5, 1.0), (1.0, 100.0), (2.5, 7.0)])
def test_equals_the_dense_reference(tau, power):
    for seed in range(3):
        problem = Problem(seed)
        compare(ours(problem, make(problem, power), "first", tau), dense(problem, tau, power), 1e-9)


def test_gradcheck():
    problem = Problem(4, b=1, h=3)
    assert gradcheck(problem, make(problem, 3.0), "first")


def on_rank(problem):
    return ours(problem, make(problem), "first", group=dist.group.WORLD)


def test_tensor_parallel_ranks_equal_one_process():
    problem = Problem(1)
    compare_ranks(run_ranks(2, on_rank, problem), ours(problem, make(problem), "first"), 1e-9)


def test_zero_and_still_where_likelihoods_agree():
    problem = Problem(2, v_t=23, pad_t=24)
    problem.hidden_t, problem.weight_t = problem.hidden_s, problem.weight_s
    problem.batch["teacher_labels"] = problem.batch["student_labels"]
    problem.batch["chunks"][:, 3:] = problem.batch["chunks"][:, 1:3]
    got = ours(problem, make(problem), "first")
    assert abs(got[1]) < 1e-12


@given(m=st.lists(st.floats(1e-30, 1), min_size=2, max_size=2), power=st.sampled_from([1.0, 10.0, 100.0]))
@settings(deadline=None, max_examples=100)
def test_never_negative(m, power):
    log = torch.tensor(m, dtype=torch.float64).log() / power
    value, slope = bernoulli_kl(log[:1], log[1:])
    assert value.item() > -1e-12
    assert torch.isfinite(slope).all()


def joined(ends, student_labels, teacher_labels, chunks):
    """Chunk after chunk: one that follows the last goes on with it unless both its first tokens open something."""
    found = []
    for sample, a, n, c, m in chunks.tolist():
        opens = ends.student[student_labels[sample, a]] and ends.teacher[teacher_labels[sample, c]]
        if found and not opens and (sample, a, c) == (found[-1][0], sum(found[-1][1:3]), sum(found[-1][3:])):
            found[-1][2] += n
            found[-1][4] += m
        else:
            found.append([sample, a, n, c, m])
    return torch.tensor(found, dtype=torch.int64).reshape(-1, 5)


def test_chunks_end_where_both_sides_open_something():
    student, teacher = zoo()["llama"], zoo()["qwen"]
    ends = UnbiasedEnds(student, teacher)
    text = "It was 201, not 37.\nThe counter(s) said 2 0 1"
    ids = [v.encode(text) for v in (student, teacher)]
    found = torch.from_numpy(Aligner(student, teacher).align(*ids).astype("int64"))
    sizes = found[:, [1, 3]] - found[:, [0, 2]]
    zero = torch.zeros(len(found), dtype=torch.int64)
    chunks = torch.stack([zero, found[:, 0], sizes[:, 0], found[:, 2], sizes[:, 1]], 1)
    labels = [torch.from_numpy(x.astype("int64"))[None] for x in ids]
    whole = ends(*labels, chunks)
    assert torch.equal(whole, joined(ends, *labels, chunks))
    texts = [student.decode_bytes(ids[0][a : a + n]) for _, a, n, _, _ in whole.tolist()]
    assert texts == [teacher.decode_bytes(ids[1][c : c + m]) for _, _, _, c, m in whole.tolist()]
    assert b"".join(texts) == text.encode()
    assert texts[:3] == [b"It", b" was", b" 201,"]
    assert ends(*labels, chunks[:0]).shape == (0, 5)
    apart = chunks[torch.arange(len(chunks)) % 3 > 0]  # chunks that do not follow each other are not joined
    assert torch.equal(ends(*labels, apart), joined(ends, *labels, apart))
    assert len(apart) > len(ends(*labels, apart)) > len(whole) // 2

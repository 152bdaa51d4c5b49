"""Runs a divergence through the tiled pass, sharded over ranks or not, and its dense reference through autograd."""

import torch
import torch.distributed as dist
from dense import chunk_losses

from nemo_xtoken.losses.base import ModelOutput
from nemo_xtoken.losses.chunks import ScoredRows
from nemo_xtoken.losses.cross_tokenizer import AlignedLabels, ChunkLossConfig, cross_tokenizer_loss
from nemo_xtoken.losses.tiles import tiled_terms
from nemo_xtoken.parallel.head import OutputHead
from nemo_xtoken.parallel.layout import VocabularyShard

WEIGHTS = (0.7, 1.3)  # of cross-entropy and distillation, so that a swapped gradient shows
NAMES = ("cross-entropy", "distillation", "gradient by hidden", "gradient by weight")


def shards_of(problem, group=None):
    """The layouts of the student's and the teacher's output layer."""
    return (
        VocabularyShard(problem.v_s, problem.weight_s.shape[0], group),
        VocabularyShard(problem.v_t, problem.weight_t.shape[0], group),
    )


def ours(problem, make, merge, tau=1.0, tile_rows=4, group=None):
    """(ce, kd, grad hidden, grad weight, metrics) under ``make(student shard, teacher shard)``."""
    ranks, rank = (1, 0) if group is None else (dist.get_world_size(group), dist.get_rank(group))
    student_shard, teacher_shard = shards_of(problem, group)
    hidden = problem.hidden_s.flatten(0, 1).clone().requires_grad_()
    weight = problem.weight_s.chunk(ranks)[rank].clone().requires_grad_()
    student = ModelOutput(hidden, OutputHead(weight, student_shard))
    teacher_weight = problem.weight_t.chunk(ranks)[rank]
    teacher = ModelOutput(problem.hidden_t.flatten(0, 1), OutputHead(teacher_weight, teacher_shard))
    divergence = make(student_shard, teacher_shard)
    config = ChunkLossConfig(merge, tau, tile_rows)
    ce, kd = cross_tokenizer_loss(student, AlignedLabels(**problem.batch), teacher, divergence, config)
    (WEIGHTS[0] * ce.total + WEIGHTS[1] * kd.total).backward()
    metrics = {name: float(value) for name, value in kd.metrics.items()}
    return ce.total.item(), kd.total.item(), hidden.grad.numpy(), weight.grad.numpy(), metrics


def reference(problem, divergence, merge, tau=1.0):
    """(ce, kd, grad hidden, grad weight) with ``divergence(p_s [V_S], p_t [V_T])`` in plain autograd."""
    hidden = problem.hidden_s.double().flatten(0, 1).clone().requires_grad_()
    weight = problem.weight_s.double().clone().requires_grad_()
    z_s = (hidden @ weight.T)[:, : problem.v_s].reshape(problem.hidden_s.shape[0], -1, problem.v_s)
    z_t = (problem.hidden_t.double() @ problem.weight_t.double().T)[..., : problem.v_t]
    ce, kd = chunk_losses(z_s, z_t, problem.batch, divergence, merge, tau)
    (WEIGHTS[0] * ce + WEIGHTS[1] * kd).backward()
    return ce.item(), kd.item(), hidden.grad.numpy(), weight.grad.numpy()


def close(a, b, rtol=1e-9, what=""):
    a, b = torch.as_tensor(a).double(), torch.as_tensor(b).double()
    torch.testing.assert_close(a, b, rtol=rtol, atol=rtol * float(b.abs().max()), msg=lambda m: f"{what}: {m}")


def compare(got, want, rtol):
    """Values and gradients of one process."""
    for name, a, b in zip(NAMES, got[:4], want[:4], strict=True):
        close(a, b, rtol, name)


def compare_ranks(results, want, rtol):
    """The ranks' results, of which the gradient by the weight is in parts, with those of one process."""
    for got in results:
        for i in range(3):
            close(got[i], want[i], rtol, NAMES[i])
        if len(want) > 4:
            assert got[4].keys() == want[4].keys()
            for name, value in want[4].items():
                assert abs(got[4][name] - value) <= rtol * max(1.0, abs(value)), name
    close(torch.cat([torch.as_tensor(got[3]) for got in results]), want[3], rtol, NAMES[3])


def gradcheck(problem, make, merge, tau=1.7):
    """The hand-written backward against finite differences."""
    student_shard, teacher_shard = shards_of(problem)
    divergence = make(student_shard, teacher_shard)
    teacher = ModelOutput(problem.hidden_t.flatten(0, 1), OutputHead(problem.weight_t, teacher_shard))
    labels = AlignedLabels(**problem.batch)

    def f(hidden, weight):
        student = ModelOutput(hidden, OutputHead(weight, student_shard))
        ce, kd = cross_tokenizer_loss(student, labels, teacher, divergence, ChunkLossConfig(merge, tau, 3))
        return ce.total, kd.total

    hidden = problem.hidden_s.flatten(0, 1).clone().requires_grad_()
    return torch.autograd.gradcheck(f, (hidden, problem.weight_s.clone().requires_grad_()))


def logit_gradient(divergence, p_student_logits, p_teacher, shard):
    """(value [k], gradient [k, V] by the student's logits) of a divergence alone (identity as output layer)."""
    n, v = p_student_logits.shape
    z = p_student_logits.clone().requires_grad_()
    rows = torch.arange(n)
    scored = ScoredRows(rows, torch.zeros(n, dtype=torch.int64), rows, torch.ones(n, dtype=torch.int64), rows)
    student = ModelOutput(z, OutputHead(torch.eye(v, dtype=z.dtype), shard))
    v_t = p_teacher.shape[1]
    head = OutputHead(torch.eye(v_t, dtype=z.dtype), VocabularyShard(v_t, v_t))
    terms = tiled_terms(student, scored, ModelOutput(p_teacher.log(), head), scored, divergence, "first")
    (gradient,) = torch.autograd.grad(terms.divergence.sum(), z)
    return terms.divergence.detach(), gradient

"""Runs a divergence through the tiled pass, sharded over ranks or not, and its dense reference through autograd."""

import torch
import torch.distributed as dist
from dense import chunk_losses

from nemo_xtoken.kernels.reference import TORCH
from nemo_xtoken.losses.base import ChunkLossConfig, ModelOutput, TeacherSignal
from nemo_xtoken.objective.terms import cross_tokenizer_loss
from nemo_xtoken.parallel.head import FreeLogits, OutputHead
from nemo_xtoken.parallel.ownership import reorder_rows
from nemo_xtoken.parallel.vocabulary_shard import VocabularyShard

WEIGHTS = (0.7, 1.3)  # of cross-entropy and distillation, so that a swapped gradient shows
NAMES = ("cross-entropy", "distillation", "gradient of hidden states", "gradient of the weight")


def student_shard(problem, group=None):
    """The layout of the student's output layer."""
    return VocabularyShard(problem.v_s, problem.weight_s.shape[0], group)


def teacher_output(problem, ownership, group=None):
    """The teacher as its checkpoint's layout has it, its output layer re-ordered as a divergence wants it."""
    ranks, rank = (1, 0) if group is None else (dist.get_world_size(group), dist.get_rank(group))
    held = VocabularyShard(problem.v_t, problem.weight_t.shape[0], group)
    weight = reorder_rows(problem.weight_t.chunk(ranks)[rank], held, ownership)
    columns = torch.from_numpy(ownership.owned).to(weight.device)
    return ModelOutput(problem.hidden_t.flatten(0, 1), OutputHead(weight, ownership.shard, columns))


def signal_of(problem, divergence, merge, tau=1.0, group=None):
    """What the problem's teacher says."""
    output = teacher_output(problem, divergence.ownership, group)
    labels, chunks = problem.batch["teacher_labels"], problem.batch["chunks"]
    return TeacherSignal(output, labels, chunks, divergence, ChunkLossConfig(merge, tau))


def ours(problem, make, merge, tau=1.0, tile_rows=4, group=None, kernels=TORCH):
    """(ce, kd, grad hidden, grad weight, metrics) under ``make(student shard)``; kernels: of the pass."""
    ranks, rank = (1, 0) if group is None else (dist.get_world_size(group), dist.get_rank(group))
    shard = student_shard(problem, group)
    hidden = problem.hidden_s.flatten(0, 1).clone().requires_grad_()
    weight = problem.weight_s.chunk(ranks)[rank].clone().requires_grad_()
    student = ModelOutput(hidden, OutputHead(weight, shard))
    signal = signal_of(problem, make(shard), merge, tau, group)
    labels = problem.batch["student_labels"]
    terms = cross_tokenizer_loss(student, labels, [signal], WEIGHTS[0], WEIGHTS[1:], tile_rows, kernels)
    terms.objective.backward()
    (kd,) = terms.kd
    metrics = {name: float(value) for name, value in kd.metrics.items() if name != "exchange_bytes"}
    return terms.ce.total.item(), kd.total.item(), hidden.grad.cpu().numpy(), weight.grad.cpu().numpy(), metrics


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
    """The ranks' results, of which the gradient with respect to the weight is in parts, with those of one process."""
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
    shard = student_shard(problem)
    signal = signal_of(problem, make(shard), merge, tau)

    def f(hidden, weight):
        student = ModelOutput(hidden, OutputHead(weight, shard))
        labels = problem.batch["student_labels"]
        return cross_tokenizer_loss(student, labels, [signal], *WEIGHTS[:1], WEIGHTS[1:], 3).objective

    hidden = problem.hidden_s.flatten(0, 1).clone().requires_grad_()
    # By a random projection of the Jacobian: all its entries take part, in a few evaluations instead of one for each.
    return torch.autograd.gradcheck(f, (hidden, problem.weight_s.clone().requires_grad_()), fast_mode=True)


def compared(divergence, p_s, p_t, ownership=None):
    """(values [1 + metrics, k], gradient of the probabilities [k, V_S/tp]) of whole teacher distributions."""
    ownership = ownership or divergence.ownership
    shard = ownership.shard
    columns = p_t.new_zeros((p_t.shape[0], shard.padded))
    columns[:, : shard.size] = p_t[:, torch.from_numpy(ownership.order)]
    mine = columns[:, shard.start : shard.start + shard.rows].clone()
    return divergence.finish(divergence.start(p_s), mine, p_s.new_ones(p_s.shape[0]))[:2]


def logit_gradient(divergence, p_student_logits, p_teacher, shard):
    """(value [k], gradient [k, V] by the student's logits) of a divergence alone, through free logits."""
    values, gradients = [], []
    for z, p in zip(p_student_logits, p_teacher, strict=True):
        z = z[None].clone().requires_grad_()
        order = divergence.ownership
        logits = torch.full((1, order.shard.padded), -torch.inf, dtype=z.dtype)
        logits[0, : p.numel()] = p.log()[torch.from_numpy(order.order)]
        output = ModelOutput(logits, FreeLogits(order.shard, torch.from_numpy(order.owned)))
        zero = torch.zeros(1, 1, dtype=torch.int64)
        chunks = torch.tensor([[0, 0, 1, 0, 1]])
        signal = TeacherSignal(output, zero, chunks, divergence, ChunkLossConfig("first"))
        terms = cross_tokenizer_loss(ModelOutput(z, FreeLogits(shard)), zero, [signal], ce_weight=0.0)
        (gradient,) = torch.autograd.grad(terms.objective, z)
        values.append(terms.kd[0].total)
        gradients.append(gradient[0])
    return torch.stack(values), torch.stack(gradients)

"""The loss between two models in a loop of one's own, against the dense reference on real tokenizations."""

import pytest
import torch
from dense import chunk_losses, dense_w, projected_kl
from harness import close
from tokenizer_zoo import zoo

from nemo_xtoken.errors import InputError
from nemo_xtoken.losses.base import ChunkLossConfig
from nemo_xtoken.objective.pair_loss import PairLoss, TextBatch
from nemo_xtoken.projection.build import build_projection

TEXTS = ["In 201 BC 37 elephants crossed the Alps.", "def area(w, h):\n    return w * h"]


def models(student, teacher, batch):
    """Hidden states and padded output weights of both sides, in float64."""
    random = torch.Generator().manual_seed(0)
    normal = lambda *shape: torch.randn(*shape, generator=random, dtype=torch.float64)  # noqa: E731
    return (
        normal(*batch.student_tokens.shape, 5).requires_grad_(),
        normal(student.size + 3, 5).requires_grad_(),
        normal(*batch.teacher_tokens.shape, 4),
        normal(teacher.size + 1, 4),
    )


def test_tokens_labels_and_chunks_of_texts():
    student, teacher = zoo()["llama"], zoo()["qwen"]
    batch = TextBatch.of(TEXTS, student, teacher).to("cpu")
    for vocabulary, tokens, labels in (
        (student, batch.student_tokens, batch.student_labels),
        (teacher, batch.teacher_tokens, batch.teacher_labels),
    ):
        for text, row, next_ in zip(TEXTS, tokens, labels, strict=True):
            used = next_ != -100
            ids = [int(row[0]), *next_[used].tolist()]
            assert row[used].tolist() == ids[:-1]
            assert vocabulary.decode_bytes(ids).decode() == text
            assert ids[-1] == vocabulary.eos_id
    for sample, s, n, t, m in batch.chunks.tolist():
        spans = batch.student_labels[sample, s : s + n], batch.teacher_labels[sample, t : t + m]
        assert student.decode_bytes(spans[0].numpy()) == teacher.decode_bytes(spans[1].numpy())


def test_it_is_the_dense_loss_on_means():
    student, teacher = zoo()["llama"], zoo()["qwen"]
    batch = TextBatch.of(TEXTS, student, teacher)
    hidden, weight, teacher_hidden, teacher_weight = models(student, teacher, batch)
    loss = PairLoss(student, teacher, weight, teacher_weight, "auto", config=ChunkLossConfig("mean", 1.5))
    assert loss.name == "p_kl"
    terms = loss(batch, hidden, weight, teacher_hidden, scale=0.7)
    got = terms.objective, *torch.autograd.grad(terms.objective, (hidden, weight))
    w = dense_w(build_projection(student, teacher), student.size, teacher.size)
    z = (hidden @ weight.T)[..., : student.size], (teacher_hidden @ teacher_weight.T)[..., : teacher.size]
    parts = {name: getattr(batch, name) for name in ("student_labels", "teacher_labels", "chunks")}
    ce, kd = chunk_losses(*z, parts, lambda p, q: projected_kl(p, q, w), "mean", 1.5)
    objective = ce / int((batch.student_labels != -100).sum()) + 0.7 * kd / len(batch.chunks)
    for a, b in zip(got, (objective, *torch.autograd.grad(objective, (hidden, weight))), strict=True):
        close(a.detach(), b.detach(), 1e-6)  # W is stored in float32


@pytest.mark.parametrize("name", ["prefix_kl", "gold", "uld", "strict_1to1"])
def test_losses_that_need_no_w_build_none(name, monkeypatch):
    monkeypatch.setattr("nemo_xtoken.objective.pair_loss.load_or_build", None)
    student, teacher = zoo()["llama"], zoo()["qwen"]
    batch = TextBatch.of(TEXTS, student, teacher)
    hidden, weight, teacher_hidden, teacher_weight = models(student, teacher, batch)
    terms = PairLoss(student, teacher, weight, teacher_weight, name)(batch, hidden, weight, teacher_hidden)
    terms.objective.backward()
    assert terms.kd[0].total > 0
    assert (terms.kd[0].count < len(batch.chunks)) == (name == "strict_1to1")
    assert torch.isfinite(hidden.grad).all()


def test_models_of_other_tokenizers_are_refused():
    student, teacher = zoo()["llama"], zoo()["qwen"]
    with pytest.raises(InputError, match="an output layer of 3 rows"):
        PairLoss(student, teacher, torch.zeros(3, 5), torch.zeros(teacher.size, 4))

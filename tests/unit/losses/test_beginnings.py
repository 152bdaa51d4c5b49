"""Chunks that hold the first token of a text, which nothing predicts: NeMo-RL's losses go on without that token.

There each token has the number of its chunk, the first token's is dropped, and position t has the number of token
t + 1; a chunk counts that has positions on both sides.
"""

from dataclasses import replace

import pytest
import torch
from dense import dense_w, nrl_gold, nrl_p_kl, nrl_relaxed
from harness import close
from tokenizer_zoo import zoo

from nemo_xtoken import CrossTokenizerLoss
from nemo_xtoken.alignment.aligner import Aligner
from nemo_xtoken.data import DataConfig, Tokenization
from nemo_xtoken.data.batch import Batch, Side, TeacherSide
from nemo_xtoken.losses.nrl import nrl_exact_pairs
from nemo_xtoken.losses.registry import LOSSES
from nemo_xtoken.objective.text_batch import TextBatch
from nemo_xtoken.projection.build import build_projection
from nemo_xtoken.training.micro_batch import select_chunks

#: The first chunk of some has several tokens on the side without BOS, the last text one on both.
TEXTS = ["201 BC and 37", "return 5", "37 elephants", "area of it", "In 1984"]
PAIRS = [("llama", "qwen"), ("qwen", "llama"), ("sp_bpe", "qwen"), ("qwen", "sp_unigram")]


def there(student_ids, teacher_ids, student, teacher):
    """Rows (first student row, rows, first teacher row, rows) of the chunks of one text, as NeMo-RL has them."""
    sides = [[-1] * len(student_ids), [-1] * len(teacher_ids)]
    chunks = Aligner(student, teacher).align(student_ids, teacher_ids).tolist()
    for number, (a, b, c, d) in enumerate(chunks):
        sides[0][a:b] = [number] * (b - a)
        sides[1][c:d] = [number] * (d - c)
    sides = [side[1:] for side in sides]
    counted = [number for number in range(len(chunks)) if all(number in side for side in sides)]
    return [[x for side in sides for x in (side.index(n), side.count(n))] for n in counted]


def chunks_there(batch, student, teacher):
    rows = []
    for number in range(len(TEXTS)):
        ids = []
        for tokens, labels in (
            (batch.student_tokens, batch.student_labels),
            (batch.teacher_tokens, batch.teacher_labels),
        ):
            next_ = labels[number][labels[number] != -100]
            ids.append(torch.cat([tokens[number, :1], next_]).numpy())
        rows += [[number, *row] for row in there(*ids, student, teacher)]
    return torch.tensor(rows)


@pytest.mark.parametrize("pair", PAIRS)
def test_a_data_set_has_the_chunks_that_are_scored_there(pair, tmp_path):
    """In every sample, of packed documents and of such that were cut."""
    student, teacher = (zoo()[name] for name in pair)
    for number, text in enumerate(TEXTS * 3):
        (tmp_path / f"{number}.txt").write_text(text * (number % 4 + 1) + f" {number}")
    data = DataConfig([f"{tmp_path}/*.txt"], 24, cache_dir=str(tmp_path / "cache"), progress=False)
    samples, _ = data.build(student, [Tokenization(teacher)], 8)
    beginnings = 0
    for sample in (samples[i] for i in range(len(samples))):
        (side,) = sample.teachers
        wanted = []
        for (_, s, n, _), (_, t, m, _) in zip(sample.student.pieces.tolist(), side.pieces.tolist(), strict=True):
            ids = [
                torch.cat([x.tokens[0, at : at + 1], x.labels[0, at : at + size]])
                for x, at, size in ((sample.student, s, n), (side, t, m))
            ]
            wanted += [[0, a + s, b, c + t, d] for a, b, c, d in there(*(i.numpy() for i in ids), student, teacher)]
        nrl = select_chunks(sample, [None], [True]).teachers[0].chunks
        assert nrl.tolist() == wanted
        assert select_chunks(sample, [None], [False]).teachers[0].chunks is side.chunks
        assert len(nrl) == len(side.chunks) + len(side.beginnings)
        beginnings += len(side.beginnings)
    assert beginnings


@pytest.mark.parametrize("pair", PAIRS[:2])
@pytest.mark.parametrize("name", ["nrl_p_kl", "nrl_gold", "nrl_h_kl"])
def test_the_loss_is_theirs_on_these_chunks(name, pair):
    student, teacher = (zoo()[one] for one in pair)
    loss = CrossTokenizerLoss(student, teacher, name, scale=1.0, ce_weight=0.0)
    batch = loss.batch(TEXTS)
    assert len(batch.beginnings)
    random = torch.Generator().manual_seed(0)
    z_s = torch.randn(*batch.student_tokens.shape, student.size, generator=random, dtype=torch.float64)
    z_t = torch.randn(*batch.teacher_tokens.shape, teacher.size, generator=random, dtype=torch.float64)
    z_s.requires_grad_()
    chunks, w = chunks_there(batch, student, teacher), build_projection(student, teacher)
    if name == "nrl_p_kl":
        wanted = nrl_p_kl(z_s, z_t, {"chunks": chunks}, dense_w(w, student.size, teacher.size), 8192, 1.0)
    else:
        exact = nrl_exact_pairs(w)
        pairs = list(zip(exact.student.tolist(), exact.teacher.tolist(), strict=True))
        wanted = nrl_gold(z_s, z_t, {"chunks": chunks}, nrl_relaxed(w) if name == "nrl_h_kl" else pairs, 8192, 1.0)
    got = loss(batch, z_s, z_t)
    close(got.detach(), wanted.detach() / len(chunks), 1e-6)  # W is stored in float32
    gradients = [torch.autograd.grad(value, z_s)[0] for value in (got, wanted / len(chunks))]
    close(*gradients, 1e-6)


def test_who_goes_on_without_the_first_token():
    assert {name for name, loss in LOSSES.items() if loss.takes_beginnings} == {"nrl_p_kl", "nrl_gold", "nrl_h_kl"}


def test_the_chunks_of_several_samples_stay_in_order():
    ours = TextBatch.of(TEXTS, *(zoo()[name] for name in PAIRS[0]))
    row = torch.zeros_like(ours.student_tokens)
    side = Side(row, row, row, row[:, 0], row, torch.zeros(0, 4), torch.zeros(0, 16))
    more = TeacherSide(**vars(side), chunks=ours.chunks, beginnings=ours.beginnings)
    mask = lambda _student, _teacher, chunks: chunks[:, 4] > 1  # noqa: E731
    batch = select_chunks(Batch(side, (more, replace(more), more)), [None, None, mask], [True, False, True])
    first, second, third = (one.chunks.tolist() for one in batch.teachers)
    assert first == sorted(ours.chunks.tolist() + ours.beginnings.tolist())
    assert second == ours.chunks.tolist()
    assert third == [chunk for chunk in first if chunk[4] > 1]

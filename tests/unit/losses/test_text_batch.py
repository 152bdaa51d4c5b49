"""A batch of texts: others join and cut it, what aligns it is made once, and what stands before its chunks."""

import pytest
import torch
from tokenizer_zoo import zoo

from nemo_xtoken import CrossTokenizerLoss
from nemo_xtoken.alignment import aligner
from nemo_xtoken.losses.options import DivergenceOptions
from nemo_xtoken.objective import cross_tokenizer
from nemo_xtoken.objective.text_batch import TextBatch

STUDENT, TEACHER = (zoo()[name] for name in ("llama", "qwen"))
TEXTS = ["In 201 BC 37 elephants crossed the Alps.", "def area(w, h):\n    return w * h"]


def same(a, b):
    assert vars(a).keys() == vars(b).keys()
    assert all(value.equal(vars(b)[name]) for name, value in vars(a).items())


@pytest.mark.parametrize("split", [False, True])
def test_accelerate_may_join_batches_and_cut_them(split):
    """What it does with a streamed data set; each process gets what it would have got alone."""
    operations = pytest.importorskip("accelerate.utils.operations")
    ids = [[[*v.encode(text)][:7] for text in (*TEXTS, *TEXTS[::-1])] for v in (STUDENT, TEACHER)]
    whole = TextBatch.of_ids(*ids, STUDENT, TEACHER)
    each = [TextBatch.of_ids(*(side[at : at + 2] for side in ids), STUDENT, TEACHER) for at in (0, 2)]
    assert each[0].chunks.tolist() != each[1].chunks.tolist()
    joined = vars(whole) if split else operations.concatenate([vars(batch) for batch in each])
    for rank, batch in enumerate(each):
        got = TextBatch(**operations.slice_tensors(joined, slice(2 * rank, 2 * rank + 2)))
        same(got, batch)
        assert got.chunks.equal(batch.chunks)
        assert got.beginnings.equal(batch.beginnings)


def test_what_tokens_are_looked_up_in_is_made_once(monkeypatch):
    made, table = [], aligner.SideTable
    monkeypatch.setattr(aligner, "SideTable", lambda *more: made.append(1) or table(*more))
    loss = CrossTokenizerLoss(STUDENT, TEACHER)
    batches = [loss.batch(TEXTS) for _ in range(2)]
    ids = [batches[0].student_tokens, batches[0].teacher_tokens]
    loss.batch_of_ids(*ids)
    assert len(made) == 2  # a side
    same(*batches)
    same(batches[0], TextBatch.of(TEXTS, STUDENT, TEACHER))


def before(batch, monkeypatch):
    """Of each scored chunk on both sides, as a loss is told."""
    seen, score = [], cross_tokenizer.cross_tokenizer_loss
    monkeypatch.setattr(
        cross_tokenizer, "cross_tokenizer_loss", lambda *more: seen.append(more[2][0].before) or score(*more)
    )
    loss = CrossTokenizerLoss(STUDENT, TEACHER, options=DivergenceOptions(boundary=True), scale=1.0)
    random = torch.Generator().manual_seed(0)
    sides = (batch.student_tokens, STUDENT), (batch.teacher_tokens, TEACHER)
    loss(batch, *(torch.randn(*tokens.shape, v.size, generator=random) for tokens, v in sides))
    monkeypatch.undo()
    return seen[0].tolist()


def test_what_stands_before_a_chunk(monkeypatch):
    """The text's own tokens, be they padded, context, or the first, which nothing predicts."""
    ids = [v.encode(TEXTS[0]).tolist() for v in (STUDENT, TEACHER)]
    plain = TextBatch.of_ids(*([side] for side in ids), STUDENT, TEACHER)
    wanted = [
        [[side[row], side[row - 1] if row else -1] for row in plain.chunks[:, column].tolist()]
        for side, column in zip(ids, (1, 3), strict=True)
    ]
    assert before(plain, monkeypatch) == wanted
    padded = [[[7, 7, *side]] for side in ids]
    masks = [[[0, 0, *(1 for _ in side)]] for side in ids]
    assert before(TextBatch.of_ids(*padded, STUDENT, TEACHER, *masks), monkeypatch) == wanted
    labels = [[-100] * 6 + ids[0][6:]]
    context = TextBatch.of_ids(*([side] for side in ids), STUDENT, TEACHER, labels=labels)
    assert 0 < len(context.chunks) < len(plain.chunks)
    assert before(context, monkeypatch) == [side[-len(context.chunks) :] for side in wanted]

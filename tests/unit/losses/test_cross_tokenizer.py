"""The loss between two models in a loop of one's own, against the dense reference on real tokenizations."""

import pytest
import torch
from dense import chunk_losses, dense_w, projected_kl
from harness import close
from tokenizer_zoo import write_folder, zoo
from torch._subclasses.fake_tensor import FakeTensorMode

from nemo_xtoken import CrossTokenizerLoss
from nemo_xtoken.errors import InputError
from nemo_xtoken.objective.text_batch import TextBatch
from nemo_xtoken.parallel.head import OutputHead
from nemo_xtoken.projection.build import build_projection

TEXTS = ["In 201 BC 37 elephants crossed the Alps.", "def area(w, h):\n    return w * h"]
STUDENT, TEACHER = (zoo()[name] for name in ("llama", "qwen"))


def models(batch):
    """Hidden states of both sides, and padded output weights, in float64."""
    random = torch.Generator().manual_seed(0)
    normal = lambda *shape: torch.randn(*shape, generator=random, dtype=torch.float64)  # noqa: E731
    return (
        normal(*batch.student_tokens.shape, 5).requires_grad_(),
        normal(*batch.teacher_tokens.shape, 4),
        normal(STUDENT.size + 3, 5).requires_grad_(),
        normal(TEACHER.size + 1, 4),
    )


def test_tokens_labels_and_chunks_of_texts():
    batch = TextBatch.of(TEXTS, STUDENT, TEACHER).to("cpu")
    for vocabulary, tokens, labels in (
        (STUDENT, batch.student_tokens, batch.student_labels),
        (TEACHER, batch.teacher_tokens, batch.teacher_labels),
    ):
        for text, row, next_ in zip(TEXTS, tokens, labels, strict=True):
            used = next_ != -100
            ids = [int(row[0]), *next_[used].tolist()]
            assert row[used].tolist() == ids[:-1]
            assert vocabulary.decode_bytes(ids).decode() == text
            assert ids[-1] == vocabulary.eos_id
    for sample, s, n, t, m in batch.chunks.tolist():
        spans = batch.student_labels[sample, s : s + n], batch.teacher_labels[sample, t : t + m]
        assert STUDENT.decode_bytes(spans[0].numpy()) == TEACHER.decode_bytes(spans[1].numpy())


@pytest.mark.parametrize("before", [0, 3])
def test_ids_padded_anywhere_are_the_same_texts(before):
    """Padding before a text moves its rows; the texts' labels and chunks stay what they are."""
    whole = TextBatch.of(TEXTS, STUDENT, TEACHER)
    ids, masks = [], []
    for tokens, labels in ((whole.student_tokens, whole.student_labels), (whole.teacher_tokens, whole.teacher_labels)):
        padded = torch.full((2, tokens.shape[1] + 1 + before), 7)
        mask = torch.zeros_like(padded)
        for row in range(2):
            n = int((labels[row] != -100).sum())
            mask[row, before : before + n + 1] = 1
            padded[row, before : before + n] = tokens[row, :n]
            padded[row, before + n] = labels[row, n - 1]
        ids.append(padded)
        masks.append(mask)
    batch = TextBatch.of_ids(*ids, STUDENT, TEACHER, *masks)
    assert batch.student_labels[:, before:-1].equal(whole.student_labels)
    assert batch.teacher_labels[:, before:-1].equal(whole.teacher_labels)
    assert batch.chunks.equal(whole.chunks + torch.tensor([0, before, 0, before, 0]))


def test_context_is_neither_label_nor_scored():
    ids = [torch.tensor([v.encode(TEXTS[0]).tolist()]) for v in (STUDENT, TEACHER)]
    labels = ids[0].clone()
    labels[:, :6] = -100
    whole = TextBatch.of_ids(*ids, STUDENT, TEACHER)
    batch = TextBatch.of_ids(*ids, STUDENT, TEACHER, labels=labels)
    assert (batch.student_labels[0, :5] == -100).all()
    assert batch.student_labels[0, 5:].equal(whole.student_labels[0, 5:])
    assert batch.chunks.equal(whole.chunks[whole.chunks[:, 1] >= 5])
    assert 0 < len(batch.chunks) < len(whole.chunks)


@pytest.mark.parametrize(
    ("student", "teacher", "more", "message"),
    [
        ([[1, 2]], [[1], [2]], {}, "1 texts of the student, 2 of the teacher"),
        ([1, 2], [[1]], {}, r"student_ids of shape \[2\]"),
        ([[1, 2]], [[1.5]], {}, "teacher_ids .* float64"),
        ([[1, 2, 3]], [[1]], {"student_mask": [[1, 0, 1]]}, "0 inside of a text"),
        ([[1, 2, 3]], [[1]], {"labels": [[1]]}, r"labels of shape \[1, 1\]"),
        ([[1, 999999]], [[1]], {}, "student token ids: 1 to 999999"),
    ],
)
def test_ids_that_do_not_belong_together_are_refused(student, teacher, more, message):
    with pytest.raises(InputError, match=message):
        TextBatch.of_ids(student, teacher, STUDENT, TEACHER, **more)


@pytest.mark.parametrize("given", ["hidden states", "logits"])
def test_it_is_the_dense_loss_on_means(given):
    loss = CrossTokenizerLoss(STUDENT, TEACHER, "auto", merge="mean", temperature=1.5, scale=0.7, ce_weight=0.4)
    assert loss.name == "p_kl"
    batch = loss.batch(TEXTS)
    hidden, teacher_hidden, weight, teacher_weight = models(batch)
    z = hidden @ weight.T, teacher_hidden @ teacher_weight.T
    states = z if given == "logits" else (hidden, teacher_hidden, weight, teacher_weight)
    value = loss(batch, *states)
    got = value, *torch.autograd.grad(value, (hidden, weight), retain_graph=True)
    z = z[0][..., : STUDENT.size], z[1][..., : TEACHER.size]
    w = dense_w(build_projection(STUDENT, TEACHER), STUDENT.size, TEACHER.size)
    parts = {name: getattr(batch, name) for name in ("student_labels", "teacher_labels", "chunks")}
    ce, kd = chunk_losses(*z, parts, lambda p, q: projected_kl(p, q, w), "mean", 1.5)
    objective = 0.4 * ce / int((batch.student_labels != -100).sum()) + 0.7 * kd / len(batch.chunks)
    for a, b in zip(got, (objective, *torch.autograd.grad(objective, (hidden, weight))), strict=True):
        close(a.detach(), b.detach(), 1e-6)  # W is stored in float32


@pytest.mark.parametrize("name", ["prefix_kl", "gold", "uld", "strict_1to1"])
def test_losses_that_need_no_w_build_none(name, monkeypatch):
    monkeypatch.setattr("nemo_xtoken.objective.cross_tokenizer.load_or_build", None)
    loss = CrossTokenizerLoss(STUDENT, TEACHER, name)
    batch = loss.batch(TEXTS)
    hidden, *others = models(batch)
    loss(batch, hidden, *others).backward()
    (kd,) = loss.terms.kd
    assert kd.total > 0
    assert (kd.count < len(batch.chunks)) == (name == "strict_1to1")
    assert torch.isfinite(hidden.grad).all()


def test_the_dynamic_scale_is_the_ratio_of_the_last_batch_that_was_learned():
    loss = CrossTokenizerLoss(STUDENT, TEACHER)
    batch = loss.batch(TEXTS)
    tensors = models(batch)
    assert loss.scale == 1
    first = loss(batch, *tensors).detach()
    ce, kd = loss.means
    assert float(first) == pytest.approx(ce + kd)
    assert loss.scale == pytest.approx(ce / kd)
    with torch.no_grad():
        evaluated = loss(batch, *(x / 2 for x in tensors))
    assert loss.scale == pytest.approx(ce / kd)
    assert float(loss(batch, *tensors).detach()) == pytest.approx(2 * ce)
    assert float(evaluated) != pytest.approx(2 * ce)


def test_a_teacher_whose_weight_changes_in_place_is_read_again():
    loss = CrossTokenizerLoss(STUDENT, TEACHER, scale=1.0)
    batch = loss.batch(TEXTS)
    *rest, weight = models(batch)
    value = lambda weight: float(loss(batch, *rest, weight).detach())  # noqa: E731
    before = value(weight)
    assert value(weight) == before
    weight.mul_(2)
    assert value(weight) == value(weight.clone()) != before


@pytest.mark.parametrize("given", ["hidden states", "logits"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_changes_nothing(given, dtype):
    loss = CrossTokenizerLoss(STUDENT, TEACHER, scale=1.0)
    batch = loss.batch(TEXTS)
    states = [x.detach().to(dtype) for x in models(batch)]
    if given == "logits":
        states = [states[0] @ states[2].T, states[1] @ states[3].T]
    results = []
    for enabled in (False, True):
        leaves = [x.clone().requires_grad_() for x in states]
        with torch.autocast("cpu", torch.bfloat16, enabled):
            value = loss(batch, *leaves)
        value.backward()
        results.append([value.detach(), *(x.grad for x in leaves[::2])])
    assert all(a.equal(b) for a, b in zip(*results, strict=True))


def test_float16_loses_nothing_to_the_size_of_a_batch(monkeypatch):
    """A GPU's products take the gradient by the logits in the type of the hidden states, before a loss scale comes."""
    backward = OutputHead.backward

    def narrow(head, dz, hidden, *more):
        return backward(head, dz.to(hidden.dtype).to(dz.dtype), hidden, *more)

    monkeypatch.setattr(OutputHead, "backward", narrow)
    loss, found = CrossTokenizerLoss(STUDENT, TEACHER, scale=1.0), []
    for times in (1, 1000):
        batch = loss.batch(["It was 201."])
        states = [(x.detach() / 5).half() for x in models(batch)]
        batch = TextBatch(**{name: x.repeat(times, *(1,) * (x.ndim - 1)) for name, x in vars(batch).items()})
        student, teacher, *weights = [*(x.repeat(times, 1, 1) for x in states[:2]), *states[2:]]
        weights[0].requires_grad_()
        (loss(batch, student, teacher, *weights) * 1024).backward()
        found.append(weights[0].grad.float())
    one, many = found  # of most tokens the gradient is small, and first to be lost
    assert (many - one).abs().median() < 1e-3 * one.abs().median()


def test_tokenizers_may_be_folders(tmp_path):
    folders = [write_folder(name, tmp_path / name) for name in ("llama", "qwen")]
    loss = CrossTokenizerLoss(*folders)
    assert (loss.name, loss.student.digest, loss.teacher.digest) == ("prefix_kl", STUDENT.digest, TEACHER.digest)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s, t, w, v: (s, t, torch.zeros(3, 5), v), "an output layer of 3 rows"),
        (lambda s, t, w, v: (s[:, 1:], t, w, v), "the student's tensor of shape"),
        (lambda s, t, w, v: (s, t[0], w, v), "the teacher's tensor of shape"),
        (lambda s, t, w, v: (s, t, w, v.T), "hidden states of width 4 and an output weight"),
        (lambda s, t, w, v: (s, t, None, v), "the student's logits for 5 tokens"),
    ],
)
def test_what_does_not_belong_together_is_refused(change, message):
    loss = CrossTokenizerLoss(STUDENT, TEACHER)
    batch = loss.batch(TEXTS)
    with pytest.raises(InputError, match=message):
        loss(batch, *change(*models(batch)))


@pytest.mark.parametrize("side", ["student", "teacher"])
def test_ids_that_no_text_has_may_lack_a_row(side):
    """As Gemma 3's id for pictures: the mean of the rows stands for it, and of the logits."""
    names = {"student": STUDENT, "teacher": TEACHER, side: zoo()["tiktoken"]}
    name = names[side]
    short = max(n for n, data in enumerate(name.token_bytes) if data is not None) + 1
    assert short < name.size
    loss = CrossTokenizerLoss(names["student"], names["teacher"], scale=1.0)
    batch = loss.batch(TEXTS)
    random = torch.Generator().manual_seed(0)
    normal = lambda *shape: torch.randn(*shape, generator=random, dtype=torch.float64)  # noqa: E731
    states = {"student": normal(*batch.student_tokens.shape, 5), "teacher": normal(*batch.teacher_tokens.shape, 5)}
    states["student"].requires_grad_()
    rows = {key: normal(of.size, 5) for key, of in names.items()}
    cut = rows[side][:short].clone().requires_grad_(side == "student")
    rows[side] = torch.cat([cut.detach(), cut.detach().mean(0, keepdim=True).expand(name.size - short, -1)])
    rows["student"].requires_grad_()

    def value(weights, *logits):
        found = loss(batch, *(logits or states.values()), *weights)
        wanted = [states["student"], *([weights[0]] if weights else [])]
        return found.detach(), torch.autograd.grad(found, wanted)

    known, (of_states, of_rows) = value([*rows.values()])
    found, (of_cut_states, of_cut) = value([*(rows | {side: cut}).values()])
    close(found, known)
    close(of_cut_states, of_states)
    close(of_cut, of_rows[: len(of_cut)])
    logits = (states[key] @ (rows | {side: cut})[key].T for key in names)
    close(value((), *logits)[0], known)


def test_a_token_of_texts_needs_its_row():
    loss = CrossTokenizerLoss(STUDENT, TEACHER)
    batch = loss.batch(TEXTS)
    student, teacher, w, v = models(batch)
    with pytest.raises(InputError, match=f"an output layer of {TEACHER.size - 1} rows"):
        loss(batch, student, teacher, w, v[: TEACHER.size - 1])


def test_devices_that_do_not_go_together_or_cannot_are_refused():
    loss = CrossTokenizerLoss(STUDENT, TEACHER)
    batch = loss.batch(TEXTS)
    student, teacher, *weights = models(batch)
    with pytest.raises(InputError, match=r"(?s)student on cpu, teacher on meta, .*device_map=\{'': 'cpu'\}"):
        loss(batch, student, teacher.to("meta"), *weights)
    with pytest.raises(InputError, match="teacher_weight on meta"):
        loss(batch, student, teacher, weights[0], weights[1].to("meta"))
    with FakeTensorMode():
        apple = [torch.empty(x.shape, device="mps") for x in (student, teacher, *weights)]
    with pytest.raises(InputError, match=r"(?s)Apple GPU.*use_cpu=True"):
        loss(batch, *apple)


def test_a_scale_within_each_batch_is_refused():
    with pytest.raises(InputError, match="dynamic_per_microbatch"):
        CrossTokenizerLoss(STUDENT, TEACHER, scale="dynamic_per_microbatch")

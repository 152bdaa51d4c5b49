"""Held-out cross-entropy and accuracy are those of all held-out tokens, however they fill the batches."""

import json

import pytest

pytestmark = pytest.mark.usefixtures("nemo")


@pytest.fixture(scope="module")
def student(world):
    """A checkpoint that predicts some tokens right."""
    job = world.job("learned", start=world.student, steps=30, lr=2e-2, save_every=30)
    world.run(job)
    return str(job.last)


@pytest.fixture(scope="module")
def expected(world, student):
    """``(cross-entropy, accuracy, tokens, samples)`` of the student on the held-out text, from its own logits."""
    import jobs
    from launcher import launch

    [result] = launch(_directly, jobs, world.job("direct", start=student), folder=world.root / "logs" / "direct")
    return result


def _directly(jobs, job):
    """Document by document, without padding, chunks or NeMo's loop."""
    import lightning.pytorch as pl
    import torch
    from megatron.core.utils import unwrap_model

    class Found(Exception):
        pass

    class Look(pl.Callback):
        def on_train_start(self, trainer, pl_module):
            samples = trainer.datamodule.held_out_set.samples
            module = unwrap_model(pl_module.module)
            module.output_layer._forward_pre_hooks.clear()  # so that it makes logits of all positions
            module.eval()
            ce, right, tokens = 0.0, 0, 0
            for i in range(len(samples)):
                sample = samples[i].student
                for piece in range(sample.documents.max() + 1):
                    inside = sample.documents == piece
                    ids, labels = sample.tokens[inside], sample.labels[inside]
                    length = len(ids)
                    mask = torch.ones(length, length, dtype=torch.bool).triu(1)[None, None]
                    with torch.no_grad():
                        logits = module(ids[None], torch.arange(length)[None], mask)[0]
                    log_p = torch.log_softmax(logits[:, : pl_module.tokenizer.vocab_size].double(), -1)
                    ce -= float(log_p[torch.arange(length), labels].sum())
                    right += int((log_p.argmax(-1) == labels).sum())
                    tokens += length
            raise Found(ce / tokens, right / tokens, tokens, len(samples))

    torch.set_num_threads(1)
    arguments = jobs.build(job)
    arguments["trainer"].callbacks.append(Look())
    try:
        jobs.train_one(**arguments)
    except Found as found:
        return found.args
    raise AssertionError("training did not start")


@pytest.mark.parametrize(
    ("ranks", "settings"),
    [
        pytest.param(1, {"micro": 4}, id="one"),
        pytest.param(1, {"micro": 1}, id="micro1"),
        pytest.param(2, {"micro": 1}, id="dp2"),
        pytest.param(2, {"tp": 2}, id="tp2"),
        pytest.param(2, {"pp": 2}, id="pp2"),
        pytest.param(2, {"cp": 2}, id="cp2"),
    ],
)
def test_held_out_means(world, student, expected, ranks, settings, request):
    ce, accuracy, _, samples = expected
    assert samples % 4  # the last global batch is filled up
    assert 0 < accuracy < 1
    job = world.job(f"held_out_{request.node.callspec.id}", start=student, steps=1, validate=100, **settings)
    world.run(job, ranks)
    first = json.loads((job.folder / "history.jsonl").read_text().splitlines()[0])
    assert first["step"] == 0
    assert first["held_out_ce"] == pytest.approx(ce, rel=1e-6)
    assert first["held_out_accuracy"] == pytest.approx(accuracy, rel=1e-12)


def test_without_held_out_text_a_run_is_evaluated_on_nothing(world, student):
    """However often an evaluation is due: Lightning has no reader to ask then."""
    job = world.job("held_out_none", start=student, steps=2, validate=1, text={"held_out": 0})
    world.run(job, 1)
    lines = [json.loads(line) for line in (job.folder / "history.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2]
    assert not any("held_out_ce" in line for line in lines)

"""What a run does with held-out text beside its cross-entropy: distances, texts that it continues, an early end."""

import functools
import json

import pytest

pytestmark = pytest.mark.usefixtures("nemo")

COUNT, PROMPT, NEW = 3, 12, 8
LAYOUTS = {"one": (1, {}), "tp2": (2, {"tp": 2}), "sp2": (2, {"tp": 2, "sequence_parallel": True}),
           "pp2": (2, {"pp": 2}), "cp2": (2, {"cp": 2}), "dp2": (2, {"micro": 1})}  # fmt: skip


def records(job):
    lines = (job.folder / "history.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in lines]


def speaking(job, **changes):
    """A run whose student continues texts."""
    import jobs

    from nemo_xtoken.training.watching.sample_settings import SampleConfig

    return jobs.train(job, samples=SampleConfig(COUNT, PROMPT, NEW), **changes)


def go(world, function, job, ranks=1, **settings):
    from launcher import launch

    return launch(functools.partial(function, **settings), job, ranks=ranks, folder=world.root / "logs" / job.name)


def course(world, name, **settings):
    """Whatever random numbers decide is in it: dropout, and a start without weights would be too."""
    from watchers import Weights

    return world.distillation(
        name, steps=3, save_every=3, validate=1, dropout=0.1, schedule=True, watchers=(Weights(),), **settings
    )


@pytest.fixture(scope="module")
def spoken(world):
    """``spoken(layout)``: ``(weights of each rank, history, what was said)`` of a run that continues texts."""
    done = {}

    def run(layout):
        if layout not in done:
            ranks, settings = LAYOUTS[layout]
            job = course(world, f"spoken_{layout}", **settings)
            results = go(world, speaking, job, ranks)
            done[layout] = [r["weights"] for r in results], records(job), (job.folder / "samples.md").read_text()
        return done[layout]

    return run


@pytest.mark.parametrize("layout", ["one", "tp2"])
def test_a_run_that_continues_texts_is_the_same_run(world, spoken, layout):
    """Bit by bit, with dropout: the continuations draw no random numbers and leave the student in training."""
    import jobs

    ranks, settings = LAYOUTS[layout]
    job = course(world, f"silent_{layout}", **settings)
    results = go(world, jobs.train, job, ranks)
    weights, history, _ = spoken(layout)
    assert [r["weights"] for r in results] == weights
    assert records(job) == history
    assert not (job.folder / "samples.md").exists()


def test_the_file_has_each_evaluation_once(spoken):
    said = spoken("one")[2]
    assert [line for line in said.splitlines() if line.startswith("#")] == [f"## after step {n}" for n in range(4)]
    assert said.count("    beginning: ") == said.count("    student:   ") == said.count("    text:      ") == 4 * COUNT


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "one"])
def test_layouts_say_the_same(world, spoken, layout):
    """Before the first step: of the same weights; dropout differs between layouts."""
    parts = [spoken(one)[2].partition("## after step 1")[0] for one in ("one", layout)]
    assert parts[0] == parts[1]
    assert len(set(parts[0].splitlines())) > COUNT


def _by_logits(job):
    """Token by token, text by text, by the logits of the model's own output layer."""
    import jobs
    import lightning.pytorch as pl
    import torch
    from megatron.core.utils import unwrap_model

    from nemo_xtoken.training.watching.sample_settings import SampleConfig
    from nemo_xtoken.training.watching.samples import Continuation, find_prompts

    class Found(Exception):
        pass

    class Look(pl.Callback):
        def on_train_start(self, trainer, pl_module):
            module, vocabulary = unwrap_model(pl_module.module), pl_module.tokenizer.vocabulary
            module.output_layer._forward_pre_hooks.clear()
            module.eval()
            found = []
            for prompt in find_prompts(trainer.datamodule.held_out_set, SampleConfig(COUNT, PROMPT, NEW)):
                ids = list(prompt.ids)
                for _ in range(NEW):
                    mask = torch.ones(len(ids), len(ids), dtype=torch.bool).triu(1)[None, None]
                    with torch.no_grad():
                        logits = module(torch.tensor([ids]), torch.arange(len(ids))[None], mask)[0]
                    ids.append(int(logits[-1, : vocabulary.size].argmax()))
                found.append(Continuation.of(prompt, ids[len(prompt.ids) :], vocabulary).long)
            raise Found(found)

    torch.set_num_threads(1)
    arguments = jobs.build(job)
    arguments["trainer"].callbacks.append(Look())
    try:
        jobs.train_one(**arguments)
    except Found as found:
        return found.args[0]
    raise AssertionError("training did not start")


def test_the_most_probable_tokens_are_said(world, spoken):
    job = course(world, "by_logits").but(validate=0, watchers=())
    [expected] = go(world, _by_logits, job)
    before = spoken("one")[2].partition("## after step 1")[0]
    assert len(expected) == COUNT
    for text in expected:
        assert "\n".join(f"    {line}" for line in text.splitlines()) in before


def _on_its_training_text(job):
    """One epoch of single samples without learning, on the text that is held out as well."""
    import jobs

    from nemo_xtoken.training.teacher_settings import named_teachers

    arguments = jobs.build(job)
    sides = [one.side for one in named_teachers(arguments["teacher"], arguments["teachers"])]
    _, held_out = arguments["data"].text.build(arguments["model"].tokenizer.vocabulary, sides, 1)
    jobs.train(job.but(steps=len(held_out)))


def test_distances_on_held_out_text_are_those_of_training_on_it(world):
    """Of two teachers, one with the student's tokenizer."""
    text = {
        "paths": [f"{world.root}/text/0*.txt"],
        "held_out_paths": [f"{world.root}/text/0*.txt"],
        "held_out": 0,
        "pack": False,
    }
    same = {"path": world.student, "loss": "same_tokenizer", "weight": 0.5}
    job = world.distillation(
        "one_text", lr=0.0, validate=1000, batch=1, micro=1, teachers={"same": same}, text=text, scale=1.0
    )
    go(world, _on_its_training_text, job)
    first, *steps, last = records(job)
    assert first | {"step": last["step"]} == last
    for name in ("teacher", "same"):
        chunks = [(r[f"chunks/{name}"], r.get(f"kd/{name}", 0.0)) for r in steps]
        total = sum(n for n, _ in chunks)
        assert total > 100
        mean = sum(n * kd for n, kd in chunks) / total
        assert first[f"held_out_kd/{name}"] == pytest.approx(mean, rel=1e-5, abs=1e-7)
    assert first["held_out_kd/teacher"] > 0.1
    assert first["held_out_kd"] == pytest.approx(first["held_out_kd/teacher"] + 0.5 * first["held_out_kd/same"])


@pytest.mark.parametrize("layout", ["tp2", "pp2", "cp2", "dp2"])
def test_distances_do_not_depend_on_the_layout(spoken, layout):
    one, other = (next(r for r in spoken(name)[1] if "held_out_ce" in r) for name in ("one", layout))
    assert one.keys() == other.keys() >= {"held_out_kd", "held_out_kd/teacher"}
    assert other == pytest.approx(one, rel=1e-5)


def stopping(job, patience, on="kd"):
    import jobs

    from nemo_xtoken.training.watching.early_stopping import StopConfig

    return jobs.train(job, stop=StopConfig(patience, on))


@pytest.mark.parametrize("layout", ["one", "pp2"])
def test_a_run_that_gets_no_better_ends_and_is_whole(world, layout):
    """Nothing is learned here.  The same command has nothing to do, a larger patience goes on from there."""
    from watchers import Totals

    ranks, settings = LAYOUTS[layout]
    job = world.distillation(f"early_{layout}", steps=9, lr=0.0, save_every=4, validate=1, **settings)
    again = job.but(watchers=(Totals(),))
    go(world, stopping, job, ranks, patience=2)
    done = records(job)
    assert [r["step"] for r in done if "ce" in r] == [1, 2]
    assert done[-1]["step"] == 2
    assert "no held-out KD better than" in done[-1]["stopped_early"]
    assert "after step 0, in 2 evaluations" in done[-1]["stopped_early"]
    assert [path.name for path in job.folder.glob("checkpoints/*")] == ["step_2"]
    results = go(world, stopping, again, ranks, patience=2)
    assert "totals" not in results[0]
    assert records(job) == done
    [result, *_] = go(world, stopping, again, ranks, patience=4)
    assert len(result["totals"]) == 2
    assert records(job)[-1]["step"] == 4


def test_what_a_run_without_that_teacher_cannot_stop_on_is_refused(world):
    from launcher import start

    from nemo_xtoken.errors import InputError

    job = world.distillation("early_unknown", steps=9)
    run = functools.partial(stopping, patience=1, on="kd/teachr")
    [end] = start(run, job, folder=world.root / "logs" / job.name)
    assert isinstance(end.error, InputError), end.log[-2000:]
    assert "stop.on=kd/teachr; did you mean 'kd/teacher'?" in str(end.error)

"""A run that was interrupted, however, and started again with the same command ends as if it had not been."""

import json
import logging
import os
import shutil
import signal

import pytest
from launcher import launch, start

from nemo_xtoken.errors import InputError
from nemo_xtoken.vocab.loading import load_vocabulary

pytestmark = pytest.mark.usefixtures("nemo")

STEPS = 6
#: With one rank as in recipes.
LAYOUTS = {"one": (1, {"save_best": True}), "tp2": (2, {"tp": 2}), "bf16": (1, {"precision": "bf16-mixed"})}
BOTH = pytest.mark.parametrize("layout", ["one", "tp2"])


def course(world, name, **settings):
    """A run that has everything that must survive: Adam, a schedule, dropout, a dynamic scale, evaluations."""
    return world.distillation(
        name, steps=STEPS, save_every=2, validate=3, dropout=0.1, schedule=True, text={"pack": False}, **settings
    )


def records(job):
    """The history, without how long things took."""
    lines = (job.folder / "history.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in lines]


@pytest.fixture(scope="module")
def straight(world):
    """``straight(layout)``: ``(weights of each rank, history)`` of the run that nothing interrupts."""
    from watchers import Weights

    done = {}

    def run(layout):
        if layout not in done:
            ranks, settings = LAYOUTS[layout]
            job = course(world, f"straight_{layout}", watchers=(Weights(),), **settings)
            results = world.run(job, ranks)
            done[layout] = [r["weights"] for r in results], records(job)
        return done[layout]

    return run


def interrupt(world, job, ranks, step, number, send=os.kill, to=slice(None)):
    """Starts a run and sends it a signal when ``step`` steps are done; how its ranks ended.

    Args:
        send: to processes (``os.kill``), or to each with all that it has started (``os.killpg``).
        to: which ranks.
    """
    import jobs
    from watchers import Pause

    flag = world.root / f"{job.name}.flag"

    def signalled(pids):
        if not flag.exists():
            return False
        for pid in pids[to]:
            send(pid, number)
        flag.unlink()
        return True

    return start(
        jobs.train,
        job.but(watchers=(Pause(step, flag),)),
        ranks=ranks,
        folder=world.root / "logs" / job.name,
        when=signalled,
    )


def finish(world, job, ranks):
    """Starts the run again: ``(weights, history)``, and checks that it did resume."""
    import jobs
    from watchers import Totals, Weights

    results = launch(
        jobs.train, job.but(watchers=(Weights(), Totals())), ranks=ranks, folder=world.root / "logs" / f"{job.name}2"
    )
    return [r["weights"] for r in results], records(job), len(results[0]["totals"])


def test_what_must_survive_is_there(straight):
    _, history = straight("one")
    steps = [r for r in history if "ce" in r]
    assert [r["step"] for r in steps] == list(range(1, STEPS + 1))
    assert steps[0]["scale"] == 1
    assert len({r["scale"] for r in steps}) == STEPS
    assert [r["step"] for r in history if "held_out_ce" in r] == [0, 3, STEPS]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_killed(world, straight, layout):
    ranks, settings = LAYOUTS[layout]
    job = course(world, f"killed_{layout}", **settings)
    ended = interrupt(world, job, ranks, step=5, number=signal.SIGKILL)
    assert [end.status for end in ended] == [-signal.SIGKILL] * ranks
    assert records(job)[-1]["step"] == 5  # ahead of the checkpoint, after which it is to go on
    weights, history, steps = finish(world, job, ranks)
    assert steps == STEPS - 4
    assert (weights, history) == straight(layout)


STOPS = {
    # as `timeout`, systemd and a shell do it: the processes that read samples get it too
    "one": (signal.SIGTERM, 75, {"send": os.killpg}, {"loader_workers": 1}),
    # Ctrl-C where any one rank gets it
    "tp2": (signal.SIGINT, 130, {"to": slice(1, 2)}, {}),
}


@BOTH
def test_asked_to_stop(world, straight, layout):
    ranks, settings = LAYOUTS[layout]
    number, status, how, more = STOPS[layout]
    job = course(world, f"stopped_{layout}", **settings, **more)
    ended = interrupt(world, job, ranks, step=2, number=number, **how)
    assert [end.status for end in ended] == [status] * ranks, ended[0].log[-3000:]
    assert records(job)[-1]["step"] == 3
    weights, history, steps = finish(world, job, ranks)
    assert steps == STEPS - 3  # it saved at once, between two regular checkpoints
    assert weights == straight(layout)[0]
    assert history == straight(layout)[1]


# The evaluation after step 3 saves too.
@pytest.mark.parametrize(("step", "names"), [(2, ["step_2"]), (4, ["step_3", "step_4"])])
def test_killed_within_a_save(world, straight, step, names):
    import jobs
    from watchers import DieInSave

    job = course(world, f"died_in_save{step}", **LAYOUTS["one"][1])
    [end] = start(jobs.train, job.but(watchers=(DieInSave(step),)), folder=world.root / "logs" / job.name)
    assert end.status == -signal.SIGKILL, end.log[-3000:]
    found = [path.name for path in job.folder.glob("checkpoints/*") if path.is_dir()]
    assert sorted(found) == names  # with the half-written one
    weights, history, steps = finish(world, job, 1)
    assert steps == STEPS - (step - 1 if step > 2 else 0)
    assert (weights, history) == straight("one")
    assert not list(job.folder.glob("checkpoints/*-unfinished"))


@pytest.mark.parametrize("step", [2, 3])
def test_killed_between_a_save_and_the_evaluation_after_it(world, step):
    import jobs
    from watchers import DieInEvaluation

    job = world.distillation(f"died_in_evaluation{step}", steps=3, save_every=1, validate=2)
    folder = world.root / "logs" / job.name
    [end] = start(jobs.train, job.but(watchers=(DieInEvaluation(step),)), folder=folder)
    assert end.status == -signal.SIGKILL, end.log[-3000:]
    launch(jobs.train, job, folder=folder)
    assert [(r["step"], "ce" in r) for r in records(job)] == [
        *((0, False), (1, True), (2, True), (2, False), (3, True), (3, False))
    ]
    [checkpoint] = job.folder.glob("checkpoints/*")
    assert checkpoint.name == "step_3"
    assert json.loads((checkpoint / "context" / "io.json").read_text())


def test_the_same_command_after_the_end_changes_nothing(world, straight):
    import jobs
    from watchers import Totals

    weights, history = straight("one")
    job = course(world, "straight_one", **LAYOUTS["one"][1])
    before = sorted(job.folder.rglob("*.distcp"))
    (job.folder / "thesis.tex").write_text("of the user's")
    [result] = launch(jobs.train, job.but(watchers=(Totals(),)), folder=world.root / "logs" / "again")
    assert "totals" not in result
    assert records(job) == history
    assert sorted(job.folder.rglob("*.distcp")) == before
    assert (job.folder / "thesis.tex").is_file()  # NeMo moves files that lie there
    assert weights


def test_other_data_is_refused(world, straight):
    import jobs

    straight("one")
    job = course(world, "straight_one", **LAYOUTS["one"][1])
    for change in ({"seed": 5}, {"student_length": 48}):
        [end] = start(jobs.train, job.but(steps=8, text=job.text | change), folder=world.root / "logs" / "other_data")
        assert isinstance(end.error, InputError), end.log[-3000:]
        assert "other data" in str(end.error)
    assert records(job) == straight("one")[1]


def heard(job):
    """Trains, and prints what is said."""
    import jobs

    logging.getLogger("nemo_xtoken").addHandler(logging.StreamHandler())
    jobs.train(job)


@pytest.mark.parametrize("ranks", [1, 2])
def test_another_loss_goes_on_and_is_said(world, ranks):
    """By the first rank, once: what is the same again is not news."""
    job = world.distillation(f"other_loss{ranks}", steps=2, save_every=2, loss="p_kl")
    world.run(job, ranks)
    changed = job.but(steps=4, loss="uld", scale=0.5)
    for steps, expected in ((4, [1] + [0] * (ranks - 1)), (6, [0] * ranks)):
        ended = start(heard, changed.but(steps=steps), ranks=ranks, folder=world.root / "logs" / f"{job.name}{steps}")
        assert [end.status for end in ended] == [0] * ranks, ended[0].log[-3000:]
        assert [end.log.count("other settings than before") for end in ended] == expected
        if steps == 4:
            assert (
                "from step 3 on with other settings than before: objective.scale=0.5 (before: dynamic), "
                "teacher.loss=uld (before: p_kl)\n"
            ) in ended[0].log
    assert [record["step"] for record in records(job) if "ce" in record] == [1, 2, 3, 4, 5, 6]


def without_building(job):
    """A start that may neither read data nor build a model."""
    import jobs

    from nemo_xtoken.plugin.nemo2 import distill

    jobs.DistillationData.read = distill.llm.train = None
    jobs.train(job)


@pytest.mark.parametrize("change", ["a token more", "a merge less"])
def test_another_tokenizer_is_refused(world, straight, tmp_path, change):
    history = straight("one")[1]
    job = course(world, "straight_one", **LAYOUTS["one"][1])
    other = tmp_path / "other"
    shutil.copytree(world.root / "student_tokenizer", other)
    spec = json.loads((other / "tokenizer.json").read_text())
    size = load_vocabulary(other).size
    if change == "a token more":
        flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
        spec["added_tokens"].append({"id": size, "content": "<|more|>", **flags})
    else:
        spec["model"]["merges"].pop()
    (other / "tokenizer.json").write_text(json.dumps(spec))
    now, before = load_vocabulary(other), load_vocabulary(world.root / "student_tokenizer")
    [end] = start(without_building, job.but(steps=8, tokenizer=str(other)), folder=world.root / "logs" / "other_tokens")
    assert isinstance(end.error, InputError), end.log[-3000:]
    for vocabulary in (now, before):
        assert f"({vocabulary.size:,} tokens, digest {vocabulary.digest[:12]}" in end.error.found
    assert str(other) in end.error.found
    assert str(job.last) in end.error.found
    assert records(job) == history


def test_another_tensor_parallel_size_goes_on(world):
    """The distributed optimizer's states are written so that any layout can read them."""

    def steps(job):
        return [
            (r["step"], r["ce"], r["kd"]["teacher"] if isinstance(r["kd"], dict) else r["kd"]) for r in records(job)
        ]

    one = world.distillation("reshard_straight", steps=5, seed=3)
    world.run(one)
    job = world.distillation("reshard", steps=3, save_every=3, tp=2, seed=3)
    world.run(job, 2)
    world.run(job.but(tp=1, steps=5))
    for found, expected in zip(steps(job), steps(one), strict=True):
        assert found == pytest.approx(expected, rel=1e-5)

"""A run that was interrupted, however, and started again with the same command ends as if it had not been."""

import json
import os
import signal

import pytest
from launcher import launch, start

from nemo_xtoken.errors import InputError

pytestmark = pytest.mark.usefixtures("nemo")

STEPS = 6
LAYOUTS = {"one": (1, {}), "tp2": (2, {"tp": 2})}
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


def interrupt(world, job, ranks, step, number, seconds):
    """Starts a run and sends it a signal when ``step`` steps are done; how its ranks ended."""
    import jobs
    from watchers import Pause

    flag = world.root / f"{job.name}.flag"

    def signalled(pids):
        if flag.exists():
            for pid in pids:
                os.kill(pid, number)
        return flag.exists()

    return start(
        jobs.train,
        job.but(watchers=(Pause(step, flag, seconds),)),
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


@BOTH
def test_killed(world, straight, layout):
    ranks, settings = LAYOUTS[layout]
    job = course(world, f"killed_{layout}", **settings)
    ended = interrupt(world, job, ranks, step=5, number=signal.SIGKILL, seconds=60)
    assert [end.status for end in ended] == [-signal.SIGKILL] * ranks
    assert records(job)[-1]["step"] == 5  # ahead of the checkpoint, after which it is to go on
    weights, history, steps = finish(world, job, ranks)
    assert steps == STEPS - 4
    assert (weights, history) == straight(layout)


@BOTH
def test_terminated(world, straight, layout):
    ranks, settings = LAYOUTS[layout]
    job = course(world, f"terminated_{layout}", **settings)
    ended = interrupt(world, job, ranks, step=2, number=signal.SIGTERM, seconds=1)
    assert [end.status for end in ended] == [0] * ranks, ended[0].log[-3000:]
    assert records(job)[-1]["step"] == 3
    weights, history, steps = finish(world, job, ranks)
    assert steps == STEPS - 3  # it saved at once, between two regular checkpoints
    assert weights == straight(layout)[0]
    assert history == straight(layout)[1]


# The evaluation after step 3 saves as well; within the first save there is no checkpoint to go on from.
@pytest.mark.parametrize(("step", "resumed"), [(2, 0), (4, 3)])
def test_killed_within_a_save(world, straight, step, resumed):
    import jobs
    from watchers import DieInSave

    job = course(world, f"died_in_save{step}")
    [end] = start(jobs.train, job.but(watchers=(DieInSave(step),)), folder=world.root / "logs" / job.name)
    assert end.status == -signal.SIGKILL, end.log[-3000:]
    assert len(list(job.folder.glob("checkpoints/*-last"))) == (2 if resumed else 1)  # with the half-written one
    weights, history, steps = finish(world, job, 1)
    assert steps == STEPS - resumed
    assert (weights, history) == straight("one")
    assert not list(job.folder.glob("checkpoints/*-unfinished"))


def test_the_same_command_after_the_end_changes_nothing(world, straight):
    import jobs
    from watchers import Totals

    weights, history = straight("one")
    job = course(world, "straight_one")
    before = sorted(job.folder.rglob("*.distcp"))
    [result] = launch(jobs.train, job.but(watchers=(Totals(),)), folder=world.root / "logs" / "again")
    assert "totals" not in result
    assert records(job) == history
    assert sorted(job.folder.rglob("*.distcp")) == before
    assert weights


def test_other_data_is_refused(world, straight):
    import jobs

    straight("one")
    job = course(world, "straight_one")
    for change in ({"seed": 5}, {"student_length": 48}):
        [end] = start(jobs.train, job.but(steps=8, text=job.text | change), folder=world.root / "logs" / "other_data")
        assert isinstance(end.error, InputError), end.log[-3000:]
        assert "other data" in str(end.error)
    assert records(job) == straight("one")[1]

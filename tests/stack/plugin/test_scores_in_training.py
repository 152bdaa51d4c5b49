"""Training starts a process that takes its checkpoints, under any layout, and is none the worse for it."""

import shlex
from pathlib import Path

import pytest

from nemo_xtoken.errors import InputError
from nemo_xtoken.weights.checkpoint_names import UNFINISHED

pytestmark = pytest.mark.usefixtures("nemo")


def evaluation(**settings):
    from nemo_xtoken.plugin.nemo2.evaluation import EvaluationConfig

    return EvaluationConfig(**{"every": 2, "tasks": "winogrande", **settings})


def taker(folder):
    """A command that notes what it is given, with the names of the environment that are a rank's."""
    script = folder / "take.sh"
    script.write_text('env | grep -c "^WORLD_SIZE=" >> "$0.ranks"; echo "$1" >> "$0.taken"\n')
    return f"sh {script}", folder / "take.sh.taken", folder / "take.sh.ranks"


def test_each_checkpoint_is_handed_over_once(world, tmp_path):
    from jobs import train
    from launcher import launch

    command, taken, ranks = taker(tmp_path)
    job = world.job("evaluated", start=world.student, steps=5, save_every=2, pp=2)
    launch(train_with, train, job, evaluation(submit=command, shots=1), ranks=2, folder=tmp_path / "logs")
    jobs = [shlex.split(line)[3:] for line in taken.read_text().splitlines()]
    assert all(words[:2] == ["evaluate", f"run={job.folder}"] for words in jobs)
    steps = [words[2] for words in jobs]
    assert len(steps) == len(set(steps))
    assert "step=5" in steps  # the end, whatever its step; of the others those that were not removed before
    assert set(steps) <= {"step=2", "step=4", "step=5"}
    assert all(words[3:] == ["tasks=winogrande", "shots=1"] for words in jobs)
    assert set(ranks.read_text().split()) == {"0"}
    assert "watching" in (job.folder / "evaluations" / "watch.log").read_text()


def train_with(train, job, config):
    return train(job, evaluate=config)


def test_a_process_that_fails_leaves_the_run_whole(world, tmp_path):
    from jobs import train
    from launcher import start

    job = world.job("evaluated-in-vain", start=world.student, steps=2, save_every=2)
    [end] = start(train_with, train, job, evaluation(submit="false"), folder=tmp_path / "logs")
    assert end.status == 0, end.log
    assert job.last.is_dir()
    assert "was not submitted by 'false'" in (job.folder / "evaluations" / "watch.log").read_text()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"every": 3}, "a checkpoint every 2 steps"),
        ({"every": 0}, "evaluate.every=0"),
        ({"data": "no/such"}, "no/such"),
        ({"tasks": ""}, "tasks=''"),
        ({"shots": -1}, "shots=-1"),
    ],
)
def test_settings_are_checked_before_training(settings, message):
    import nemo.lightning as nl

    from nemo_xtoken.plugin.nemo2.evaluation import evaluations

    log = nl.NeMoLogger(ckpt=nl.ModelCheckpoint(every_n_train_steps=2))
    with pytest.raises(InputError, match=message):
        evaluations(evaluation(**settings), Path("run"), log)
    with pytest.raises(InputError, match="no steps"):
        evaluations(evaluation(), Path("run"), nl.NeMoLogger())


def test_the_marker_is_nemo_s():
    import nemo.lightning as nl

    assert nl.ModelCheckpoint.UNFINISHED_CHECKPOINT_SUFFIX == UNFINISHED


def test_it_is_set_on_the_command_line_of_any_recipe():
    import fiddle as fdl
    import nemo_run as run
    from nemo_run.cli.cli_parser import parse_cli_args

    from nemo_xtoken.commands.run_config import add_named
    from nemo_xtoken.plugin.nemo2.distill import distill

    config = run.Partial(distill)
    words = ["evaluate.every=1000", "evaluate.tasks=mmlu,gsm8k", "evaluate.limit=0.5"]
    add_named(config, words)
    parse_cli_args(config, words)
    assert fdl.build(config.evaluate) == evaluation(every=1000, tasks="mmlu,gsm8k", limit=0.5)

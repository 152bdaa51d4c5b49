"""Ranks from what srun sets, and where they must not be touched."""

from types import SimpleNamespace

import pytest

from nemo_xtoken.errors import InputError
from nemo_xtoken.launch.ranks import (
    Placement,
    adopt_slurm_ranks,
    check_accelerator,
    first_host,
    fit_trainer,
    placement,
)

# The 6th of 2 x 4 tasks, as Slurm 22.05 sets it, in a job of sbatch or salloc.
JOB = {"SLURM_JOB_ID": "123456", "SLURM_JOB_NODELIST": "dgx[07-08]", "SLURM_NNODES": "2", "SLURM_NTASKS": "8"}
STEP = {
    **JOB,
    "SLURM_JOB_NAME": "interactive",
    "SLURM_STEP_ID": "3",
    "SLURM_STEP_NODELIST": "dgx[07-08]",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_STEP_TASKS_PER_NODE": "4(x2)",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
}


def _adopted(environment):
    environment = dict(environment)
    before = dict(environment)
    adopt_slurm_ranks(environment)
    return {name: value for name, value in environment.items() if before.get(name) != value}


def test_a_step_gets_torchruns_variables():
    assert _adopted(STEP) == {
        "RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4", "GROUP_RANK": "1", "NODE_RANK": "1",
        "MASTER_ADDR": "dgx07", "MASTER_PORT": str(10000 + 123456 % 20000 + 4 * 97),
        "TORCHELASTIC_RUN_ID": "slurm-123456-3",
    }  # fmt: skip
    assert placement({**STEP, **_adopted(STEP)}) == Placement(nodes=2, devices=4)


def test_the_scripts_meeting_point_stays():
    assert not {"MASTER_ADDR", "MASTER_PORT"} & set(_adopted({**STEP, "MASTER_ADDR": "a", "MASTER_PORT": "1"}))


def test_no_step_meets_where_the_script_does():
    """A teacher's step 0 beside a student whose script has chosen the port of the job."""
    ports = {_adopted({**STEP, "SLURM_STEP_ID": str(step)})["MASTER_PORT"] for step in range(4)}
    assert len(ports | {str(10000 + 123456 % 20000)}) == 5


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {**STEP, "RANK": "0"},  # torchrun below srun
        JOB,  # the shell of salloc
        {**JOB, "SLURM_NTASKS": "1", "SLURM_PROCID": "0"},  # a job's script with one task
        {**STEP, "SLURM_STEP_NUM_TASKS": "1", "SLURM_STEP_NUM_NODES": "1"},  # srun --pty bash
    ],
    ids=["no Slurm", "torchrun", "salloc", "script", "shell"],
)
def test_elsewhere_nothing_changes(environment):
    assert _adopted(environment) == {}
    assert placement(environment) is None


def test_a_job_of_one_task_has_a_placement_too():
    environment = {**STEP, "SLURM_JOB_NAME": "run", "SLURM_STEP_NUM_TASKS": "1", "SLURM_STEP_NUM_NODES": "1"}
    adopted = _adopted({**environment, "SLURM_PROCID": "0", "SLURM_STEP_TASKS_PER_NODE": "1"})
    assert placement(adopted) == Placement(1, 1)


@pytest.mark.parametrize("given", [2, "2"])
def test_the_jobs_number_of_devices_is_accepted_as_a_number_and_as_text(given):
    """The command line gives text where the argument's annotation names several types."""
    torchrun = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    config = SimpleNamespace(trainer=SimpleNamespace(num_nodes=1, devices=given))
    fit_trainer(config, [f"trainer.devices={given}"], torchrun)
    assert config.trainer.devices == 2
    config.trainer.devices = "3"
    with pytest.raises(InputError, match=r"trainer\.devices=3 in a job of 1 x 2 processes"):
        fit_trainer(config, ["trainer.devices=3"], torchrun)


@pytest.mark.parametrize("wanted", ["gpu", "cuda"])
def test_a_gpu_that_is_not_there_is_refused(wanted, monkeypatch):
    config = SimpleNamespace(trainer=SimpleNamespace(accelerator=wanted))
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(InputError, match=rf"trainer\.accelerator={wanted}, and no GPU here"):
        check_accelerator(config)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    check_accelerator(config)


def test_runs_that_do_not_ask_for_a_gpu_need_none(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    for trainer in (SimpleNamespace(accelerator="auto"), SimpleNamespace(accelerator="cpu"), SimpleNamespace(), None):
        check_accelerator(SimpleNamespace(trainer=trainer))
    check_accelerator(SimpleNamespace())


def test_a_script_without_srun_is_told_so():
    with pytest.raises(InputError, match="put srun before the command"):
        _adopted({**JOB, "SLURM_PROCID": "0"})


@pytest.mark.parametrize(("tasks", "spread"), [("7", "4,3"), ("8", "5,3")])
def test_uneven_tasks_are_refused(tasks, spread):
    with pytest.raises(InputError, match="the same number on each"):
        _adopted({**STEP, "SLURM_STEP_NUM_TASKS": tasks, "SLURM_STEP_TASKS_PER_NODE": spread})


@pytest.mark.parametrize(
    ("hosts", "first"),
    [
        ("dgx[003-005,9],login", "dgx003"),
        ("a", "a"),
        ("a,b[1-2]", "a"),
        ("n[1]", "n1"),
        ("r[1-2]n[01-04]", "r1n01"),
        ("r[2,5]-gpu,x", "r2-gpu"),
        ("10.0.0.1", "10.0.0.1"),
    ],
)
def test_first_host(hosts, first):
    assert first_host(hosts) == first

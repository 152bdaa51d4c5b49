"""What `--executor slurm` hands to nemo_run: held against a file, and the same job as the plain script."""

import os
import re
import subprocess
from pathlib import Path

import pytest
from fake_slurm import directives, end, install, sbatch

pytest.importorskip("nemo_run")

from nemo_run.config import get_nemorun_home, set_nemorun_home

from nemo_xtoken.errors import InputError
from nemo_xtoken.launch.executors import submit
from nemo_xtoken.launch.job import Job, distillation
from nemo_xtoken.launch.sbatch import options
from nemo_xtoken.launch.slurm_config import SlurmConfig, load_config
from nemo_xtoken.launch.teacher_steps import teacher_steps

GOLDEN = Path(__file__).parent / "golden" / "nemo_run_2_nodes.txt"


@pytest.fixture(autouse=True)
def _home(tmp_path, monkeypatch):
    before = get_nemorun_home()
    set_nemorun_home(str(tmp_path / "home"))
    with open(os.devnull) as nothing:
        monkeypatch.setattr("sys.stdin", nothing)  # nemo_run's way of running commands reads it
        yield
    set_nemorun_home(before)


def _container(tmp_path, **more):
    return SlurmConfig(
        account="research", nodes=2, container_image="/images/x.sqsh", container_mounts=("/data:/data:ro",),
        pass_env=("ALL", "HF_TOKEN"), srun_args=("--label",), workdir="/lustre/me", **more,
    )  # fmt: skip


def test_the_dry_run_is_what_will_be_submitted_and_leaves_nothing(tmp_path, capsys):
    config = _container(tmp_path)
    submit(config, distillation(config, "xtoken_tiny", None, ["log.name=it's"]), dryrun=True)
    shown = re.sub(r"_\d{10,}/", "_ID/", capsys.readouterr().out.replace(f"{tmp_path}/home/experiments", "HOME"))
    if os.environ.get("WRITE_GOLDEN"):
        GOLDEN.write_text(shown)
    assert shown == GOLDEN.read_text()
    assert not list((tmp_path / "home").rglob("*.sh"))


def test_it_asks_for_the_same_as_the_plain_script(tmp_path, capsys):
    config = _container(
        tmp_path, additional_parameters={"mail-user": "a@b"}, chain=2, exclusive=True, gpu_request="gres"
    )
    job = Job("name", ("true",))
    submit(config, job, dryrun=True)
    first, second = capsys.readouterr().out.split("#!/bin/bash\n")[1:]
    plain = options(config, job)
    own = {"output": "/lustre/me/runs/slurm/name-%j.script.log"}  # the run's log is srun's here
    assert directives(first) == directives(second) == {k: v for k, v in plain.items() if k != "requeue"} | own


def test_a_sweep_becomes_an_array(tmp_path, capsys):
    config = SlurmConfig(workdir=str(tmp_path), gpus_per_node=1)
    submit(config, distillation(config, "r", None, [], [["a=1"], ["a=2"]]), dryrun=True)
    out = capsys.readouterr().out
    assert "#SBATCH --array=0-1\n" in out
    assert "    1) words=(log.name=r-1 a=2) ;;" in out
    assert 'exec nemo llm distill --recipe r "${words[@]}"' in out


def test_a_folder_that_nemo_run_cannot_quote_is_refused(tmp_path):
    with pytest.raises(InputError, match="without spaces"):
        submit(SlurmConfig(workdir="/a b"), Job("n", ("true",)), dryrun=True)


XTOKEN = """#!/bin/bash
for word in "$@"; do declare "${word%%=*}=${word#*=}" 2> /dev/null || true; done
echo "$name: $SLURM_PROCID of $SLURM_STEP_NUM_TASKS on $SLURM_STEP_NODELIST: $*"
mkdir -p "$folder" && touch "$folder/$name"
until [ -e "$until" ]; do sleep .05; done
echo "$name ends"
"""


def test_a_teacher_on_nodes_of_its_own_is_in_the_same_job(tmp_path, monkeypatch, capsys):
    """On the fake cluster, as nemo_run submits it; and nodes of another kind are refused with what can do it."""
    folder, state, submitted = tmp_path / "bin", tmp_path / "state", tmp_path / "submitted"
    install(folder)
    state.mkdir()
    sbatch_stub = f'#!/bin/sh\nfor last; do :; done; echo "$last" > {submitted}; echo 4711\n'
    for name, text in (("sbatch", sbatch_stub), ("xtoken", XTOKEN)):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    settings = [f"executor.workdir={tmp_path}", "executor.nodes=2", "executor.gpus_per_node=1"]
    config = load_config("venv", settings)
    run = {"path": "/m/the teacher's"}
    waits = f"until [ -e {tmp_path}/service/replica-0 ]; do sleep .05; done; echo student on $SLURM_STEP_NUM_TASKS"
    job = Job("name", ("bash", "-c", waits))
    steps = teacher_steps("venv", settings, [], 1, run, f"{tmp_path}/service", True)
    submit(config, job, dryrun=False, teacher=steps)
    script = Path(submitted.read_text().strip())
    assert directives(script.read_text())["nodes"] == "3"
    process, log = sbatch(script, state, dict(os.environ))
    try:
        assert process.wait(60) == 0, log.read_text()
    finally:
        end(process)
    logs = tmp_path / "runs" / "slurm"
    assert (logs / "name-4711.log").read_text() == 2 * "student on 2\n"
    teachers = (logs / "name-4711-teacher-0.log").read_text()
    assert "replica-0: 0 of 1 on node[3-3]: serve teacher=/m/the teacher's dtype=bf16 folder=" in teachers
    assert "replica-0 ends" in teachers
    other = teacher_steps("venv", settings, ["executor.partition=a100"], 1, run, "service", True)
    with pytest.raises(InputError, match="`xtoken sbatch` writes the heterogeneous job"):
        submit(config, job, dryrun=True, teacher=other)


def test_the_submitted_script_runs_and_ends_as_the_plain_one_does(tmp_path, monkeypatch):
    """Through nemo_run for real, down to `sbatch`, which notes the script; then that runs on the fake cluster."""
    folder, state, submitted = tmp_path / "bin", tmp_path / "state", tmp_path / "submitted"
    install(folder)
    state.mkdir()
    (folder / "sbatch").write_text(f'#!/bin/sh\nfor last; do :; done; echo "$last" > {submitted}; echo 4711\n')
    (folder / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    config = SlurmConfig(workdir=str(tmp_path), nodes=2, gpus_per_node=1)
    program = 'echo "$1 $PWD $MASTER_ADDR"; if [ "$SLURM_PROCID" = 0 ]; then touch "$NEMO_XTOKEN_STOPPED"; fi'
    submit(config, Job("name", ("bash", "-c", program, "bash", "it's $HOME")), dryrun=False)
    script = Path(submitted.read_text().strip())
    process, log = sbatch(script, state, dict(os.environ))
    assert process.wait(60) == 75, log.read_text()
    text = (tmp_path / "runs" / "slurm" / "name-4711.log").read_text()
    assert text == 2 * f"it's $HOME {tmp_path} 127.0.0.1\n"
    assert (state / "requeued").read_text() == "4711\n"
    assert subprocess.run(["bash", "-n", script]).returncode == 0

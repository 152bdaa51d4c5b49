"""What `--executor slurm` hands to nemo_run: held against a file, and the same job as the plain script."""

import os
import re
import subprocess
from pathlib import Path

import pytest
from fake_slurm import directives, install, sbatch

pytest.importorskip("nemo_run")

from nemo_run.config import get_nemorun_home, set_nemorun_home

from nemo_xtoken.errors import InputError
from nemo_xtoken.launch.executors import submit
from nemo_xtoken.launch.job import Job, distillation
from nemo_xtoken.launch.sbatch import options
from nemo_xtoken.launch.slurm_config import SlurmConfig

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

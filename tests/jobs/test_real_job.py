"""The recipe xtoken_tiny as a job on two "nodes": asked to stop in the middle, requeued, finished."""

import json
import os
import time

import pytest
from fake_slurm import end, install, sbatch, signal_steps

from nemo_xtoken.commands.cli import main

STEPS = 12


def _steps(history):
    records = map(json.loads, history.read_text().splitlines()) if history.exists() else ()
    return [record["step"] for record in records if "kd" in record]


@pytest.fixture
def start():
    """`sbatch`; what it started ends with the test."""
    started = []

    def submit(*arguments):
        started.append(sbatch(*arguments))
        return started[-1]

    yield submit
    for process, _ in started:
        end(process)


def test_two_nodes_stopped_requeued_and_finished(tmp_path, start, command_server):
    install(tmp_path / "bin")
    state, script = tmp_path / "state", tmp_path / "job.sh"
    state.mkdir()
    words = [
        "recipe=xtoken_tiny", "slurm=venv", f"out={script}", f"executor.workdir={tmp_path}",
        "executor.nodes=2", "executor.gpus_per_node=1", "executor.job_name=interactive",
        f"executor.program={command_server.program('nemo')}",
        f"trainer.max_steps={STEPS}", f"trainer.val_check_interval={STEPS}", "trainer.limit_val_batches=1",
        "teacher_steps=2", "data.micro_batch_size=1", "data.global_batch_size=2",
    ]  # fmt: skip
    assert main(["sbatch", *words]) == 0
    environment = {
        **os.environ,
        "PATH": f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "NEMO_XTOKEN_CACHE": str(tmp_path / "cache"),
        "GLOO_SOCKET_IFNAME": "lo",
    }
    run = tmp_path / "runs" / "xtoken_tiny"
    history = run / "history.jsonl"

    job, log = start(script, state, environment)
    while len(_steps(history)) < 3:
        assert job.poll() is None, log.read_text()[-5000:]
        time.sleep(0.02)
    signal_steps(state)
    assert job.wait(200) == 75, log.read_text()[-5000:]
    stopped = _steps(history)
    assert 3 <= len(stopped) < STEPS
    assert (state / "requeued").read_text() == "4711\n"
    assert not list(log.parent.glob(".stopped-*"))

    job, _ = start(script, state, {**environment, "SLURM_RESTART_COUNT": "1"})
    assert job.wait(300) == 0, log.read_text()[-5000:]
    assert _steps(history) == list(range(1, STEPS + 1))  # each once: it went on where it had stopped
    report = json.loads((run / "report.json").read_text())
    assert [entry["steps"] for entry in report] == [STEPS, STEPS]
    assert (state / "requeued").read_text() == "4711\n"
    text = log.read_text()
    assert text.count("xtoken_tiny: nemo_xtoken ") == 2  # its versions, by one rank, once each time
    assert "stopped before the end, with a checkpoint" in text

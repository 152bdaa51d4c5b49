"""The way users start it: torchrun, two processes."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path


def test_two_processes(world, command_server):
    program = command_server.program(str(Path(__file__).parents[1] / "support" / "torchrun_job.py"))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--no-python"]
    command += [str(program), str(world.root), world.student, world.teacher]
    environment = os.environ | {"GLOO_SOCKET_IFNAME": "lo", "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    try:
        output, _ = process.communicate(timeout=240)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGTERM)  # torchrun ends its ranks, which are sessions of their own
        output, _ = process.communicate(timeout=60)
        raise AssertionError(output[-6000:]) from None
    assert process.returncode == 0, output[-6000:]
    history = (world.root / "runs" / "torchrun" / "history.jsonl").read_text().splitlines()
    steps = [r["step"] for r in map(json.loads, history) if "kd" in r]
    assert steps == [1, 2]
    assert list((world.root / "runs" / "torchrun" / "checkpoints").glob("step_*"))

"""A cluster of one machine: `sbatch` as a function, `srun` and `scontrol` as commands that start real processes.

A "node" is a set of processes here.  The job's script runs in bash, with the variables that Slurm sets, in the folder
and with the log that it asks for.
"""

import contextlib
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__)
FLAGS = ("--label", "--no-container-mount-home")


def install(folder: Path) -> None:
    """Puts `srun` and `scontrol` into a folder for PATH."""
    folder.mkdir()
    for name in ("srun", "scontrol"):
        (folder / name).write_text(f'#!/bin/sh\nexec {sys.executable} -SE {HERE} {name} "$@"\n')
        (folder / name).chmod(0o755)


def directives(script: str) -> dict[str, str]:
    """The #SBATCH options of a script, read as sbatch reads them; a bare option has the value ''."""
    found = {}
    for line in script.splitlines():
        if line.startswith("#SBATCH "):
            for word in shlex.split(line.removeprefix("#SBATCH ")):
                name, _, value = word.removeprefix("--").partition("=")
                found[name] = value
        elif line and not line.startswith("#"):
            break  # sbatch looks no further either
    return found


def sbatch(path: Path, state: Path, environment: dict[str, str], job: int = 4711, task: int | None = None):
    """Starts a job; returns its process, whose output is in the file that the script names."""
    script = path.read_text()
    options = directives(script)
    nodes, tasks = options["nodes"], options["ntasks-per-node"]
    log = re.sub(
        r"%([xjAa])", lambda m: {"x": options["job-name"], "a": str(task)}.get(m[1], str(job)), options["output"]
    )
    variables = {
        "SLURM_JOB_ID": str(job),
        "SLURM_JOB_NAME": options["job-name"],
        "SLURM_JOB_NODELIST": f"node[1-{nodes}]",
        "SLURM_NNODES": nodes,
        "SLURM_NTASKS": str(int(nodes) * int(tasks)),
        "SLURM_NTASKS_PER_NODE": tasks,
        "SLURM_PROCID": "0",
        "FAKE_SLURM": str(state),
    }
    if task is not None:
        variables["SLURM_ARRAY_TASK_ID"] = str(task)
    with open(log, "a" if options.get("open-mode") == "append" else "w") as output:
        process = subprocess.Popen(
            ["bash", path],
            cwd=options["chdir"],
            env={**environment, **variables},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    return process, Path(log)


def end(process: subprocess.Popen) -> None:
    """Kills what is left of a job, tasks included."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def signal_steps(state: Path, number: int = signal.SIGTERM) -> None:
    """What `--signal=TERM@..` does: the signal goes to the tasks, not to the script around them."""
    for word in (state / "tasks").read_text().split():
        with contextlib.suppress(ProcessLookupError):  # of a step before
            os.kill(int(word), number)


def _options(words: list[str]) -> tuple[dict[str, str], list[str]]:
    """srun's options, written `--name=value`, `--flag`, or with the value in the next word; and the command."""
    found, words = {}, list(words)
    while words and words[0].startswith("-"):
        name, equals, value = words.pop(0).partition("=")
        found[name] = value if equals or name in FLAGS else words.pop(0)
    return found, words


def srun(words: list[str]) -> int:
    """Starts the tasks, kills the rest when one fails, and returns the largest exit status."""
    options, command = _options(words)
    if command[0] == "hostname":  # of one node, by which nemo_run finds its address
        return subprocess.call(["echo", "127.0.0.1"])
    assert options["--kill-on-bad-exit"] == "1"
    output = None
    if "--output" in options:  # nemo_run's way; with --open-mode=append among the rest
        names = {"j": os.environ["SLURM_JOB_ID"], "A": os.environ["SLURM_JOB_ID"]}
        names["a"] = os.environ.get("SLURM_ARRAY_TASK_ID", "")
        output = open(re.sub(r"%([jAa])", lambda m: names[m[1]], options["--output"]), "a")  # noqa: SIM115
    nodes, local = int(os.environ["SLURM_NNODES"]), int(os.environ["SLURM_NTASKS_PER_NODE"])
    nodes = int(options.get("--nodes", nodes))
    local = int(options.get("--ntasks-per-node", int(options.get("--ntasks", nodes * local)) // nodes))
    first = int(options.get("--relative", 0)) + 1
    hosts = os.environ["SLURM_JOB_NODELIST"]
    if "--relative" in options:
        group = options.get("--het-group", "0")
        hosts = f"{'node' if group == '0' else 'other'}[{first}-{first + nodes - 1}]"
    processes = []
    for rank in range(nodes * local):
        variables = {
            "SLURM_STEP_ID": "0",
            "SLURM_STEP_NUM_TASKS": str(nodes * local),
            "SLURM_STEP_NUM_NODES": str(nodes),
            "SLURM_STEP_NODELIST": hosts,
            "SLURM_STEP_TASKS_PER_NODE": f"{local}(x{nodes})",
            "SLURM_PROCID": str(rank),
            "SLURM_NODEID": str(rank // local),
            "SLURM_LOCALID": str(rank % local),
        }
        processes.append(subprocess.Popen(command, env={**os.environ, **variables}, stdout=output, stderr=output))
    with open(Path(os.environ["FAKE_SLURM"]) / "tasks", "a") as tasks:
        tasks.write(" ".join(str(p.pid) for p in processes) + "\n")
    statuses: list[int | None] = [None] * len(processes)
    while None in statuses:
        statuses = [p.poll() for p in processes]
        if any(statuses):
            for p in processes:
                p.kill()
            statuses = [p.wait() for p in processes]
        time.sleep(0.05)
    return max(s if s >= 0 else 128 - s for s in statuses)


def scontrol(words: list[str]) -> int:
    """`show hostnames` gives this machine for every node; `requeue` is noted."""
    if words[:2] == ["show", "hostnames"]:
        print("\n".join(["127.0.0.1"] * int(os.environ["SLURM_NNODES"])))
    elif words[0] == "requeue":
        with open(Path(os.environ["FAKE_SLURM"]) / "requeued", "a") as file:
            file.write(words[1] + "\n")
    else:
        return 1
    return 0


if __name__ == "__main__":
    sys.exit({"srun": srun, "scontrol": scontrol}[sys.argv[1]](sys.argv[2:]))

"""A student and its teacher on a real Slurm: controller and two nodes on this machine, jobs by `xtoken sbatch`.

    apt-get install --no-install-recommends slurmctld slurmd slurm-client munge
    python tests/slurm/real_slurm.py [FOLDER]

As root, with NeMo 2 in this Python's environment.  The recipe xtoken_tiny trains on node n1 with two processes, and its
teacher, two replicas, is on n2: once as a job of several steps, and once as a heterogeneous job of two partitions.
Each is asked to stop in the midst of training, as at a time limit; it writes a checkpoint, requeues itself, and goes
on.  At the end every step is in its history once, the two histories are equal, and nothing is left running.
`pytest` does not run this: there `fake_slurm` stands for Slurm.
"""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

STEPS, STOP_AFTER, LIMIT = 12, 4, 1500.0
PORTS = {"slurmctld": 16817, "n1": 17001, "n2": 17002}
CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={slurmctld}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
MpiDefault=none
ReturnToService=2
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=2,sched_interval=2,requeue_setup_env_fail
KillWait=5
NodeName=n1 NodeAddr=127.0.0.1 NodeHostname={host} Port={n1} CPUs=4 State=UNKNOWN
NodeName=n2 NodeAddr=127.0.0.1 NodeHostname={host} Port={n2} CPUs=4 State=UNKNOWN
PartitionName=both Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP
PartitionName=one Nodes=n1 MaxTime=INFINITE State=UP
PartitionName=two Nodes=n2 MaxTime=INFINITE State=UP
"""
SHAPES = {
    "two_steps": (),
    "two_components": ("executor.partition=one", "executor.teacher.partition=two"),
}


def in_a_namespace(folder: Path) -> None:
    """Starts this script again where n1 and n2 are names of this machine, for itself and what it starts alone."""
    if os.environ.get("REAL_SLURM_HOSTS"):
        return
    hosts = folder / "hosts"
    hosts.write_text(Path("/etc/hosts").read_text() + "\n127.0.0.1 n1 n2\n")
    again = f'mount --bind "{hosts}" /etc/hosts && exec "$@"'
    words = ["unshare", "--mount", "sh", "-c", again, "sh", sys.executable, __file__, str(folder)]
    os.execvpe(words[0], words, {**os.environ, "REAL_SLURM_HOSTS": str(hosts)})


@contextlib.contextmanager
def cluster(folder: Path) -> Iterator[None]:
    """Munge, the controller and two nodes, until the context is left."""
    known = {"folder": folder, "host": socket.gethostname(), **PORTS}
    (folder / "slurm.conf").write_text(CONFIGURATION.format(**known))
    (folder / "state").mkdir()
    (folder / "munge.key").write_bytes(os.urandom(128))
    (folder / "munge.key").chmod(0o600)
    os.environ["SLURM_CONF"] = str(folder / "slurm.conf")
    path = f"{os.environ['PATH']}:/usr/sbin"
    munge = [f"--{name}={folder}/munge.{name.split('-')[0]}" for name in ("key-file", "socket", "log-file", "pid-file")]
    munge.append(f"--seed-file={folder}/munge.seed")
    services = [
        ["munged", "--foreground", "--force", *munge],
        ["slurmctld", "-D", "-c"],
        ["slurmd", "-D", "-N", "n1"],
        ["slurmd", "-D", "-N", "n2"],
    ]
    started = []
    try:
        for number, words in enumerate(services):
            with open(folder / f"service-{number}.log", "w") as log:
                environment = {**os.environ, "PATH": path}
                started.append(subprocess.Popen(words, stdout=log, stderr=log, env=environment))
            time.sleep(1)
        wait_for("idle nodes", lambda: out("sinfo", "-h", "-o", "%t", "-p", "both").split() == ["idle"], 60)
        yield
    finally:
        for process in reversed(started):
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def out(*words: str) -> str:
    """What a command prints."""
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, (words, done.stdout, done.stderr)
    return done.stdout


def wait_for(what, condition, seconds=LIMIT, look=0.5):
    """Until the condition holds."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, f"no {what} after {seconds:.0f} s"
        time.sleep(look)
    return found


def field(job: str, name: str) -> str:
    """Of `scontrol show job`, of the first component."""
    return re.search(rf"\b{name}=(\S+)", out("scontrol", "show", "job", job))[1]


def records(run: Path) -> list[dict]:
    """The training steps in a run's history, without their seconds."""
    history = run / "history.jsonl"
    found = map(json.loads, history.read_text().splitlines()) if history.exists() else ()
    return [{k: v for k, v in one.items() if k != "seconds"} for one in found if "kd" in one]


def teacher(folder: Path, program: str, words: list[str]) -> str:
    """The checkpoint of the recipe's own teacher, after two steps."""
    first = [program, "llm", "distill", "--recipe", "xtoken_tiny", *words, "trainer.max_steps=1", "log.name=first"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    subprocess.run(first, cwd=folder, check=True, env=environment, stdin=subprocess.DEVNULL)
    [found] = (folder / "cache").rglob("run-*/checkpoints/step_*")
    return str(found)


def run_job(folder: Path, name: str, shape: tuple[str, ...], words: list[str]) -> list[dict]:
    """Submits a job, stops it in the midst as its time limit would, and sees it to its end."""
    from nemo_xtoken.commands.cli import main

    script, run = folder / f"{name}.sh", folder / "runs" / name
    assert main(["sbatch", "recipe=xtoken_tiny", *words, *shape, f"log.name={name}", f"out={script}"]) == 0
    print(f"{name}: {len(re.findall('^#SBATCH hetjob', script.read_text(), re.M)) + 1} component(s)", flush=True)
    job = out("sbatch", "--parsable", str(script)).strip().split(";")[0]
    log = folder / "runs" / "slurm" / f"{name}-{job}.log"

    def alive() -> str:
        state = field(job, "JobState")
        assert state not in ("FAILED", "CANCELLED", "NODE_FAIL", "TIMEOUT"), log.read_text()[-5000:]
        return state

    wait_for("training", lambda: alive() and len(records(run)) >= STOP_AFTER)
    print(f"{name}: job {job} has trained {len(records(run))} steps; it is asked to stop", flush=True)
    subprocess.run(["scancel", "--signal=TERM", job], check=True)  # to the steps, as --signal=TERM@.. does
    wait_for("second start", lambda: alive() == "RUNNING" and field(job, "Restarts") == "1")
    stopped = len(records(run))
    print(f"{name}: stopped after {stopped} steps, and started again", flush=True)
    assert stopped < STEPS
    wait_for("end", lambda: alive() == "COMPLETED")
    found = records(run)
    assert [one["step"] for one in found] == list(range(1, STEPS + 1))
    assert "stopped before the end, with a checkpoint" in log.read_text()
    logs = sorted(log.parent.glob(f"{name}-{job}-teacher-*.log"))
    assert len(logs) == 2
    for one in logs:
        assert one.read_text().count("tokens were computed") == 2, one.read_text()[-3000:]  # of each start
    print(f"{name}: finished, {len(found)} steps; {log}", flush=True)
    return found


def main() -> int:
    """All of it."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp(prefix="real-slurm-")).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    if missing := [name for name in ("sbatch", "unshare") if not shutil.which(name)]:
        print(f"error: no {missing[0]}: see the first lines of {__file__}")
        return 2
    in_a_namespace(folder)
    program = str(Path(sys.executable).parent / "nemo")
    os.environ.update(NEMO_XTOKEN_CACHE=str(folder / "cache"), GLOO_SOCKET_IFNAME="lo", OMP_NUM_THREADS="1")
    os.chdir(folder)
    short = [f"trainer.val_check_interval={STEPS}", "trainer.limit_val_batches=1", "teacher_steps=2"]
    path = teacher(folder, program, short)
    words = [
        "slurm=cpu", f"executor.workdir={folder}", f"executor.program={program}", "executor.time=01:00:00",
        "executor.ntasks_per_node=2", "executor.cpus_per_task=2", "executor.srun_args=[--label]",
        *short, f"trainer.max_steps={STEPS}", "data.micro_batch_size=1", "data.global_batch_size=4",
        f"teacher.path={path}", "teacher.nodes=1",
    ]  # fmt: skip
    with cluster(folder):
        found = {name: run_job(folder, name, shape, words) for name, shape in SHAPES.items()}
        assert out("squeue", "-h") == ""
    first, second = found.values()
    assert first == second
    print("the same history from both jobs; nothing is left in the queue")
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    sys.exit(main())

"""Ranks from what started the process: ``srun`` (also a bare one, also in ``salloc``) or ``torchrun``.

Lightning reads Slurm's variables itself, but takes a step for a single process where the job is called ``interactive``
or ``bash``, which is what ``salloc`` calls it, and refuses ``srun -n`` without ``--ntasks-per-node``.  So the variables
of a step become those of torchrun, which Lightning, NeMo and Megatron all read first.
"""

import re
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any

from nemo_xtoken.errors import InputError

__all__ = [
    "Placement",
    "adopt_slurm_ranks",
    "check_accelerator",
    "first_host",
    "fit_trainer",
    "gpu_memory",
    "gpus_here",
    "job_nodes",
    "placement",
]

INTERACTIVE = ("bash", "interactive")  # what `srun --pty bash` and `salloc` call a job


@dataclass(frozen=True)
class Placement:
    """Where the processes of a run are.

    Attributes:
        nodes: machines.
        devices: processes, each with its device, on every machine.
    """

    nodes: int
    devices: int


def adopt_slurm_ranks(environment: MutableMapping[str, str]) -> None:
    """Sets RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and their like for a process that ``srun`` started.

    Does nothing where they are set already (``torchrun``, also below ``srun``), and outside of Slurm.

    Raises:
        InputError: a job's script without ``srun``, or tasks spread unevenly over the nodes.
    """
    if "RANK" in environment or "SLURM_JOB_ID" not in environment:
        return
    tasks = int(environment.get("SLURM_STEP_NUM_TASKS") or environment.get("SLURM_NTASKS", "1"))
    if not environment.get("SLURM_STEP_ID", "").isdigit():  # the job's script itself, or salloc's shell
        if tasks > 1 and "SLURM_PROCID" in environment:
            raise InputError(
                f"one process in a job of {tasks} tasks", "one process per task", "put srun before the command"
            )
        return
    if tasks == 1 and environment.get("SLURM_JOB_NAME") in INTERACTIVE:
        return  # a shell in which the user starts programs
    nodes = int(environment.get("SLURM_STEP_NUM_NODES") or environment.get("SLURM_NNODES", "1"))
    spread = environment.get("SLURM_STEP_TASKS_PER_NODE", "")
    if tasks % nodes or "," in spread:
        raise InputError(
            f"{tasks} tasks on {nodes} nodes ({spread or 'unevenly'})",
            "the same number on each",
            "give srun --nodes and --ntasks-per-node",
        )
    job, step = int(environment["SLURM_JOB_ID"]), int(environment["SLURM_STEP_ID"])
    node = environment.get("SLURM_NODEID", "0")
    hosts = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_JOB_NODELIST", "localhost")
    environment.setdefault("MASTER_ADDR", first_host(hosts))
    # two steps may meet on one node, and there the job's script may have chosen 10000 + job for another
    environment.setdefault("MASTER_PORT", str(10000 + (job + 97 * (step + 1)) % 20000))
    environment.update(
        RANK=environment["SLURM_PROCID"],
        WORLD_SIZE=str(tasks),
        LOCAL_RANK=environment["SLURM_LOCALID"],
        LOCAL_WORLD_SIZE=str(tasks // nodes),
        GROUP_RANK=node,
        NODE_RANK=node,
        TORCHELASTIC_RUN_ID=f"slurm-{job}-{step}",  # this tells torch and Lightning that RANK and the others are set
    )


def placement(environment: Mapping[str, str]) -> Placement | None:
    """Where the processes are, by torchrun's variables; None for a process by itself."""
    if "WORLD_SIZE" not in environment or "LOCAL_WORLD_SIZE" not in environment:
        return None
    local = int(environment["LOCAL_WORLD_SIZE"])
    return Placement(int(environment["WORLD_SIZE"]) // local, local)


def job_nodes(environment: Mapping[str, str]) -> int:
    """Machines of the job that this process is in; 1 outside of one."""
    place = placement(environment)
    return place.nodes if place else 1


def fit_trainer(config: Any, overrides: Sequence[str], environment: Mapping[str, str]) -> None:
    """Sets the trainer's nodes and devices to those of the job, if ``srun`` or ``torchrun`` started it.

    Args:
        config: the configured run; one without a trainer stays as it is.
        overrides: ``key=value``, as given by the user.
        environment: of the process, with the ranks.

    Raises:
        InputError: an override asks for another number than the job has.
    """
    place, trainer = placement(environment), getattr(config, "trainer", None)
    if place is None or trainer is None:
        return
    for name, number in (("num_nodes", place.nodes), ("devices", place.devices)):
        if not hasattr(trainer, name) or str(getattr(trainer, name)) == str(number):  # nemo_run reads devices as text
            if hasattr(trainer, name):
                setattr(trainer, name, number)
            continue
        if any(word.startswith(f"trainer.{name}=") for word in overrides):
            raise InputError(
                f"trainer.{name}={getattr(trainer, name)} in a job of {place.nodes} x {place.devices} processes",
                f"trainer.{name}={number}",
                "leave it out, or start as many processes",
            )
        setattr(trainer, name, number)


def check_accelerator(config: Any) -> None:
    """Whether this machine has what the trainer is to run on.

    Raises:
        InputError: GPUs are asked for, and there is none that PyTorch can use.
    """
    wanted = getattr(getattr(config, "trainer", None), "accelerator", None)
    if wanted not in ("gpu", "cuda"):
        return
    import torch

    if not torch.cuda.is_available():
        raise InputError(
            f"trainer.accelerator={wanted}, and no GPU here that PyTorch can use",
            "a GPU with its driver, and PyTorch's CUDA build",
            "set trainer.accelerator=auto, which takes the CPU, or start it on another machine",
        )


def gpu_memory() -> float | None:
    """GiB of a GPU of this machine; None where PyTorch sees none."""
    import torch

    if not torch.cuda.is_available():
        return None
    return float(torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory) / 2**30


def gpus_here() -> int:
    """GPUs of this machine that PyTorch sees."""
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def first_host(hosts: str) -> str:
    """The first machine of a list as Slurm writes it: ``dgx[003-005,9],login`` begins with ``dgx003``."""
    first = re.findall(r"(?:[^\[,\s]|\[[^\]]*\])+", hosts)[0]
    return re.sub(r"\[([^\],-]*)[^\]]*\]", r"\1", first)

"""``CUDA_DEVICE_MAX_CONNECTIONS`` of a job: 1 as configured, or 8 where a pass of the teacher is to run ahead.

With 1 the device takes up kernels in the order of their launches.  Megatron overlaps collectives of tensor and context
parallelism with products only so, before Blackwell; a teacher that is ahead overlaps only without.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from nemo_xtoken.launch.slurm_config import SlurmConfig
from nemo_xtoken.run.settings import Settings
from nemo_xtoken.run.unsupported import AHEAD, CONNECTIONS

__all__ = ["Connections", "choose_connections"]

ONE, CUDAS_OWN = "1", "8"
STRATEGY = "trainer.strategy"
#: What Megatron overlaps only with one connection.
AXES = ("tensor_model", "context")


@dataclass(frozen=True)
class Connections:
    """
    Attributes:
        config: the job's configuration, with what was chosen.
        said: the same in words; empty where no run is concerned.
        overlaps: whether what is ahead can overlap.
    """

    config: SlurmConfig
    said: str = ""
    overlaps: bool = True


def choose_connections(config: SlurmConfig, words: Iterable[str], runs: Sequence[Settings]) -> Connections:
    """Puts CUDA's own number in place of 1 where every run of the job has a teacher ahead, and no use for 1.

    Args:
        words: of the command line that the configuration has: what they set stays.
        runs: settings of the job's run, or of each task of a sweep.
    """
    ahead = [run for run in runs if any(teacher.get(AHEAD) for teacher in run.teachers().values())]
    if not ahead or config.env_vars.get(CONNECTIONS) != ONE:
        return Connections(config)
    kept = f"{CONNECTIONS}={ONE}, with which a teacher's pass ahead overlaps nothing"
    if any(CONNECTIONS in word for word in words):
        return Connections(config, f"{kept}, as the command line has it", overlaps=False)
    if len(ahead) < len(runs):
        return Connections(config, f"{kept}, as {len(runs) - len(ahead)} tasks have none", overlaps=False)
    for run in runs:
        if why := _use(run):
            return Connections(config, f"{kept}, as {why}", overlaps=False)
    config = dataclasses.replace(config, env_vars=config.env_vars | {CONNECTIONS: CUDAS_OWN})
    return Connections(config, f"{CONNECTIONS}={CUDAS_OWN} in place of {ONE}, so that a teacher's pass ahead overlaps")


def _use(run: Settings) -> str:
    """What a run needs one connection for; empty: nothing."""
    for axis in AXES:
        name = f"{STRATEGY}.{axis}_parallel_size"
        size = run.get(name)
        if size is None and run.any_pair and axis == "tensor_model":
            return f"{name} is left to the machine"
        if int(size or 1) > 1:
            return f"Megatron overlaps the collectives of {name}={size} only so, before Blackwell"
    return ""

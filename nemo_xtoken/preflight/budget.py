"""Memory of a GPU and time of the run, on paper."""

from collections.abc import Iterator
from typing import Any

from nemo_xtoken.errors import InputError
from nemo_xtoken.launch.slurm_config import SlurmConfig
from nemo_xtoken.preflight.findings import Finding, green, left_out, red, rounded, yellow
from nemo_xtoken.preflight.plan import Plan
from nemo_xtoken.run.estimates.loss_time import GIB
from nemo_xtoken.run.estimates.memory import worst_stage
from nemo_xtoken.run.estimates.step_time import Gpu, step_time

__all__ = ["memory", "time"]

#: GiB that CUDA, NCCL and the kernels' libraries take of a GPU before a tensor is made.
CONTEXT = 3.0
#: Share of what is left that an allocator fills without trouble.
COMFORT = 0.85


def memory(plan: Plan, figures: dict[str, Any]) -> Iterator[Finding]:
    """Of the GPU that needs most."""
    run = plan.training()
    if run is None:
        yield left_out("memory", "a model's sizes are not known, or not one copy fits the GPUs")
        return
    parts = worst_stage(run)
    figures["memory"] = {name: round(size) for name, size in parts.items()}
    need, there = sum(parts.values()) / GIB, plan.gpu_gib - CONTEXT
    listed = ", ".join(f"{name} {size / GIB:.1f}" for name, size in sorted(parts.items(), key=lambda p: -p[1]))
    found = f"about {need:.1f} GiB on a GPU ({listed})"
    expected = f"at most {there * COMFORT:.0f} GiB of {plan.gpu_gib:.0f}"
    if need > there:
        yield red("memory", InputError(found, expected, _saving(parts)))
    elif need > there * COMFORT:
        yield yellow("memory", found, expected, _saving(parts))
    else:
        yield green("memory", f"{found} of {plan.gpu_gib:.0f}")


def _saving(parts: dict[str, float]) -> str:
    """What makes the largest part smaller."""
    largest = max(parts, key=lambda name: parts[name])
    advice = {
        "activations": "a smaller data.micro_batch_size, model.config.recompute_granularity=full "
        "recompute_method=uniform recompute_num_layers=1, or more tensor or context parallelism",
        "teachers": "more tensor parallelism for the teacher (teacher.tensor_model_parallel_size)",
        "loss": "a smaller objective.tile_mib, or more tensor parallelism",
        "student": "more tensor or pipeline parallelism, and optim.config.use_distributed_optimizer=true",
    }
    if largest.startswith("teachers: hidden"):
        return "more data-parallel ranks, or a smaller data.global_batch_size: hidden states of a step are kept"
    return next((text for part, text in advice.items() if largest.startswith(part)), advice["student"])


def time(plan: Plan, slurm: SlurmConfig | InputError | None, figures: dict[str, Any]) -> Iterator[Finding]:
    """Of the run, and how many jobs it takes."""
    run = plan.training()
    if run is None or plan.max_steps < 1:
        yield left_out("time", "a model's sizes are not known, or not one copy fits the GPUs")
        return
    parts = step_time(run, Gpu(), plan.tokens, plan.chunks)
    step = sum(parts.values())
    seconds = step * plan.max_steps
    figures |= {"step_seconds": step, "run_seconds": seconds, "step_parts": parts}
    shares = ", ".join(f"{name} {value / step:.0%}" for name, value in parts.items() if value)
    text = f"about {rounded(step, 2)} s a step ({shares}), {_readable(seconds)} in all, on H100s; not measured on a GPU"
    if not isinstance(slurm, SlurmConfig):
        yield green("time", text)
        return
    jobs = -(-seconds // max(1, slurm.seconds - slurm.stop_seconds)) if slurm.seconds else 1
    figures["jobs"] = int(jobs)
    if jobs > slurm.chain and not slurm.requeue:
        yield yellow(
            "time",
            f"{text}: {jobs:.0f} jobs of {slurm.time}, and chain={slurm.chain} without requeue",
            "as many jobs as the run takes",
            f"executor.chain={jobs:.0f}, executor.requeue=true, or a longer executor.time",
        )
    else:
        yield green("time", f"{text}: {jobs:.0f} job{'s' * (jobs > 1)} of {slurm.limit}")


def _readable(seconds: float) -> str:
    for size, unit in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} seconds"

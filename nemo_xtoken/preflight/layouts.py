"""Whether models, sequences and batches divide over the GPUs, and what a step holds."""

from collections.abc import Iterator
from typing import Any

from nemo_xtoken.preflight.findings import Finding, green, red, rounded, yellow
from nemo_xtoken.preflight.plan import Plan
from nemo_xtoken.run.layout import ParallelSizes
from nemo_xtoken.run.run_checks import layout_problems, unsupported_settings

__all__ = ["layout", "steps", "unsupported"]


def unsupported(plan: Plan) -> Iterator[Finding]:
    """Settings that cannot be had with these losses; yellow where that hangs on a version that is not known here."""
    for error, certain in unsupported_settings(plan.run):
        if certain:
            yield red("settings", error)
        else:
            yield yellow("settings", error.found, error.expected, error.fix)


def layout(plan: Plan) -> Iterator[Finding]:
    """The checks that the run makes itself, all of them rather than the first, and what only slows it down."""
    problems = list(layout_problems(plan.run))
    yield from (red("layout", problem) for problem in problems)
    if not problems:
        parts = [f"{plan.processes} GPUs: {_described(plan)}"]
        own = [s for s in plan.teachers if s.sizes.ranks != plan.student.sizes.ranks or s.sizes.expert > 1]
        parts += [f"{s.label} {_sizes(s.sizes) or 1}" for s in own]
        yield green("layout", "; ".join(parts))
        yield from _advice(plan)


def _described(plan: Plan) -> str:
    return " x ".join([*filter(None, [_sizes(plan.student.sizes)]), f"data {plan.data_parallel}"])


def _sizes(of: ParallelSizes) -> str:
    named = (("tensor", of.tensor), ("pipeline", of.pipeline), ("context", of.context), ("expert", of.expert))
    return " x ".join(f"{name} {size}" for name, size in named if size > 1)


def _advice(plan: Plan) -> Iterator[Finding]:
    for side in plan.sides:
        if side.sizes.tensor > plan.gpus:
            yield yellow(
                "layout",
                f"a tensor-parallel group of the {side.label} has {side.sizes.tensor} GPUs, a node {plan.gpus}",
                f"at most {plan.gpus}: within a node GPUs talk over NVLink",
                f"lower {side.where}.tensor_model_parallel_size, and raise pipeline_model_parallel_size instead",
            )
    stages, micro_batches = plan.student.sizes.pipeline, plan.global_batch // (plan.micro_batch * plan.data_parallel)
    if stages > 1 and micro_batches < 4 * stages:
        idle = (stages - 1) / (micro_batches + stages - 1)
        yield yellow(
            "layout",
            f"{micro_batches} micro-batches through {stages} pipeline stages: {idle:.0%} of a step is waiting",
            f"{4 * stages} or more",
            "smaller data.micro_batch_size, or fewer stages",
        )
    for side in plan.teachers:
        copies = plan.processes // side.sizes.ranks
        units = micro_batches * plan.data_parallel
        if copies != plan.data_parallel and units % copies:
            yield yellow(
                "layout",
                f"{copies} copies of the {side.label} share {units} micro-batches of a step: some are done twice",
                f"a number of copies that divides {units}",
                f"change {side.where}.*_parallel_size or data.micro_batch_size",
            )


def steps(plan: Plan, figures: dict[str, Any]) -> Iterator[Finding]:
    """Tokens of a step, steps, tokens in all; whether schedule and checkpoints fit into them."""
    total, warm_up = plan.max_steps, plan.settings.number("optim.lr_scheduler.warmup_steps", 0)
    if total < 1 or plan.global_batch < 1 or plan.micro_batch < 1:
        return  # the settings are red
    per_step = plan.global_batch * plan.student.length
    figures |= {"tokens_per_step": per_step, "steps": total, "tokens": per_step * total}
    yield green(
        "steps",
        f"{total:,} steps of {plan.global_batch:,} x {plan.student.length:,} = {per_step:,} student tokens, "
        f"{rounded(per_step * total)} in all",
    )
    if warm_up >= total:
        yield yellow(
            "steps",
            f"{warm_up} steps of warm-up in a run of {total}: the learning rate never gets to its peak",
            "a warm-up of a few per cent of the run",
            "lower optim.lr_scheduler.warmup_steps",
        )

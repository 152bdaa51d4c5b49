"""The checks, in the order in which a run would meet what they look for."""

from collections.abc import Callable, Iterable
from typing import Any

from nemo_xtoken.errors import InputError
from nemo_xtoken.launch.slurm_config import SlurmConfig
from nemo_xtoken.preflight import budget, layouts, machine, tokenizers
from nemo_xtoken.preflight import corpus as texts
from nemo_xtoken.preflight.findings import Finding, Report, guarded
from nemo_xtoken.preflight.plan import Plan
from nemo_xtoken.run import architecture
from nemo_xtoken.run import sides as models
from nemo_xtoken.run.settings import Settings

__all__ = ["check"]


def check(
    settings: Settings,
    nodes: int,
    gpus: int,
    gpu_gib: float = 80.0,
    slurm: SlurmConfig | InputError | None = None,
    asked_for_slurm: bool = False,
    say: Callable[[str], None] = lambda stage: None,
) -> Report:
    """Looks at everything; nothing of what goes wrong in one check keeps the others from being made.

    Args:
        settings: of the run.
        nodes, gpus: machines, and GPUs (processes) on each.
        gpu_gib: memory of a GPU.
        slurm: the configuration of the job, or why there is none; None: not to be looked at.
        asked_for_slurm: whether the user named it, so that a wrong one is an error.
        say: told what is being looked at.
    """
    report = Report()

    def add(name: str, stage: str, findings: Iterable[Finding]) -> None:
        say(stage)
        report.findings += guarded(name, findings)

    add("versions", "looking for packages", machine.versions(slurm))
    student = models.student_side(settings)
    teachers = {}
    for where, config in settings.teachers().items():
        teachers[where] = models.teacher_side(settings, where, config)
    plan = Plan(settings, student, tuple(teachers.values()), nodes, gpus, gpu_gib)
    for side in plan.sides:
        add(side.label, f"reading the {side.label}", architecture.architecture(plan, side))
    add("hub", "looking for a token", machine.hub(plan, slurm))
    add("vocabularies", "reading the tokenizers", tokenizers.vocabularies(plan))
    add("layout", "dividing", layouts.layout(plan))
    add("steps", "dividing", layouts.steps(plan, report.figures))
    for side in plan.teachers:
        add(f"W, {side.label}", f"W for the {side.label}", tokenizers.projection(plan, side, report.figures))
    add("data", "reading the beginning of the data", texts.data(plan, report.figures))
    add("memory", "adding up", budget.memory(plan, report.figures))
    add("time", "adding up", budget.time(plan, slurm, report.figures))
    add("disk", "looking for space", machine.disk(plan, report.figures))
    add("run folder", "looking for space", machine.run_folder(plan))
    if slurm is not None:
        add("Slurm", "reading the Slurm configuration", machine.slurm_job(slurm, asked_for_slurm))
    report.figures |= _summary(plan)
    return report


def _summary(plan: Plan) -> dict[str, Any]:
    return {
        "nodes": plan.nodes,
        "gpus_per_node": plan.gpus,
        "processes": plan.processes,
        "source": plan.settings.source,
        "parameters": {side.label: round(side.model.parameters) for side in plan.sides if side.model is not None},
    }

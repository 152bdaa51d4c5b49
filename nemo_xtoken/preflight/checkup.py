"""The checks, in the order in which a run would meet what they look for."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from nemo_xtoken.errors import InputError
from nemo_xtoken.launch.slurm_config import SlurmConfig
from nemo_xtoken.preflight import architecture, budget, layouts, machine, tokenizers
from nemo_xtoken.preflight import corpus as texts
from nemo_xtoken.preflight.findings import Finding, Report, guarded, red
from nemo_xtoken.preflight.plan import Plan
from nemo_xtoken.run.arguments.names import check_content
from nemo_xtoken.run.settings import Settings
from nemo_xtoken.run.sides import run_of
from nemo_xtoken.run.teaching import label_of
from nemo_xtoken.run.values import value_checks

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
    add("settings", "reading the settings", (red("settings", error) for error in check_content(settings.content)))
    for part, check in value_checks(settings):
        add(_named(part), "reading the settings", _refused(_named(part), check))
    plan = Plan(settings, run_of(settings, nodes * gpus), nodes, gpus, gpu_gib)
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


def _named(part: str) -> str:
    """What the table calls a part of the settings."""
    return f"W, {label_of(part)}" if part.startswith("teacher") else part


def _refused(name: str, check: Callable[[], object]) -> Iterator[Finding]:
    """A red finding if a value does not fit; if a package is missing, a later check reports that."""
    try:
        check()
    except InputError as error:
        yield red(name, error)
    except ImportError:
        return


def _summary(plan: Plan) -> dict[str, Any]:
    return {
        "nodes": plan.nodes,
        "gpus_per_node": plan.gpus,
        "processes": plan.processes,
        "source": plan.settings.source,
        "parameters": {side.label: round(side.model.parameters) for side in plan.sides if side.model is not None},
    }

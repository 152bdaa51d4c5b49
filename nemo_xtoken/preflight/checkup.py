"""The checks, in the order in which a run would meet what they look for."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from nemo_xtoken.errors import InputError
from nemo_xtoken.launch.connections import Connections
from nemo_xtoken.launch.precision import begun_in, choose_precision, processor_flags
from nemo_xtoken.launch.slurm_config import SlurmConfig
from nemo_xtoken.launch.teacher_steps import TeacherSteps
from nemo_xtoken.preflight import architecture, budget, elsewhere, layouts, machine, mounts, tokenizers
from nemo_xtoken.preflight import corpus as texts
from nemo_xtoken.preflight.findings import Finding, Report, green, guarded, red, yellow
from nemo_xtoken.preflight.fitting import fit_layout, leaves_precision_open
from nemo_xtoken.preflight.plan import Measured, Plan
from nemo_xtoken.run.arguments.names import check_content
from nemo_xtoken.run.records import PRECISION
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
    measured: Measured | None = None,
    teacher: TeacherSteps | InputError | None = None,
    connections: Connections | None = None,
) -> Report:
    """Looks at everything; nothing of what goes wrong in one check keeps the others from being made.

    Args:
        settings: of the run.
        nodes, gpus: machines, and GPUs (processes) on each.
        gpu_gib: memory of a GPU.
        slurm: the configuration of the job, or why there is none; None: not to be looked at.
        asked_for_slurm: whether the user named it, so that a wrong one is an error.
        say: told what is being looked at.
        measured: speeds that are known, for the size of teachers elsewhere.
        teacher: its part of the job, on nodes of its own, or why it can have none; None: it has no nodes.
        connections: what was chosen for the job; None: there is none.
    """
    report = Report()

    def add(name: str, stage: str, findings: Iterable[Finding]) -> None:
        say(stage)
        report.findings += guarded(name, findings)

    inside, settings = settings, mounts.on_this_machine(settings, slurm)
    add("versions", "looking for packages", machine.versions(slurm, settings.under_bridge))
    add("settings", "reading the settings", (red("settings", error) for error in check_content(settings.content)))
    for part, check in value_checks(settings):
        add(_named(part), "reading the settings", _refused(_named(part), check))
    add("layout", "choosing a layout", _chosen(settings, nodes, gpus, gpu_gib))
    add("precision", "reading the settings", _precision(settings, nodes, here=slurm is None))
    plan = Plan(settings, run_of(settings, nodes * gpus, machine.engine(slurm)), nodes, gpus, gpu_gib)
    plan.measured = measured or plan.measured
    add("settings", "reading the settings", layouts.unsupported(plan))
    add("attention", "reading the settings", machine.attention(plan, slurm))
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
    for side in plan.teachers:
        add(f"source, {side.label}", "adding up", elsewhere.source(plan, side, report.figures))
    if teacher is not None:
        add("teacher's nodes", "adding up", elsewhere.nodes_of_job(teacher, report.figures))
    add("disk", "looking for space", machine.disk(plan, report.figures))
    add("run folder", "looking for space", machine.run_folder(plan))
    add("open files", "looking for limits", machine.descriptors())
    if isinstance(slurm, SlurmConfig):
        add("cache", "reading the Slurm configuration", machine.cache_place(inside, slurm))
        add("mounts", "reading the Slurm configuration", mounts.visible(inside, slurm))
    if slurm is not None:
        add("Slurm", "reading the Slurm configuration", machine.slurm_job(slurm, asked_for_slurm))
    if connections is not None:
        add("ahead", "reading the Slurm configuration", machine.overlap(connections))
    report.figures |= _summary(plan)
    return report


def _chosen(settings: Settings, nodes: int, gpus: int, gib: float) -> Iterator[Finding]:
    """What the run would choose of its layout; it is set for the checks that follow."""
    fit = fit_layout(settings, nodes, gpus, gib)
    if fit.refused:
        yield yellow("layout", f"chosen: {fit.said}", "a layout that the run takes", "change what is refused")
    elif fit.said:
        yield green("layout", f"chosen: {fit.said}")


def _precision(settings: Settings, nodes: int, here: bool) -> Iterator[Finding]:
    """What the run would choose on GPUs, and without them.

    Args:
        here: it would run on this machine, as far as is known.
    """
    if not leaves_precision_open(settings):
        return
    begun = begun_in(settings.run_folder, gpu=True)
    gpu = choose_precision(True, (), nodes, begun)
    found = f"{gpu.value}, {gpu.why}"
    if begun is None:
        cpu = choose_precision(False, processor_flags() if here else (), nodes)
        found += f"; without one {cpu.value}, {cpu.why}" if here else ""
    yield green("precision", f"{found} ({PRECISION})")


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

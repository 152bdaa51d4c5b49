"""``xtoken preflight``: whether a run can work, before it waits in a queue; needs neither a GPU nor NeMo."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemo_xtoken.commands.verb import Option, Verb
from nemo_xtoken.errors import InputError
from nemo_xtoken.limits import MOST_NODES

if TYPE_CHECKING:
    from nemo_xtoken.commands.teacher_nodes import TeacherNodes
    from nemo_xtoken.launch.slurm_config import SlurmConfig
    from nemo_xtoken.launch.teacher_steps import TeacherSteps
    from nemo_xtoken.preflight.findings import Report
    from nemo_xtoken.run.settings import Settings

__all__ = ["VERB"]

#: GiB of a GPU, seconds of a step (a day), and tokens a second of a GPU: ten times what there will be for long.
MOST_MEMORY, LONGEST_STEP, FASTEST = 10_000, 86_400, 1_000_000_000

STYLES = {"green": "green", "yellow": "yellow", "red": "bold red", "left out": "dim"}
#: Settings that the packaged default leaves to the user are not errors of a run that does not use Slurm.
NO_SLURM = "none"
BRIDGE = "bridge"


def _run(arguments: Mapping[str, Any]) -> int:
    from nemo_xtoken.commands.run_settings import find_recipe, nodes_of_recipe, read_settings
    from nemo_xtoken.commands.teacher_nodes import TeacherNodes
    from nemo_xtoken.launch.connections import choose_connections
    from nemo_xtoken.launch.slurm_config import PREFIX
    from nemo_xtoken.launch.teacher_steps import split_words
    from nemo_xtoken.preflight.checkup import check
    from nemo_xtoken.preflight.plan import Measured

    if bool(arguments["recipe"]) == bool(arguments["yaml"]):
        raise InputError("not one of recipe= and yaml=", "exactly one of them", "see `xtoken preflight --help`")
    source = arguments["slurm"] or "default"
    teacher_nodes, of_teacher, rest = split_words(arguments["rest"])
    if teacher_nodes is not None and source == NO_SLURM:
        raise InputError(
            f"teacher.nodes={teacher_nodes} with slurm={NO_SLURM}",
            "the configuration of the job that has these nodes",
            f"leave slurm={NO_SLURM} out; a teacher that is started otherwise is teacher.source=remote "
            "teacher.service.folder=FOLDER",
        )
    words = [word for word in rest if not word.startswith(PREFIX)]
    of_slurm = [word for word in rest if word.startswith(PREFIX)]
    recipe, given_nodes = None, arguments["nodes"]
    if arguments["recipe"]:
        recipe, of_recipe = find_recipe(arguments["recipe"]), nodes_of_recipe(arguments["recipe"])
        given_nodes = given_nodes if given_nodes is not None else of_recipe
    if given_nodes is not None and given_nodes < 1:
        raise InputError(f"recipe={arguments['recipe']}", "1 node or more", "correct it")
    slurm = _slurm(source, of_slurm, given_nodes) if source != NO_SLURM else None
    nodes, gpus = given_nodes, arguments["gpus"]
    if slurm is not None and not isinstance(slurm, InputError):
        nodes, gpus = nodes or slurm.nodes, gpus or slurm.tasks
    settings = read_settings(recipe, arguments["yaml"], words, nodes, _takes_bridge(arguments["framework"]))
    teacher = None
    if teacher_nodes is not None:
        theirs = TeacherNodes(source, _of_job(of_slurm, given_nodes), of_teacher, teacher_nodes)
        teacher = _beside(theirs, slurm, settings, arguments["recipe"] or Path(arguments["yaml"]).stem, words)
    connections = None
    if slurm is not None and not isinstance(slurm, InputError):
        connections = choose_connections(slurm, of_slurm, [settings])
    nodes = nodes or int(settings.number("trainer.num_nodes", 1))
    gpus = gpus or _devices(settings)
    stages = None if arguments["json"] else _progress()
    try:
        say = stages.update if stages is not None else lambda stage: None
        asked = bool(arguments["slurm"] or of_slurm or teacher_nodes)
        measured = Measured(arguments["step_seconds"], arguments["teacher_speed"])
        report = check(
            settings, nodes, gpus, arguments["gpu_memory"], slurm, asked, say, measured, teacher, connections
        )
    finally:
        if stages is not None:
            stages.stop()
    if arguments["json"]:
        print(json.dumps(report.to_json(), ensure_ascii=False))
    else:
        _print(report, f"{arguments['recipe'] or arguments['yaml']} on {nodes} x {gpus} GPUs")
    return 1 if report.status == "red" else 0


def _takes_bridge(framework: str | None) -> bool:
    """Whether a recipe is to be looked at as Megatron-Bridge would run it: by default where NeMo 2 is absent."""
    from nemo_xtoken.environment import find_stack

    if framework is not None:
        return framework == BRIDGE
    stack = find_stack()
    return stack["NeMo"].version is None and stack["Megatron-Bridge"].version is not None


def _devices(settings: "Settings") -> int:
    """On each machine, as the run says; those that are here where it leaves that to the machine."""
    from nemo_xtoken.launch.ranks import gpus_here

    found = settings.get("trainer.devices", 1)
    if isinstance(found, list):
        return len(found)
    if str(found).isdecimal() and int(found):
        return int(found)
    try:
        return gpus_here() or 1
    except ImportError:  # no PyTorch
        return 1


def _slurm(source: str, words: list[str], nodes: int | None) -> "SlurmConfig | InputError":
    """The job's configuration, or why there is none."""
    from nemo_xtoken.launch.slurm_config import load_config

    try:
        return load_config(source, _of_job(words, nodes))
    except InputError as error:
        return error


def _of_job(words: list[str], nodes: int | None) -> list[str]:
    return [*words, *([f"nodes={nodes}"] if nodes else [])]


def _beside(
    theirs: "TeacherNodes", slurm: "SlurmConfig | InputError | None", settings: "Settings", name: str, words: list[str]
) -> "TeacherSteps | InputError | None":
    """The teacher's part of the job, or why there is none; None where the job's configuration is what is wrong.

    Args:
        settings: of the run; they get what its student has to know, as in the job.
        name, words: see ``TeacherNodes.of_run``.
    """
    from nemo_xtoken.commands.teacher_nodes import of_student

    teacher: TeacherSteps | InputError | None = None
    folder = "service"
    if not isinstance(slurm, InputError):
        try:
            teacher = theirs.of_run(settings, name, words)
            folder = teacher.folders[0]
        except InputError as error:
            teacher = error
    for word in of_student(words, folder)[len(words) :]:
        settings.override(word)
    return teacher


def _progress() -> Any:
    """A line that says what is being looked at, on a terminal; None elsewhere."""
    try:
        from rich.console import Console
    except ImportError:
        return None
    console = Console(stderr=True)
    if not console.is_terminal:
        return None
    status = console.status("looking")
    status.start()
    return status


def _print(report: "Report", title: str) -> None:
    counts = {status: sum(f.status == status for f in report.findings) for status in STYLES}
    summary = ", ".join(f"{n} {status}" for status, n in counts.items() if n)
    verdict = {"red": "It would fail.", "yellow": "It can run; look at what is yellow."}.get(
        report.status, "It can run."
    )
    try:
        from rich.console import Console
        from rich.markup import escape
        from rich.table import Table
    except ImportError:
        for f in report.findings:
            more = "".join(
                f"\n    {what}: {text}" for what, text in (("expected", f.expected), ("to fix", f.fix)) if text
            )
            print(f"[{f.status}] {f.check}: {f.found}{more}")
        print(f"{summary}. {verdict}")
        return
    table = Table(title=escape(title), title_style="bold", show_lines=True)
    table.add_column("")
    table.add_column("check", overflow="fold")
    table.add_column("found", overflow="fold", ratio=1)
    for f in report.findings:
        text = escape(f.found)
        if f.expected:
            text += f"\n[dim]expected:[/] {escape(f.expected)}"
        if f.fix:
            text += f"\n[dim]to fix:[/]   {escape(f.fix)}"
        style = STYLES[f.status]
        table.add_row(f"[{style}]{f.status}[/]", escape(f.check), text if f.status != "left out" else f"[dim]{text}[/]")
    console = Console()
    console.print(table)
    console.print(f"{summary}. [{STYLES[report.status]}]{verdict}[/]", highlight=False)


VERB = Verb(
    name="preflight",
    summary="check a run before it is submitted, on a login node without a GPU",
    description=(
        "Reads a recipe with its overrides, checkpoints and tokenizers, and checks paths, vocabularies, layout, W and "
        "its coverage, memory of a GPU, tokens, data, disk and the Slurm configuration. Red: the run would fail. "
        "Yellow: it runs, but check it. The exit status is 0 with nothing red, 1 with something red, 2 for a wrong "
        "command line. Memory and time are estimates, not measured on a GPU. It needs no NeMo, and says which "
        "checks it skips because a package is missing."
    ),
    options=(
        Option("recipe", "the recipe to run"),
        Option("yaml", "or the file of a run, from `nemo llm distill .. --to-yaml`"),
        Option(
            "nodes", "machines; by default the Slurm configuration's, else the recipe's", int, least=1, most=MOST_NODES
        ),
        Option(
            "gpus", "GPUs of each machine, by default as for nodes, or those of this one", int, least=1, most=MOST_NODES
        ),
        Option("gpu_memory", "GiB of a GPU's memory", float, 80.0, above=0, most=MOST_MEMORY),
        Option(
            "step_seconds",
            "of a step of the student without a teacher's model, as its history has it; default a roofline's",
            float,
            above=0,
            most=LONGEST_STEP,
        ),
        Option(
            "teacher_speed",
            "tokens a second of a GPU of a teacher elsewhere, as the log of `xtoken serve` has it for all of a "
            "replica's; default a roofline's",
            float,
            above=0,
            most=FASTEST,
        ),
        Option("slurm", "the cluster's configuration: a YAML file, a name (default), or none to leave it out"),
        Option(
            "framework",
            "what trains a recipe: NeMo 2, or Megatron-Bridge (images since 26.04); by default what is installed",
            choices=("nemo2", BRIDGE),
        ),
        Option("json", "print JSON", bool, False),
    ),
    examples=(
        ("preflight recipe=xtoken_tiny nodes=1 gpus=1 slurm=none", "a run on one GPU"),
        (
            "preflight recipe=xtoken_tiny slurm=venv executor.nodes=2 trainer.max_steps=500 --json",
            "for scripts; the words after the recipe are those of nemo llm distill",
        ),
        ("preflight yaml=mine.yaml nodes=16 gpu_memory=141", "a run from a file, on H200s"),
        (
            "preflight recipe=xtoken_tiny slurm=venv teacher.path=nemo/teacher teacher.nodes=2",
            "with two more nodes for the teacher, as in a job of sbatch",
        ),
    ),
    run=_run,
    rest=(
        "executor.KEY=VALUE changes the Slurm configuration, every other key=value the run, as with sbatch and "
        "`nemo llm distill`; so do teacher.nodes=N and executor.teacher.KEY=VALUE, for nodes of the teacher in the "
        "same job."
    ),
)

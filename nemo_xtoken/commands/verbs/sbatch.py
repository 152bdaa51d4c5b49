"""``xtoken sbatch``: a run, or any command, as a job script for Slurm; needs neither NeMo nor nemo_run."""

import re
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemo_xtoken.commands.verb import Option, Verb
from nemo_xtoken.errors import InputError

if TYPE_CHECKING:
    from nemo_xtoken.launch.job import Job
    from nemo_xtoken.launch.slurm_config import SlurmConfig
    from nemo_xtoken.run.settings import Settings

__all__ = ["VERB"]


def _run(arguments: Mapping[str, Any]) -> int:
    from nemo_xtoken.files import atomic_path
    from nemo_xtoken.launch.connections import choose_connections
    from nemo_xtoken.launch.job import read_sweep
    from nemo_xtoken.launch.sbatch import render, submit_lines, unset_names
    from nemo_xtoken.launch.slurm_config import PREFIX, load_config
    from nemo_xtoken.launch.teacher_steps import split_words

    if arguments["submit"] and not arguments["out"]:
        raise InputError("submit without a file", "the script's file", "say out=job.sh as well")
    nodes, of_teacher, rest = split_words(arguments["rest"])
    settings = [word for word in rest if word.startswith(PREFIX)]
    config = load_config(arguments["slurm"], settings)
    words, teacher = [word for word in rest if word not in settings], None
    sweep = read_sweep(arguments["sweep"]) if arguments["sweep"] else []
    if nodes is not None:
        from nemo_xtoken.commands.teacher_nodes import TeacherNodes

        if arguments["command"]:
            raise InputError("teacher.nodes with command=", "a run, by recipe= or yaml=", "leave one out")
        theirs = TeacherNodes(arguments["slurm"], settings, of_teacher, nodes)
        teacher, words, sweep = theirs.steps(config, arguments["recipe"], arguments["yaml"], words, sweep)
    job, runs = _job(config, arguments, words, sweep)
    connections = choose_connections(config, settings, runs)
    config = connections.config
    if connections.said:
        print(f"{'note' if connections.overlaps else 'warning'}: {connections.said}", file=sys.stderr)
    script = render(config, job, teacher)
    for name in unset_names(config):
        print(f"warning: {name} is in pass_env and not set in this shell: the job will not have it", file=sys.stderr)
    out = arguments["out"]
    if not out:
        print(script, end="")
        return 0
    path = Path(out)
    config.log_folder.mkdir(parents=True, exist_ok=True)  # without it Slurm ends the job before it starts
    with atomic_path(path) as temporary:
        temporary.write_text(script, encoding="utf-8")
    path.chmod(path.stat().st_mode | 0o111)
    commands = submit_lines(config, path)
    shape = config.shape if teacher is None else f"{config.shape} and {teacher.shape}"
    print(f"{path}: {job.name}, {shape}; logs in {config.log_folder}")
    if not arguments["submit"]:
        print("\n".join(["submit with:", *(f"  {command}" for command in commands)]))
        return 0
    try:
        return subprocess.run(
            ["bash", "-euc", "\n".join([*commands, *['echo "last job: $job"'] * (config.chain > 1)])]
        ).returncode
    except FileNotFoundError as error:
        raise InputError("no bash on this machine", "a login node", "submit there") from error


def _job(
    config: "SlurmConfig", arguments: Mapping[str, Any], overrides: list[str], sweep: list[list[str]]
) -> "tuple[Job, list[Settings]]":
    """The job that the arguments name, and the settings of its run, or of each task, where they are known here."""
    from nemo_xtoken.launch.job import Job, distillation

    recipe, yaml, command = (arguments[name] for name in ("recipe", "yaml", "command"))
    if sum(bool(x) for x in (recipe, yaml, command)) != 1:
        raise InputError("not one of recipe=, yaml= and command=", "exactly one of them", "see `xtoken sbatch --help`")
    if command:
        words = shlex.split(command)
        name = config.job_name or re.sub(r"[^\w.-]+", "-", "-".join(Path(word).name for word in words[:2]))
        return Job(name, (*words, *overrides), tuple(map(tuple, sweep))), []
    job = distillation(config, recipe, yaml, overrides, sweep)
    unknown = _unknown(config, recipe, yaml)
    if unknown:
        what = f"--recipe {shlex.quote(recipe)}" if recipe else f"--yaml {shlex.quote(yaml)}"
        print(
            f"warning: the settings of the run are not checked, since {unknown}; where NeMo is installed "
            f"`nemo llm distill {what} --dryrun` does",
            file=sys.stderr,
        )
        return job, []
    return job, [_checked_settings(config, recipe, yaml, [*overrides, *words]) for words in sweep or [[]]]


def _unknown(config: "SlurmConfig", recipe: str | None, yaml: str | None) -> str:
    """Why the settings of the run are known only where it runs; "" where they are known here."""
    from nemo_xtoken.commands.run_settings import find_recipe

    found = find_recipe(recipe) if recipe else None
    if found is not None and found.yaml is None:
        return f"the recipe {found.name} has no YAML file here"
    if found is not None and "(" in str(recipe):
        return "the recipe has arguments of its own"
    path = config.folder / Path(yaml).expanduser() if yaml else None
    return f"there is no {path} here" if path is not None and not path.is_file() else ""


def _checked_settings(config: "SlurmConfig", recipe: str | None, yaml: str | None, overrides: list[str]) -> "Settings":
    """Those of a run; what it would refuse is refused."""
    from nemo_xtoken.commands.run_settings import find_recipe, read_settings
    from nemo_xtoken.run.run_checks import check_settings

    path = str(config.folder / Path(yaml).expanduser()) if yaml else None
    settings = read_settings(find_recipe(recipe) if recipe else None, path, overrides, config.nodes)
    settings.set("trainer.devices", config.tasks)
    check_settings(settings, config.nodes * config.tasks)
    return settings


VERB = Verb(
    name="sbatch",
    summary="write a run as a job script for Slurm: containers, several nodes, requeue, chains, sweeps",
    description=(
        "Renders a script for sbatch from a configuration of your cluster; needs this package, pyyaml and omegaconf. "
        "The job starts one process per GPU on every node, saves a checkpoint before the time limit or a preemption, "
        "and goes on from there. Without out= the script is printed. "
        "`nemo llm distill --recipe .. --executor slurm` submits the same through nemo_run."
    ),
    options=(
        Option("recipe", "the recipe to run"),
        Option("yaml", "or the file of a run, from `nemo llm distill .. --to-yaml`"),
        Option("command", "or another command, such as 'xtoken prepare ..'; it runs in every task"),
        Option("slurm", "the cluster's configuration: a YAML file, or a name", default="default"),
        Option("sweep", "a file with overrides, a line per task of a job array"),
        Option("out", "the script's file", writes="file"),
        Option("submit", "also submit it", bool, False),
    ),
    examples=(
        (
            "sbatch recipe=xtoken_tiny slurm=venv executor.gpus_per_node=2 data.micro_batch_size=4 out=job.sh",
            "a script; how to submit it is printed",
        ),
        (
            "sbatch recipe=xtoken_tiny slurm=mine.yaml executor.nodes=2 data.global_batch_size=128 log.name=two",
            "on two nodes, printed",
        ),
        (
            "sbatch recipe=xtoken_tiny slurm=mine teacher.path=nemo/teacher teacher.nodes=2 data.global_batch_size=64 "
            "executor.teacher.partition=a100 executor.teacher.gpus_per_node=4",
            "a teacher on two more nodes, of another partition",
        ),
        (
            "sbatch recipe=xtoken_tiny slurm=mine executor.chain=4 data.global_batch_size=64 out=job.sh submit=true",
            "four jobs in a row, submitted",
        ),
    ),
    run=_run,
    rest=(
        "executor.KEY=VALUE changes the configuration (nodes, time, account, chain, ..; conf/slurm/default.yaml has "
        "them all); every other key=value goes to the run. teacher.nodes=N adds nodes for the teacher, "
        "executor.teacher.KEY=VALUE changes the configuration of these."
    ),
)

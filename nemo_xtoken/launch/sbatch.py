"""Renders a job as a file for ``sbatch``; needs this package, pyyaml and omegaconf alone."""

import dataclasses
import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import nemo_xtoken
from nemo_xtoken.errors import InputError
from nemo_xtoken.launch.job import Job, quote
from nemo_xtoken.launch.slurm_config import BELOW_CACHE, CACHE, SlurmConfig
from nemo_xtoken.launch.teacher_steps import TeacherSteps
from nemo_xtoken.launch.unfinished import EXIT_STATUS, VARIABLE

__all__ = [
    "KILL",
    "array_of",
    "beside_teacher",
    "container_names",
    "options",
    "preamble",
    "render",
    "srun_options",
    "submit_lines",
    "teacher_lines",
    "unset_names",
]

KILL = "--kill-on-bad-exit=1"
#: Seconds that rank 0 may take when the others have ended, for its report, an export or an evaluation: as long as it
#: likes.  (A rank that fails ends the others by the option above.)
WAIT = 0


def render(config: SlurmConfig, job: Job, teacher: TeacherSteps | None = None) -> str:
    """The text of the script.

    Args:
        teacher: in the same job, on nodes of its own.
    """
    srun = [["srun", *srun_options(config)], list(_container(config))]
    shape, whole, steps = config.shape, config, list[str]()
    components = [options(config, job)]
    if teacher is not None:
        shape = f"{config.shape}; {teacher.shape}"
        steps = teacher_lines(config, job, teacher)
        if teacher.separate:
            components.append(_of_component(options(teacher.config, job)))
            srun[0].append("--het-group=0")
        else:
            whole = dataclasses.replace(config, nodes=config.nodes + teacher.config.nodes)
            components = [options(whole, job)]
            srun[0] += beside_teacher(config)
    lines = [
        "#!/usr/bin/env bash",
        f"# {job.name}: {shape}. Rendered by nemo_xtoken {nemo_xtoken.__version__}; submit it with sbatch.",
        *_directives(components),
        "",
        "set -eo pipefail",
        "",
        *preamble(config),
        *job.choice(),
        *[""] * bool(job.each),
        *steps,
        " \\\n    ".join([*(" ".join(map(_word, words)) for words in srun if words), job.line()]),
    ]
    return "\n".join(lines) + "\n"


def teacher_lines(config: SlurmConfig, job: Job, teacher: TeacherSteps) -> list[str]:
    """The shell lines that start the teacher, and end it with the script."""
    srun = [["srun", *srun_options(teacher.config)], list(_container(teacher.config))]
    return teacher.lines(config, job, srun)


def beside_teacher(config: SlurmConfig) -> list[str]:
    """The options of the student's ``srun`` in a job that also has nodes of the teacher."""
    return [f"--nodes={config.nodes}", f"--ntasks={config.nodes * config.tasks}", "--relative=0"]


def _directives(components: Sequence[Mapping[str, str]]) -> Iterator[str]:
    for number, component in enumerate(components):
        yield from ["#SBATCH hetjob"] * bool(number)
        for name, value in component.items():
            yield f"#SBATCH --{name}{'=' * bool(value)}{_directive(value)}"


def _of_component(found: Mapping[str, str]) -> dict[str, str]:
    """The options of a component that is not the first, which speaks for the job."""
    of_job = ("job-name", "requeue", "no-requeue", "array", "chdir", "output", "open-mode", "export", "signal")
    return {name: value for name, value in found.items() if name not in (*of_job, "kill-on-invalid-dep", "comment")}


def options(config: SlurmConfig, job: Job) -> dict[str, str]:
    """The options of sbatch, long names without dashes; an empty value makes a bare option.

    Raises:
        InputError: the folder of the logs cannot be written in an option.
    """
    array = array_of(config, job)
    log = f"{config.log_folder}/%x-{'%A_%a' if array else '%j'}.log"
    if "%" in str(config.log_folder):
        raise InputError(f"a log folder {config.log_folder}", "a path without %, which sbatch replaces", "name another")
    gpus = str(config.gpus_per_node) if config.gpus_per_node else None
    found: Mapping[str, str | None] = {
        "job-name": job.name,
        "account": config.account,
        "partition": config.partition,
        "qos": config.qos,
        "constraint": config.constraint,
        "comment": config.comment,
        "nodes": str(config.nodes),
        "ntasks-per-node": str(config.tasks),
        "gpus-per-node": gpus if config.gpu_request == "gpus-per-node" else None,
        "gres": f"gpu:{gpus}" if gpus and config.gpu_request == "gres" else None,
        "cpus-per-task": str(config.cpus_per_task) if config.cpus_per_task else None,
        "mem": config.mem,
        "exclusive": "" if config.exclusive else None,
        "time": config.time,
        "signal": f"TERM@{config.stop_seconds}" if config.stop_seconds else None,
        "requeue" if config.requeue else "no-requeue": "",
        "array": array,
        "chdir": str(config.folder),
        "output": log,
        "open-mode": "append",
        "export": ",".join(config.pass_env) or "NONE",
        "kill-on-invalid-dep": "yes" if config.chain > 1 else None,
        **config.additional_parameters,
    }
    return {name: value for name, value in found.items() if value is not None}


def array_of(config: SlurmConfig, job: Job) -> str | None:
    """The option ``--array``: from the sweep, or as configured."""
    if not job.each:
        return config.array
    if config.array is None:
        return f"0-{len(job.each) - 1}"
    if config.array.startswith("%"):
        return f"0-{len(job.each) - 1}{config.array}"
    raise InputError(
        f"executor.array={config.array} and a sweep of {len(job.each)}", "one of them, or array=%N", "leave array out"
    )


def preamble(config: SlurmConfig) -> list[str]:
    """The shell lines before ``srun``: variables, the meeting point of the ranks, and what happens at the end."""
    stopped = f'{shlex.quote(f"{config.log_folder}/.stopped-")}"$SLURM_JOB_ID"'
    by_itself = config.requeue and config.chain == 1
    again = ['        [ -n "$ended_by_slurm" ] || scontrol requeue "$SLURM_JOB_ID"'] if by_itself else []
    cancelled = [
        "# Cancelled or preempted: the run is asked to stop, and whether it starts again is Slurm's to say.",
        *(["ended_by_slurm=", "trap 'ended_by_slurm=yes' TERM"] if by_itself else ["trap : TERM"]),
    ]
    return [
        *config.setup_lines,
        *[""] * bool(config.setup_lines),
        *(f"export {name}={shlex.quote(value)}" for name, value in config.env_vars.items()),
        *_caches(config),
        "# The ranks meet at the first node.",
        'read -r MASTER_ADDR < <(scontrol show hostnames "$SLURM_JOB_NODELIST")',
        "MASTER_PORT=${MASTER_PORT:-$((10000 + SLURM_JOB_ID % 20000))}",
        "export MASTER_ADDR MASTER_PORT",
        "",
        "# A run that was asked to stop saves a checkpoint and leaves this file; the same command goes on from there.",
        f"export {VARIABLE}={stopped}",
        f'rm -f "${VARIABLE}"',
        *cancelled,
        "at_exit() {",
        "    status=$?",
        f'    if [ -e "${VARIABLE}" ] || [ "$status" = {EXIT_STATUS} ]; then',
        f'        rm -f "${VARIABLE}"',
        f"        status={EXIT_STATUS}",
        '        echo "stopped before the end, with a checkpoint"',
        *again,
        "    fi",
        '    exit "$status"',
        "}",
        "trap at_exit EXIT",
        "",
    ]


def _caches(config: SlurmConfig) -> list[str]:
    """Where caches are, for a container, whose own folders no other node sees."""
    lines = [f"export {CACHE}=${{{CACHE}:-{shlex.quote(config.cache)}}}"] if config.cache else []
    if config.container_image is not None and not config.container_mount_home:
        others = {name: folder for name, folder in BELOW_CACHE.items() if name not in config.env_vars}
        lines += [f'export {name}="${{{name}:-${CACHE}/{folder}}}"' for name, folder in others.items()]
    return ["# Caches outlive the container, and all nodes see them.", *lines] if lines else []


def srun_options(config: SlurmConfig) -> list[str]:
    """The options of srun, without those of the container."""
    cpus = []
    if config.cpus_per_task:  # not inherited since Slurm 22.05
        cpus = [f"--cpus-per-task={config.cpus_per_task}", "--cpu-bind=cores"]
    # Without --export srun would take sbatch's, and drop what the script sets.
    return [KILL, f"--wait={WAIT}", "--export=ALL", *cpus, *config.srun_args]


def submit_lines(config: SlurmConfig, script: Path) -> list[str]:
    """The commands that submit it: one, or a chain in which each starts when the one before was stopped."""
    path = shlex.quote(str(script))
    if config.chain == 1:
        return [f"sbatch {path}"]
    following = f'job=$(sbatch --parsable --dependency=afternotok:"$job" {path})'
    return [f"job=$(sbatch --parsable {path})", *[following] * (config.chain - 1)]


def unset_names(config: SlurmConfig) -> list[str]:
    """The names in ``pass_env`` that this shell has no value for."""
    return [name for name in config.pass_env if name not in ("ALL", "NONE", "NIL") and name not in os.environ]


def container_names(config: SlurmConfig) -> list[str]:
    """The variables that replace what the image sets: those passed by name, and those set."""
    caches = [line.removeprefix("export ").partition("=")[0] for line in _caches(config)[1:]]
    names = dict.fromkeys((*config.pass_env, *config.env_vars, *caches))
    return [name for name in names if name not in ("ALL", "NONE", "NIL")]


def _container(config: SlurmConfig) -> Iterator[str]:
    if config.container_image is None:
        return
    yield f"--container-image={config.container_image}"
    yield f"--container-mounts={','.join(config.mounts)}"
    yield f"--container-workdir={config.folder}"
    yield "--container-mount-home" if config.container_mount_home else "--no-container-mount-home"
    if names := container_names(config):
        yield f"--container-env={','.join(names)}"


def _directive(value: str) -> str:
    """A value in an ``#SBATCH`` line, which sbatch splits as a shell does."""
    return shlex.quote(value) if value else ""


def _word(word: str) -> str:
    """``--name=value`` with only the value quoted, which is easier to read."""
    name, equals, value = word.partition("=")
    return f"{name}={shlex.quote(value)}" if equals and word.startswith("--") else quote([word])

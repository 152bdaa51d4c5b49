"""A teacher in the same job as its student: a step for each replica, on nodes of its own."""

import dataclasses
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nemo_xtoken.errors import InputError
from nemo_xtoken.launch.job import Job, quote
from nemo_xtoken.launch.slurm_config import PREFIX, SlurmConfig, load_config

__all__ = ["NODES", "TEACHER_PREFIX", "TeacherSteps", "split_words", "teacher_steps"]

NODES = "teacher.nodes"
TEACHER_PREFIX = f"{PREFIX}teacher."
#: What of the configuration cannot differ between the nodes of one plain job.
OF_NODES = (
    "account", "partition", "qos", "constraint", "mem", "exclusive", "gpus_per_node", "gpu_request", "ntasks_per_node",
    "cpus_per_task", "additional_parameters",
)  # fmt: skip
AXES = {"tensor": "tensor_model", "pipeline": "pipeline_model", "context": "context", "expert": "expert_model"}
PAUSE = 10  # seconds before a replica starts again
DRAIN = 60  # seconds that the teacher has to end when the student has


@dataclass(frozen=True)
class TeacherSteps:
    """The teacher's part of a job.

    Attributes:
        config: of its nodes.
        command: what each rank of a replica runs, but for the folder and the replica's name.
        ranks: of a replica.
        folders: by which the student finds it, of each task of a sweep, or one; below the job's folder where relative.
        separate: its nodes are of another kind: a component of their own of a heterogeneous job.
    """

    config: SlurmConfig
    command: tuple[str, ...]
    ranks: int
    folders: tuple[str, ...]
    separate: bool

    @property
    def replicas(self) -> int:
        """How many."""
        return self.config.nodes * self.config.tasks // self.ranks

    @property
    def shape(self) -> str:
        """As readable text."""
        return f"{self.replicas} teacher replica{'s' * (self.replicas > 1)} of {self.ranks} on {self.config.shape}"

    def lines(self, student: SlurmConfig, job: Job, srun: Sequence[Sequence[str]]) -> list[str]:
        """The shell lines that start the replicas, and end them when the script ends.

        Args:
            student: the job's configuration, of the student's nodes.
            job: for the names of the logs.
            srun: the words of an ``srun`` on the teacher's nodes, without their number.
        """
        tasks = self.config.tasks
        nodes, each = max(1, self.ranks // tasks), min(self.ranks, tasks)
        place = ["--het-group=1"] if self.separate else []
        offset = 0 if self.separate else student.nodes
        parts = tasks // each
        first = f"$(({offset} + $1 * {nodes}))" if parts == 1 else f"$(({offset} + $1 / {parts}))"
        gpus = [f"--gpus-per-node={each}", "--exact"] if parts > 1 and self.config.gpus_per_node else []
        log = shlex.quote(f"{student.log_folder}/{job.name}-{'%A_%a' if job.each else ''}")
        log += "" if job.each else '"$SLURM_JOB_ID"'  # %j would be the number of the component
        words = [
            *(quote(words) for words in srun[:1]),
            *place,
            f"--nodes={nodes} --ntasks={self.ranks} --ntasks-per-node={each} --relative={first}",
            *([" ".join(gpus)] if gpus else []),
            f'--open-mode=append --output={log}-teacher-"$1".log',
            *(quote(words) for words in srun[1:] if words),
            f'{quote(self.command)} folder="$teacher_folder" until="$teacher_stop" name=replica-"$1"',
        ]
        folder = [f"teacher_folder={shlex.quote(one)}" for one in self.folders]
        if job.each:
            cases = (f"    {task}) {line} ;;" for task, line in enumerate(folder))
            folder = ['case "$SLURM_ARRAY_TASK_ID" in', *cases, "    *) exit 2 ;;", "esac"]
        return [
            "",
            "# The teacher: each replica is a step of its own, which starts again in its place when it ends by itself.",
            *folder,
            'teacher_stop="$teacher_folder/stop"',
            'rm -f "$teacher_stop"',
            "replica() {",
            "    set +e",
            f"    pause=${{NEMO_XTOKEN_PAUSE:-{PAUSE}}}",
            '    while [ ! -e "$teacher_stop" ]; do',
            "        env -u MASTER_ADDR -u MASTER_PORT " + " \\\n            ".join(words),
            "        status=$?",
            '        [ ! -e "$teacher_stop" ] || break',
            '        echo "the teacher\'s replica $1 has ended with status $status: again in $pause s"',
            '        sleep "$pause"',
            "    done",
            "}",
            f"for number in $(seq 0 {self.replicas - 1}); do",
            '    replica "$number" &',
            "done",
            "end_teacher() {",
            '    mkdir -p "$teacher_folder" && touch "$teacher_stop"',
            f"    for _ in $(seq {DRAIN}); do",
            '        [ -n "$(jobs -pr)" ] || return 0',
            "        sleep 1",
            "    done",
            "    jobs -pr | xargs -r kill || true",
            "}",
            "end_both() {",
            "    local status=$?",
            "    end_teacher",
            "    set +e",
            '    (exit "$status")',
            "    at_exit",
            "}",
            "trap end_both EXIT",
            "",
        ]


def split_words(words: Sequence[str]) -> tuple[int | None, list[str], list[str]]:
    """``teacher.nodes``, the settings of the teacher's nodes as ``executor.KEY=VALUE``, and all other words.

    Raises:
        InputError: a number of nodes that is none, or settings of nodes without any.
    """
    nodes: int | None = None
    settings, rest = [], []
    for word in words:
        name, _, value = word.partition("=")
        if name == NODES:
            if not value.isdecimal() or int(value) < 1:
                raise InputError(word, "1 or more nodes", f"correct {NODES}")
            nodes = int(value)
        elif name.startswith(TEACHER_PREFIX):
            settings.append(PREFIX + word.removeprefix(TEACHER_PREFIX))
        else:
            rest.append(word)
    if settings and nodes is None:
        raise InputError(f"{TEACHER_PREFIX}* without {NODES}", "nodes for the teacher", f"say {NODES}=N")
    return nodes, settings, rest


def teacher_steps(
    source: str,
    settings: Sequence[str],
    of_teacher: Sequence[str],
    nodes: int,
    run: Mapping[str, Any],
    folder: str,
    half: bool,
) -> TeacherSteps:
    """The teacher's part of a job.

    Args:
        source, settings: of the job's configuration, see ``load_config``.
        of_teacher: what of it is different for the teacher's nodes.
        nodes: the teacher's.
        run: the run's settings of its teacher: ``path``, ``tokenizer``, parallel sizes, ``length``, ``fp8``.
        folder: by which the student finds it.
        half: the run computes in bf16.

    Raises:
        InputError: no teacher's path, or nodes that are no whole number of replicas.
    """
    student = load_config(source, settings)
    config = dataclasses.replace(load_config(source, [*settings, *of_teacher]), nodes=nodes, chain=student.chain)
    if not run.get("path"):
        raise InputError(f"{NODES}={nodes} without teacher.path", "the teacher's checkpoint", "say teacher.path=PATH")
    sizes = {axis: int(run.get(f"{name}_parallel_size") or 1) for axis, name in AXES.items()}
    ranks = sizes["tensor"] * sizes["pipeline"] * sizes["context"]
    fits = config.tasks % ranks == 0 or ranks % config.tasks == 0
    if not fits or (nodes * config.tasks) % ranks:
        raise InputError(
            f"teacher replicas of {ranks} processes on {config.shape}",
            "a whole number of replicas, each a part of a node or some whole nodes",
            f"change {NODES}, or teacher.tensor_model_parallel_size and the like",
        )
    words = [f"teacher={run['path']}", f"dtype={'bf16' if half else 'fp32'}"]
    words += [f"{axis}={size}" for axis, size in sizes.items() if size > 1]
    words += [f"tokenizer={run['tokenizer']}"] if run.get("tokenizer") else []
    words += ["sequence_parallel=true"] if sizes["tensor"] > 1 else []
    words += [f"length={run['length']}"] if run.get("length") else []
    words += ["fp8=true"] if run.get("fp8") else []
    separate = any(getattr(config, name) != getattr(student, name) for name in OF_NODES)
    return TeacherSteps(config, (config.xtoken, "serve", *words), ranks, (folder,), separate)

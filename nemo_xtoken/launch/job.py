"""What a job runs: one command on every rank, or a command per task of a Slurm array."""

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nemo_xtoken.errors import InputError
from nemo_xtoken.launch.secrets import check_words
from nemo_xtoken.launch.slurm_config import SlurmConfig

__all__ = ["Job", "distillation", "read_sweep"]


@dataclass(frozen=True)
class Job:
    """One job.

    Attributes:
        name: for Slurm's queue and the names of logs.
        command: the words that every rank runs.
        each: for an array, the words that come after them in each of its tasks.
    """

    name: str
    command: tuple[str, ...]
    each: tuple[tuple[str, ...], ...] = ()

    def __post_init__(self) -> None:
        check_words([*self.command, *(word for words in self.each for word in words)])

    def choice(self) -> list[str]:
        """The shell lines that put a task's own words into the array ``words``; none without a sweep."""
        if not self.each:
            return []
        cases = (f"    {i}) words=({quote(words)}) ;;" for i, words in enumerate(self.each))
        refusal = '    *) echo "error: this sweep has no task $SLURM_ARRAY_TASK_ID" >&2; exit 2 ;;'
        return ['case "$SLURM_ARRAY_TASK_ID" in', *cases, refusal, "esac"]

    def line(self) -> str:
        """The command as a shell's words."""
        return quote(self.command) + (' "${words[@]}"' if self.each else "")


def quote(words: Sequence[str]) -> str:
    """The words as a shell reads them back."""
    return " ".join(map(shlex.quote, words))


def distillation(
    config: SlurmConfig,
    recipe: str | None,
    yaml: str | None,
    overrides: Sequence[str],
    sweep: Sequence[Sequence[str]] = (),
) -> Job:
    """A job that runs ``nemo llm distill``.

    Args:
        config: for the program and the job's name.
        recipe: the recipe's name, or None.
        yaml: the file of a run, or None; a relative path is read from the job's folder, as on the command line.
        overrides: ``key=value``.
        sweep: further overrides, a list per task; a task that names no ``log.name`` gets one with its number.

    Raises:
        InputError: ``trainer.num_nodes`` or ``trainer.devices`` is overridden with another number than the job has.
    """
    for key, available, what in (
        ("trainer.num_nodes", config.nodes, f"executor.nodes={config.nodes}"),
        ("trainer.devices", config.tasks, f"{config.tasks} tasks on a node"),
    ):
        for words in (overrides, *sweep):
            for word in words:
                if word.partition("=")[0] == key and word.partition("=")[2] != str(available):
                    raise InputError(f"{word} and {what}", "the same number", f"leave {key} out: the job sets it")
    base = next((w.partition("=")[2] for w in reversed(overrides) if w.startswith("log.name=")), None)
    base = base or re.sub(r"\(.*", "", recipe or "") or Path(yaml or "distill").stem
    named = ["--recipe", recipe] if recipe else []
    named += ["--yaml", yaml] if yaml else []
    each = [
        tuple(words) if any(w.startswith("log.name=") for w in words) else (f"log.name={base}-{i}", *words)
        for i, words in enumerate(sweep)
    ]
    names = [w for words in each for w in words if w.startswith("log.name=")]
    if twice := {name for name in names if names.count(name) > 1}:
        raise InputError(f"a sweep with {sorted(twice)[0]} twice", "a folder of its own for each task", "change one")
    name = config.job_name or re.sub(r"[^\w.-]+", "-", base)
    return Job(name, (config.program, "llm", "distill", *named, *overrides), tuple(each))


def read_sweep(path: str) -> list[list[str]]:
    """The overrides in a file: a line per task, quoted as for a shell; empty lines and ``#`` are skipped."""
    try:
        lines = Path(path).expanduser().read_text(encoding="utf-8").splitlines()
        sweep = [words for line in lines if (words := shlex.split(line, comments=True))]
    except (OSError, ValueError) as error:
        raise InputError(
            f"sweep={path} cannot be read ({error})", "a line of key=value words per task", "fix the path"
        ) from error
    if not sweep:
        raise InputError(
            f"sweep={path} is empty", "a line of key=value words per task", "such as `optim.config.lr=1e-4`"
        )
    for number, words in enumerate(sweep):
        for word in words:
            if "=" not in word or word.startswith("-"):
                raise InputError(f"{word!r} in task {number} of {path}", "key=value", "correct it")
    return sweep

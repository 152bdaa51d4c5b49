"""``teacher.nodes=N``: the teacher's part of a job on Slurm, from the words of a command line."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from nemo_xtoken.commands.run_settings import find_recipe, read_settings
from nemo_xtoken.errors import InputError
from nemo_xtoken.files import at_home
from nemo_xtoken.launch.job import distillation
from nemo_xtoken.launch.slurm_config import SlurmConfig
from nemo_xtoken.launch.teacher_steps import TeacherSteps, teacher_steps
from nemo_xtoken.run.settings import Settings

__all__ = ["TeacherNodes", "of_student"]

ELSEWHERE = ("remote", "remote+cached")
SOURCE, FOLDER = "teacher.source", "teacher.service.folder"


@dataclass(frozen=True)
class TeacherNodes:
    """What was said of them.

    Attributes:
        source, settings: of the job's configuration, see ``load_config``.
        of_teacher: what of it is different for these nodes.
        nodes: how many.
    """

    source: str
    settings: Sequence[str]
    of_teacher: Sequence[str]
    nodes: int

    def steps(
        self,
        config: SlurmConfig,
        recipe: str | None,
        yaml: str | None,
        words: Sequence[str],
        sweep: Sequence[Sequence[str]] = (),
    ) -> tuple[TeacherSteps, list[str], list[list[str]]]:
        """The teacher's steps, and the words of the run and of a sweep's tasks with what the student has to know.

        Args:
            config: of the job.
            recipe, yaml: of the run.
            words: its overrides.
            sweep: further ones, a list for each task, which has a service of its own.

        Raises:
            InputError: an array that is no sweep, a teacher that is not elsewhere, tasks whose teachers differ, or see
                ``teacher_steps``.
        """
        if config.array and not sweep:
            raise InputError("teacher.nodes with an array", "one run, or a sweep", "write a script for each")
        tasks = distillation(config, recipe, yaml, words, sweep).each or ((),)
        found = [self._task(config, recipe, yaml, [*words, *task]) for task in tasks]
        first = found[0]
        for task, one in zip(tasks, found, strict=True):
            if replace(one, folders=first.folders) != first:
                raise InputError(
                    f"a sweep whose task `{' '.join(task)}` has another teacher than the first",
                    "one teacher, with one layout",
                    "submit such runs by themselves",
                )
        folders = tuple(one.folders[0] for one in found)
        if len(set(folders)) < len(folders):
            raise InputError("one teacher.service.folder for several tasks", "one each", "leave it out")
        if not sweep:
            return first, of_student(words, folders[0]), []
        each = [[*task, f"{FOLDER}={folder}"] for task, folder in zip(tasks, folders, strict=True)]
        return replace(first, folders=folders), of_student(words), each

    def of_run(self, run: Settings, name: str, words: Sequence[str]) -> TeacherSteps:
        """The teacher's steps beside one run.

        Args:
            run: its settings.
            name: of its recipe or file, for a run that names no folder of its own.
            words: its overrides.

        Raises:
            InputError: a teacher that is not elsewhere, or see ``teacher_steps``.
        """
        folder = at_home(_given(words, FOLDER)) or str((run.run_folder or Path("runs", name)) / "service")
        half = "32" not in str(run.get("trainer.plugins.precision") or "bf16-mixed").split("-")
        of_run = dict(run.part("teacher"))
        of_run["length"] = of_run.get("length") or run.get("data.text.teacher_length")
        steps = teacher_steps(self.source, self.settings, self.of_teacher, self.nodes, of_run, folder, half)
        if (source := _given(words, SOURCE) or "remote") not in ELSEWHERE:
            raise InputError(
                f"teacher.nodes={self.nodes} with {SOURCE}={source}", " or ".join(ELSEWHERE), "leave one of them out"
            )
        return steps

    def _task(self, config: SlurmConfig, recipe: str | None, yaml: str | None, words: Sequence[str]) -> TeacherSteps:
        found = find_recipe(recipe) if recipe else None
        path = str(config.folder / Path(yaml).expanduser()) if yaml else None
        run = read_settings(found, path, words, config.nodes)
        return self.of_run(run, recipe or Path(str(yaml)).stem, words)


def of_student(words: Sequence[str], folder: str = "") -> list[str]:
    """The words of a run, with where its student finds a teacher elsewhere as far as they leave that open.

    Args:
        folder: of the service; empty: said elsewhere.
    """
    more = [] if _given(words, SOURCE) else [f"{SOURCE}=remote"]
    more += [f"{FOLDER}={folder}"] if folder and not _given(words, FOLDER) else []
    return [*words, *more]


def _given(words: Sequence[str], key: str) -> str:
    """What the last of these words says of it; empty: nothing."""
    return next((word.partition("=")[2] for word in reversed(words) if word.partition("=")[0] == key), "")

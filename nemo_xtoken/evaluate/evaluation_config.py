"""What is evaluated while a student trains, how often, and where."""

import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

from nemo_xtoken.errors import InputError
from nemo_xtoken.evaluate.benchmark_columns import check_tasks, read_columns
from nemo_xtoken.evaluate.harness import check_harness
from nemo_xtoken.evaluate.local_data import check_data
from nemo_xtoken.evaluate.task_settings import Settings

__all__ = ["EvaluationConfig"]


@dataclass
class EvaluationConfig:
    """What to evaluate, how often and where: ``evaluate.every=1000 evaluate.tasks=mmlu,gsm8k``.

    Attributes:
        every: steps between two evaluations, a multiple of ``log.ckpt.every_n_train_steps``; the last checkpoint is
            evaluated in any case.  None: none at all.
        tasks, shots, limit, batch_size, chat, data: see `xtoken evaluate --help`.
        device: where it runs beside training.  "cpu" unless told otherwise: training has filled the GPUs.
        submit: a command that takes a command line as its last argument (``sbatch --gpus=1 --wrap``): every evaluation
            becomes a job, and ``device`` is left to it.
        wait: whether the run's end waits for evaluations that are still going on, so that the report has them.
    """

    every: Optional[int] = None  # noqa: UP045 (nemo_run's command line reads this)
    tasks: str = "all"
    shots: int = 3
    limit: Optional[float] = None  # noqa: UP045
    batch_size: str = "auto"
    chat: bool = False
    data: Optional[str] = None  # noqa: UP045
    device: str = "cpu"
    submit: Optional[str] = None  # noqa: UP045
    wait: bool = True

    def words(self) -> list[str]:
        """The settings as `xtoken evaluate` takes them.

        Raises:
            InputError: one that it would refuse.
        """
        check_tasks(read_columns(self.tasks))
        settings = Settings(
            self.shots,
            self.limit,
            self.chat,
            data=self.data,
            batch_size=str(self.batch_size),
            device=None if self.submit else self.device,
        )
        return [f"tasks={self.tasks}", f"every={self.every}", *settings.words()]

    def check_steps(self, saves: Optional[int]) -> None:  # noqa: UP045
        """Whether there is a checkpoint at every step that is to be evaluated, and the settings are those of tasks.

        Args:
            saves: steps between checkpoints; None or 0: none in between.

        Raises:
            InputError: steps at which nothing is saved, or a setting that `xtoken evaluate` would refuse.
        """
        if self.every is None:
            return
        if self.every < 1 or not saves or self.every % saves:
            raise InputError(
                f"evaluate.every={self.every}, and a checkpoint every {saves or 'no'} steps",
                "a multiple of the steps between checkpoints: what is evaluated is a checkpoint",
                f"set evaluate.every={max(saves, 1) * max(1, round((self.every or 1) / max(saves, 1)))}"
                if saves
                else "set log.ckpt.every_n_train_steps",
            )
        self.words()

    def check_place(self) -> None:
        """Whether the harness and its data are here, or the command that makes jobs.

        Raises:
            InputError: they are not.
        """
        if self.data is not None:
            check_data(Path(self.data))
        if self.submit is None:
            return check_harness()
        try:
            command = shlex.split(self.submit)[:1]
        except ValueError:  # a quotation mark without its partner
            command = []
        if not command or shutil.which(command[0]) is None:
            raise InputError(
                f"evaluate.submit={self.submit}: no such command here",
                "a command that this run can start; in a container there is mostly no sbatch",
                "leave it out, and submit from a login node: `xtoken evaluate run=FOLDER watch=true submit=..`",
            )

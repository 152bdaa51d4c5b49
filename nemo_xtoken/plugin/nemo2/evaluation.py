"""Scores of the student while it trains: every N steps its checkpoint is evaluated by a process of its own.

A benchmark takes thousands of forward passes of one whole model.  Under TP, PP and CP no rank has a whole model, and
hundreds of GPUs should not wait for it.  So training only saves checkpoints, as it does anyway: global rank 0 starts
``xtoken evaluate run=FOLDER watch=true`` as a second process, which exports and evaluates them, or submits a job that
does.  The scores are the same under every layout, and belong to the exported student.
"""

import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Optional

import lightning.pytorch as pl

from nemo_xtoken.environment import without_launcher
from nemo_xtoken.evaluate.evaluation_config import EvaluationConfig
from nemo_xtoken.progress import Phase
from nemo_xtoken.run.records import FOLDER

__all__ = ["Evaluation", "EvaluationConfig", "evaluations"]

logger = logging.getLogger(__name__)


def evaluations(config: EvaluationConfig | None, folder: Path, log: Any) -> list["Evaluation"]:
    """The callback of a run that is to be evaluated, after its settings have been checked; none for others.

    Args:
        folder: the run's folder.
        log: NeMo's logger, which says when checkpoints are saved.

    Raises:
        InputError: steps at which nothing is saved, a wrong setting, no harness, no data.
    """
    if config is None or config.every is None:
        return []
    config.check_steps(getattr(log.ckpt, "_every_n_train_steps", None))
    config.check_place()
    return [Evaluation(folder, config)]


class Evaluation(pl.Callback):
    """Starts the process on global rank 0 when training starts, and tells it when the run has ended.

    If training ends in any other way, the process evaluates what is left and ends by itself: its standard input is a
    pipe from here.  Its output goes to ``evaluations/watch.log``.  No collectives.

    Args:
        folder: the run's folder.
        config: what to evaluate.
    """

    def __init__(self, folder: Path, config: EvaluationConfig) -> None:
        self.folder, self.config = folder, config
        self._process: Optional[subprocess.Popen[bytes]] = None

    @property
    def output(self) -> Path:
        """The file with the output of the process."""
        return self.folder / FOLDER / "watch.log"

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Starts it."""
        if not trainer.is_global_zero or self._process is not None:
            return
        words = [f"run={self.folder.resolve()}", "watch=true", "until=stdin", *self.config.words()]
        if self.config.submit:
            words.append(f"submit={self.config.submit}")
        environment = without_launcher(os.environ)
        if self.config.device == "cpu":
            environment["CUDA_VISIBLE_DEVICES"] = ""
        self.output.parent.mkdir(parents=True, exist_ok=True)
        (self.folder / "checkpoints").mkdir(exist_ok=True)
        with open(self.output, "ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "nemo_xtoken", "evaluate", *words],
                env=environment,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # an interrupted run's Ctrl-C is not for it
            )
        logger.info("checkpoints are evaluated every %s steps; see %s", self.config.every, self.output)

    def finish(self, wait: bool = True) -> None:
        """After training: tells the process, and waits for it if that is asked for.  A failure is a warning."""
        if self._process is None:
            return
        process, self._process = self._process, None
        try:
            assert process.stdin is not None
            process.stdin.write(b"end\n")  # loaders that were forked may hold the pipe open: a line, not only its end
            process.stdin.close()
        except BrokenPipeError:
            pass
        if not (wait and self.config.wait):
            return
        if process.poll() is None:
            with Phase(f"waiting for running evaluations, see {self.output}"):
                process.wait()
        if process.wait():
            tail = self.output.read_text(errors="replace")[-1000:].strip()
            logger.warning("an evaluation failed; the run is not affected. The end of %s:\n%s", self.output, tail)

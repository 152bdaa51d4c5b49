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

from nemo_xtoken.environment import without_launcher
from nemo_xtoken.evaluate.evaluation_config import EvaluationConfig
from nemo_xtoken.progress import Phase
from nemo_xtoken.run.records import FOLDER

__all__ = ["EvaluationBeside", "evaluation_beside"]

logger = logging.getLogger(__name__)


def evaluation_beside(
    config: EvaluationConfig | None, folder: Path, saves: int | None, trust: bool = False
) -> "EvaluationBeside | None":
    """The evaluation of a run, after its settings have been checked; None for a run without one.

    Args:
        folder: the run's folder.
        saves: steps between checkpoints; None or 0: none in between.
        trust: code that the run's checkpoints name may run when they are exported, as in the run itself.

    Raises:
        InputError: steps at which nothing is saved, a wrong setting, no harness, no data.
    """
    if config is None or config.every is None:
        return None
    config.check_steps(saves)
    config.check_place()
    return EvaluationBeside(folder, config, trust)


class EvaluationBeside:
    """The process; for global rank 0 alone.

    If training ends without `finish`, it evaluates what is left and ends by itself: its standard input is a pipe from
    here.  Its output goes to ``evaluations/watch.log``.  No collectives.

    Args:
        folder: the run's folder.
        config: what to evaluate.
        trust: see `evaluation_beside`.
    """

    def __init__(self, folder: Path, config: EvaluationConfig, trust: bool = False) -> None:
        self.folder, self.config, self.trust = folder, config, trust
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def output(self) -> Path:
        """The file with the output of the process."""
        return self.folder / FOLDER / "watch.log"

    def start(self) -> None:
        """Starts it, when training starts."""
        if self._process is not None:
            return
        words = [f"run={self.folder.resolve()}", "watch=true", "until=stdin", *self.config.words()]
        words += ["trust=true"] * self.trust
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

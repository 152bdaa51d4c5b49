"""Scores of the student while it trains; see ``evaluate.beside_training``."""

from pathlib import Path
from typing import Any

import lightning.pytorch as pl

from nemo_xtoken.evaluate.beside_training import EvaluationBeside, evaluation_beside
from nemo_xtoken.evaluate.evaluation_config import EvaluationConfig

__all__ = ["Evaluation", "EvaluationConfig", "evaluations"]


def evaluations(config: EvaluationConfig | None, folder: Path, log: Any, trust: bool = False) -> list["Evaluation"]:
    """The callback of a run that is to be evaluated, after its settings have been checked; none for others.

    Args:
        folder: the run's folder.
        log: NeMo's logger, which says when checkpoints are saved.
        trust: code that the run's checkpoints name may run when they are exported, as in the run itself.

    Raises:
        InputError: see ``evaluation_beside``.
    """
    beside = evaluation_beside(config, folder, getattr(log.ckpt, "_every_n_train_steps", None), trust)
    return [] if beside is None else [Evaluation(beside)]


class Evaluation(pl.Callback):
    """Starts the process on global rank 0 when training starts.

    Args:
        beside: the process.
    """

    def __init__(self, beside: EvaluationBeside) -> None:
        self.beside = beside

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Starts it."""
        if trainer.is_global_zero:
            self.beside.start()

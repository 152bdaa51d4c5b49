"""The losses as NeMo 2 calls them: one micro-batch in, sums and counts out, one division at the end."""

from collections.abc import Sequence

import torch
from nemo.lightning.megatron_parallel import MegatronLossReduction
from torch import Tensor

from nemo_xtoken.objective.objective_state import ObjectiveState
from nemo_xtoken.objective.shares import Held
from nemo_xtoken.training.lessons import Lesson, Teaching
from nemo_xtoken.training.loss_terms import Report, add_up, distillation_terms, held_out_terms, kd_means
from nemo_xtoken.training.micro_batch import MicroBatch

__all__ = ["DistillationLoss", "HeldOutLoss", "StepSums"]


class StepSums(MegatronLossReduction):
    """Adds the reports of a step's micro-batches up and over the data-parallel and context-parallel ranks.

    After :meth:`reduce`, ``sums`` has the totals of the global batch by name.  It is called on the last pipeline stage.
    """

    def __init__(self) -> None:
        super().__init__()
        self.sums: dict[str, float] = {}


class DistillationLoss(StepSums):
    """Cross-entropy and distillation: see ``training.loss_terms.distillation_terms``.

    Args:
        teaching: the teachers.
        objective: the run's.
    """

    def __init__(self, teaching: Teaching, objective: ObjectiveState) -> None:
        super().__init__()
        self.teaching, self.objective = teaching, objective

    def forward(self, batch: MicroBatch, output: Held) -> tuple[Tensor, Tensor, Report]:
        """``(loss, tokens, report)`` as Megatron's schedule expects them with ``calculate_per_token_loss``."""
        terms = distillation_terms(self.teaching.lessons, self.objective, batch, output)
        self.teaching.begin_next()
        return terms

    def reduce(self, losses_reduced_per_micro_batch: Sequence[Report]) -> Tensor:
        """The step's objective, for the log."""
        sums = self.sums = add_up(losses_reduced_per_micro_batch)
        value = ce = sums["ce"] / max(sums["tokens"], 1)
        if kd_by_name := kd_means(sums, self.objective.teacher_names):
            kd = self.objective.teacher_weights.weighted(kd_by_name)
            value = ce + self.objective.scale.mean(ce, kd) * kd
        return torch.tensor(value, device=torch.cuda.current_device())


class HeldOutLoss(StepSums):
    """Cross-entropy, next-token accuracy and distances: see ``training.loss_terms.held_out_terms``.

    Args:
        lessons: of the teachers.
        objective: the run's.
    """

    def __init__(self, lessons: Sequence[Lesson], objective: ObjectiveState) -> None:
        super().__init__()
        self.lessons, self.objective = tuple(lessons), objective

    def forward(self, batch: MicroBatch, output: Held) -> tuple[Tensor, Tensor, Report]:
        """As for training; nothing is differentiated."""
        return held_out_terms(self.lessons, self.objective, batch, output)

    def reduce(self, losses_reduced_per_micro_batch: Sequence[Report]) -> Tensor:
        """The mean cross-entropy of this global batch."""
        sums = self.sums = add_up(losses_reduced_per_micro_batch)
        return torch.tensor(sums["ce"] / max(sums["tokens"], 1), device=torch.cuda.current_device())

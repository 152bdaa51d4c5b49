"""The losses as NeMo 2 calls them: one micro-batch in, sums and counts out, one division at the end."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from nemo.lightning.megatron_parallel import MegatronLossReduction
from torch import Tensor

from nemo_xtoken.losses.base import ModelOutput
from nemo_xtoken.training.loss_terms import Report, add_up, distillation_terms, held_out_terms, kd_means

if TYPE_CHECKING:
    from nemo_xtoken.plugin.nemo2.model import DistillationModel

__all__ = ["DistillationLoss", "HeldOutLoss", "StepSums"]


class StepSums(MegatronLossReduction):
    """Adds the reports of a step's micro-batches up and over the data-parallel and context-parallel ranks.

    After :meth:`reduce`, ``sums`` has the totals of the global batch by name.  It is called on the last pipeline stage.
    """

    def __init__(self) -> None:
        super().__init__()
        self.sums: dict[str, float] = {}


class DistillationLoss(StepSums):
    """Cross-entropy and distillation: see ``training.loss_terms.distillation_terms``."""

    def __init__(self, model: "DistillationModel") -> None:
        super().__init__()
        self._model = [model]  # a list, so that torch does not take it for a submodule

    def forward(self, batch: dict[str, Any], output: ModelOutput) -> tuple[Tensor, Tensor, Report]:
        """``(loss, tokens, report)`` as Megatron's schedule expects them with ``calculate_per_token_loss``."""
        return distillation_terms(self._model[0], batch, output)

    def reduce(self, losses_reduced_per_micro_batch: Sequence[Report]) -> Tensor:
        """The step's objective, for the log."""
        sums = self.sums = add_up(losses_reduced_per_micro_batch)
        model = self._model[0]
        value = ce = sums["ce"] / max(sums["tokens"], 1)
        if kd_by_name := kd_means(sums, model.teacher_names):
            kd = model.teacher_weights.weighted(kd_by_name)
            value = ce + model.scale.mean(ce, kd) * kd
        return torch.tensor(value, device=torch.cuda.current_device())


class HeldOutLoss(StepSums):
    """Cross-entropy and next-token accuracy."""

    def forward(self, batch: dict[str, Any], output: ModelOutput) -> tuple[Tensor, Tensor, Report]:
        """As for training; nothing is differentiated."""
        return held_out_terms(batch, output)

    def reduce(self, losses_reduced_per_micro_batch: Sequence[Report]) -> Tensor:
        """The mean cross-entropy of this global batch."""
        sums = self.sums = add_up(losses_reduced_per_micro_batch)
        return torch.tensor(sums["ce"] / max(sums["tokens"], 1), device=torch.cuda.current_device())

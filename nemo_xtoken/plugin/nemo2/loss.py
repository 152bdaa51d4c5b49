"""The losses as Megatron's schedule calls them: one micro-batch in, sums and counts out, one division at the end."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from nemo.lightning.megatron_parallel import MegatronLossReduction
from torch import Tensor

from nemo_xtoken.losses.base import ModelOutput
from nemo_xtoken.losses.cross_tokenizer import AlignedLabels, ChunkLossConfig, cross_tokenizer_loss
from nemo_xtoken.losses.objective import combine
from nemo_xtoken.losses.token_statistics import token_statistics

if TYPE_CHECKING:
    from nemo_xtoken.plugin.nemo2.model import DistillationModel

__all__ = ["DistillationLoss", "HeldOutLoss", "StepSums"]

Report = dict[str, Tensor]


class StepSums(MegatronLossReduction):
    """Adds the reports of a step's micro-batches up and over the data-parallel and context-parallel ranks.

    After :meth:`reduce`, ``sums`` has the totals of the global batch by name.  It is called on the last pipeline stage.
    """

    def __init__(self) -> None:
        super().__init__()
        self.sums: dict[str, float] = {}

    def add_up(self, reports: Sequence[Report]) -> dict[str, float]:
        """Collective: one all-reduce of a few float64 over the data-parallel group with context parallel ranks."""
        from megatron.core import parallel_state

        names = tuple(reports[0])
        values = torch.stack([torch.stack([r[name].double() for name in names]) for r in reports]).sum(0)
        dist.all_reduce(values, group=parallel_state.get_data_parallel_group(with_context_parallel=True))
        self.sums = dict(zip(names, values.tolist(), strict=True))
        return self.sums


class DistillationLoss(StepSums):
    """``CE + scale * KD`` of a micro-batch, times the global number of tokens (see ``losses.objective.combine``)."""

    def __init__(self, model: "DistillationModel", config: ChunkLossConfig | None) -> None:
        super().__init__()
        self._model = [model]  # a list, so that torch does not take it for a submodule
        self.config = config

    def forward(self, batch: dict[str, Any], output: ModelOutput) -> tuple[Tensor, Tensor, Report]:
        """``(loss, tokens, report)`` as Megatron's schedule expects them with ``calculate_per_token_loss``."""
        model = self._model[0]
        labels = AlignedLabels(batch["student_labels"], batch["teacher_labels"], batch["chunks"])
        ce, kd = cross_tokenizer_loss(output, labels, batch.get("teacher_output"), model.divergence, self.config)
        loss = combine(ce, kd, model.scale, model.counts)
        report = {"ce": ce.total.detach(), "tokens": torch.tensor(ce.count, device=loss.device)}
        if kd is not None:
            report |= {"kd": kd.total.detach(), "chunks": torch.tensor(kd.count, device=loss.device), **kd.metrics}
        return loss, torch.tensor(ce.count, dtype=torch.int, device=loss.device), report

    def reduce(self, losses_reduced_per_micro_batch: Sequence[Report]) -> Tensor:
        """The step's objective, for the log."""
        sums = self.add_up(losses_reduced_per_micro_batch)
        value = ce = sums["ce"] / max(sums["tokens"], 1)
        if chunks := sums.get("chunks"):
            kd = sums["kd"] / chunks
            value = ce + self._model[0].scale.mean(ce, kd) * kd
        return torch.tensor(value, device=torch.cuda.current_device())


class HeldOutLoss(StepSums):
    """Cross-entropy and next-token accuracy."""

    def forward(self, batch: dict[str, Any], output: ModelOutput) -> tuple[Tensor, Tensor, Report]:
        """As for training; nothing is differentiated."""
        statistics = token_statistics(output, batch["student_labels"].reshape(-1))
        report = {"ce": statistics.total, "correct": statistics.metrics["correct"]}
        tokens = torch.tensor(statistics.count, device=statistics.total.device)
        return statistics.total, tokens.int(), {**report, "tokens": tokens}

    def reduce(self, losses_reduced_per_micro_batch: Sequence[Report]) -> Tensor:
        """The mean cross-entropy of this global batch."""
        sums = self.add_up(losses_reduced_per_micro_batch)
        return torch.tensor(sums["ce"] / max(sums["tokens"], 1), device=torch.cuda.current_device())

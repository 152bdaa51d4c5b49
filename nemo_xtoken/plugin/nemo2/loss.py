"""The losses as Megatron's schedule calls them: one micro-batch in, sums and counts out, one division at the end."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from nemo.lightning.megatron_parallel import MegatronLossReduction
from torch import Tensor

from nemo_xtoken.losses.base import ModelOutput
from nemo_xtoken.losses.cross_tokenizer import cross_tokenizer_loss
from nemo_xtoken.losses.objective import kd_weights
from nemo_xtoken.losses.shares import Held, share, sum_over
from nemo_xtoken.losses.tiles import rows_within
from nemo_xtoken.losses.token_statistics import token_statistics
from nemo_xtoken.plugin.nemo2.inputs import context_layout

if TYPE_CHECKING:
    from nemo_xtoken.plugin.nemo2.model import DistillationModel

__all__ = ["DistillationLoss", "HeldOutLoss", "StepSums", "kd_means"]

Report = dict[str, Tensor]


def kd_means(sums: Mapping[str, float], names: Sequence[str]) -> dict[str, float]:
    """Each teacher's distillation loss in nats a chunk, from the global sums; only of those that have chunks."""
    chunks = {name: sums.get(f"chunks/{name}", 0) for name in names}
    return {name: sums[f"kd/{name}"] / count for name, count in chunks.items() if count}


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
    """``CE + scale * sum_m alpha_m KD_m`` of a micro-batch, times the global number of tokens.

    See ``losses.objective.kd_weights``.  The report has ``ce``, ``tokens``, and of each teacher ``kd/NAME``,
    ``chunks/NAME`` and the divergence's metrics.
    """

    def __init__(self, model: "DistillationModel") -> None:
        super().__init__()
        self._model = [model]  # a list, so that torch does not take it for a submodule

    def forward(self, batch: dict[str, Any], output: ModelOutput) -> tuple[Tensor, Tensor, Report]:
        """``(loss, tokens, report)`` as Megatron's schedule expects them with ``calculate_per_token_loss``."""
        from megatron.core import parallel_state

        model = self._model[0]
        output, labels, signals = model.shared(batch, output)
        heads = [signal.output.head for signal in signals]
        config = model.scale.config
        tile_rows = rows_within(config.tile_mib, output.head, heads)
        weights: list[float | Tensor] = []
        if signals:
            factor = model.scale.known
            if factor is None:  # it follows from the sums of this very micro-batch
                with torch.no_grad():
                    sums = cross_tokenizer_loss(output, labels, signals, tile_rows=tile_rows, kernels=config.kernels)
                ce, *kd = sum_over(parallel_state.get_context_parallel_group(), [sums.ce, *sums.kd])
                factor = model.scale.within(ce, kd, model.teacher_weights.alphas)
            weights = kd_weights(factor, model.teacher_weights.alphas, model.counts)
        terms = cross_tokenizer_loss(output, labels, signals, 1.0, weights, tile_rows, config.kernels)
        ce, device = terms.ce, terms.objective.device
        report = {"ce": ce.total, "tokens": torch.tensor(ce.count, device=device)}
        for name, kd in zip(model.teacher_names, terms.kd, strict=True):
            found = {"kd": kd.total, "chunks": torch.tensor(kd.count, device=device), **kd.metrics}
            report |= {f"{metric}/{name}": value for metric, value in found.items()}
        return terms.objective, torch.tensor(ce.count, dtype=torch.int, device=device), report

    def reduce(self, losses_reduced_per_micro_batch: Sequence[Report]) -> Tensor:
        """The step's objective, for the log."""
        sums = self.add_up(losses_reduced_per_micro_batch)
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
        output, labels, _ = share(Held(output, context_layout(batch, "student")), batch["student_labels"])
        statistics = token_statistics(output, labels.reshape(-1))
        report = {"ce": statistics.total, "correct": statistics.metrics["correct"]}
        tokens = torch.tensor(statistics.count, device=statistics.total.device)
        return statistics.total, tokens.int(), {**report, "tokens": tokens}

    def reduce(self, losses_reduced_per_micro_batch: Sequence[Report]) -> Tensor:
        """The mean cross-entropy of this global batch."""
        sums = self.add_up(losses_reduced_per_micro_batch)
        return torch.tensor(sums["ce"] / max(sums["tokens"], 1), device=torch.cuda.current_device())

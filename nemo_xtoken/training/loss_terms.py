"""The losses of a micro-batch as Megatron's schedule wants them: ``(sum, count, report)``, divided once at the end."""

from collections.abc import Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from nemo_xtoken.objective.objective_state import ObjectiveState
from nemo_xtoken.objective.scale import kd_weights
from nemo_xtoken.objective.shares import Held, sum_over
from nemo_xtoken.objective.terms import cross_tokenizer_loss
from nemo_xtoken.objective.tiles import rows_within
from nemo_xtoken.objective.token_statistics import token_statistics
from nemo_xtoken.training.lessons import Lesson, shared
from nemo_xtoken.training.micro_batch import MicroBatch

__all__ = ["Report", "add_up", "distillation_terms", "held_out_means", "held_out_terms", "kd_means"]

Report = dict[str, Tensor]


def distillation_terms(
    lessons: Sequence[Lesson], objective: ObjectiveState, micro_batch: MicroBatch, student: Held
) -> tuple[Tensor, Tensor, Report]:
    """``CE + scale * sum_m alpha_m KD_m`` of a micro-batch, times the global number of tokens.

    See ``objective.scale.kd_weights``.

    Args:
        lessons: of the run's teachers, in order; none for cross-entropy alone.
        objective: with the counts of the step.
        micro_batch: with the states of the teachers.
        student: the part of its output that this rank holds.

    Returns:
        ``(loss, tokens, report)`` as Megatron's schedule expects them with ``calculate_per_token_loss``.  The report
        has the sums ``ce``, ``tokens``, and of each teacher ``kd/NAME``, ``chunks/NAME`` and the divergence's metrics.
    """
    from megatron.core import parallel_state

    output, labels, signals = shared(lessons, micro_batch, student, objective.teacher_weights.statistic)
    heads = [signal.output.head for signal in signals]
    tile_rows = rows_within(objective.config.tile_mib, output.head, heads)
    weights: list[float | Tensor] = []
    if signals:
        factor: float | Tensor | None = objective.scale.known
        if factor is None:  # it follows from the sums of this micro-batch
            with torch.no_grad():
                sums = cross_tokenizer_loss(output, labels, signals, tile_rows=tile_rows, kernels=objective.kernels)
            whole = sum_over(parallel_state.get_context_parallel_group(), [sums.ce, *sums.kd])
            factor = objective.scale.within(whole[0], whole[1:], objective.teacher_weights.alphas)
        weights = kd_weights(factor, objective.teacher_weights.alphas, objective.counts)
    terms = cross_tokenizer_loss(output, labels, signals, 1.0, weights, tile_rows, objective.kernels)
    ce, device = terms.ce, terms.objective.device
    report = {"ce": ce.total, "tokens": torch.tensor(ce.count, device=device)}
    for name, kd in zip(objective.teacher_names, terms.kd, strict=True):
        found = {"kd": kd.total, "chunks": torch.tensor(kd.count, device=device), **kd.metrics}
        report |= {f"{metric}/{name}": value for metric, value in found.items()}
    return terms.objective, torch.tensor(ce.count, dtype=torch.int, device=device), report


@torch.no_grad()
def held_out_terms(
    lessons: Sequence[Lesson], objective: ObjectiveState, micro_batch: MicroBatch, student: Held
) -> tuple[Tensor, Tensor, Report]:
    """Cross-entropy, next-token accuracy and the distance from each teacher, as sums; nothing is differentiated.

    Args:
        lessons: of the run's teachers.
        objective: of the run.
        micro_batch: without states of the teachers: there is no distance.
        student: the part of its output that this rank holds.

    Returns:
        ``(cross-entropy, tokens, report)``; the report has the sums ``ce``, ``correct``, ``tokens``, and of each
        teacher ``kd/NAME`` and ``chunks/NAME``.
    """
    taught = lessons if micro_batch.states else ()
    output, labels, signals = shared(taught, micro_batch, student, None)
    statistics = token_statistics(output, labels.reshape(-1))
    device = statistics.total.device
    tokens = torch.tensor(statistics.count, device=device)
    report = {"ce": statistics.total, "correct": statistics.metrics["correct"], "tokens": tokens}
    if signals:
        tile_rows = rows_within(objective.config.tile_mib, output.head, [signal.output.head for signal in signals])
        terms = cross_tokenizer_loss(output, labels, signals, tile_rows=tile_rows, kernels=objective.kernels)
        for name, kd in zip(objective.teacher_names, terms.kd, strict=True):
            report |= {f"kd/{name}": kd.total, f"chunks/{name}": torch.tensor(kd.count, device=device)}
    return statistics.total, tokens.int(), report


def held_out_means(sums: Mapping[str, float], objective: ObjectiveState) -> dict[str, float]:
    """What ``history.jsonl`` keeps of an evaluation, from its global sums; nothing where it had no text.

    ``held_out_ce, held_out_accuracy``, of each teacher ``held_out_kd/NAME``, in nats a chunk, and their weighted sum
    ``held_out_kd``.
    """
    tokens = sums.get("tokens", 0)
    if not tokens:
        return {}
    means = {"held_out_ce": sums["ce"] / tokens, "held_out_accuracy": sums["correct"] / tokens}
    if kd := kd_means(sums, objective.teacher_names):
        means["held_out_kd"] = objective.teacher_weights.weighted(kd)
        means |= {f"held_out_kd/{name}": value for name, value in kd.items()}
    return means


def add_up(reports: Sequence[Report]) -> dict[str, float]:
    """The sums of a global batch from those of its micro-batches, on the last pipeline stage.

    Collective: one all-reduce of a few float64 over the data-parallel group with context parallel ranks.
    """
    from megatron.core import parallel_state

    names = tuple(reports[0])
    values = torch.stack([torch.stack([r[name].double() for name in names]) for r in reports]).sum(0)
    dist.all_reduce(values, group=parallel_state.get_data_parallel_group(with_context_parallel=True))
    return dict(zip(names, values.tolist(), strict=True))


def kd_means(sums: Mapping[str, float], names: Sequence[str]) -> dict[str, float]:
    """Each teacher's distillation loss in nats a chunk, from the global sums; only of those that have chunks."""
    chunks = {name: sums.get(f"chunks/{name}", 0) for name in names}
    return {name: sums[f"kd/{name}"] / count for name, count in chunks.items() if count}

"""What surrounds a training step under every training loop: its micro-batches, counts, teachers, sums, and the record.

Before a step its micro-batches are there: their tokens and each teacher's chunks are counted over the data-parallel
ranks (one all-reduce of as many integers).  A teacher runs on a micro-batch when the student's schedule asks for it;
one that cannot, over all of them first.  After it the sums reach all pipeline stages (one broadcast), and scale and
weights are updated.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from nemo_xtoken.errors import InputError
from nemo_xtoken.losses.chunks import IGNORED
from nemo_xtoken.objective.scale import StepCounts
from nemo_xtoken.teachers.colocated import ColocatedTeacher
from nemo_xtoken.training.loss_terms import Learner, kd_means

__all__ = [
    "StepOutcome",
    "from_last_stage",
    "global_counts",
    "on_device",
    "select_chunks",
    "step_record",
    "take_in",
    "with_teachers",
]


@dataclass(frozen=True)
class StepOutcome:
    """What a step came to.

    Attributes:
        values: means and rates, for a log.
        used: what the step's record says of the objective; empty without distillation terms.
    """

    values: dict[str, float]
    used: dict[str, float]


def on_device(batch: Mapping[str, Any]) -> dict[str, Any]:
    """A micro-batch on this rank's device."""
    return {name: x.cuda(non_blocking=True) if isinstance(x, Tensor) else x for name, x in batch.items()}


def with_teachers(
    batches: list[dict[str, Any]], teachers: Sequence[ColocatedTeacher], step: int
) -> Iterator[dict[str, Any]]:
    """The micro-batches with their ``teacher_outputs``; what a teacher can leave for later is not there before.

    Args:
        step: its number, for messages.
    """
    outputs = [None if teacher.one_at_a_time else _named(step, teacher, batches) for teacher in teachers]

    def each() -> Iterator[dict[str, Any]]:
        for number, batch in enumerate(batches):
            batch["teacher_outputs"] = [
                _named(step, teacher, [batch])[0] if found is None else found[number]
                for teacher, found in zip(teachers, outputs, strict=True)
            ]
            yield batch
            del batch["teacher_outputs"]

    return each()


def _named(step: int, teacher: ColocatedTeacher, batches: list[dict[str, Any]]) -> list[Any]:
    try:
        return teacher.outputs(batches)
    except InputError as error:
        raise InputError(f"step {step}: {error.found}", error.expected, error.fix) from None


def select_chunks(batches: list[dict[str, Any]], selections: Sequence[torch.nn.Module | None]) -> None:
    """Leaves out the chunks that a teacher's loss does not score, before they are counted."""
    for number, selection in enumerate(selections):
        if selection is None:
            continue
        for batch in batches:
            chunks, labels = batch[f"teacher{number}_chunks"], batch[f"teacher{number}_labels"]
            batch[f"teacher{number}_chunks"] = chunks[selection(batch["student_labels"], labels, chunks)]


def global_counts(batches: list[dict[str, Any]], teachers: int) -> StepCounts:
    """Tokens and chunks of the whole global batch.  Collective: one all-reduce of ``1 + teachers`` integers.

    Context-parallel ranks have the same samples, so each data-parallel rank is counted once.
    """
    from megatron.core import parallel_state

    tokens = torch.stack([(batch["student_labels"] != IGNORED).sum() for batch in batches]).sum()
    chunks = [sum(batch[f"teacher{number}_chunks"].shape[0] for batch in batches) for number in range(teachers)]
    counts = torch.cat([tokens.view(1), tokens.new_tensor(chunks)])
    dist.all_reduce(counts, group=parallel_state.get_data_parallel_group())
    total, *each = counts.tolist()
    return StepCounts(total, tuple(each))


def from_last_stage(sums: dict[str, float]) -> dict[str, float]:
    """The sums of the last pipeline stage, on all stages.  Collective: one broadcast of a small object under PP."""
    from megatron.core import parallel_state

    if parallel_state.get_pipeline_model_parallel_world_size() == 1:
        return sums
    shared = [sums]
    source = parallel_state.get_pipeline_model_parallel_last_rank()
    dist.broadcast_object_list(shared, src=source, group=parallel_state.get_pipeline_model_parallel_group())
    return shared[0]


def take_in(learner: Learner, totals: Mapping[str, float], seconds: float, step: int) -> StepOutcome:
    """Updates the scale and the teachers' weights by the sums of the step just done.

    Args:
        totals: of the global batch, as ``training.loss_terms.distillation_terms`` reports them.
        seconds: that it took.
        step: its number, for messages.

    Raises:
        InputError: a loss that is not a number.
    """
    names, weights = learner.teacher_names, learner.teacher_weights
    ce = totals["ce"] / max(totals["tokens"], 1)
    values, used = {"ce_loss": ce}, dict[str, float]()
    if means := kd_means(totals, names):
        kd, scores = weights.weighted(means), _scores(learner, totals)
        scale = learner.scale.mean(ce, kd)
        chunks = sum(totals[f"chunks/{name}"] for name in means)
        values |= {"kd_loss": kd, "kd_scale": scale, "chunks_per_second": chunks / seconds}
        used = {"kd": kd, "scale": scale, "chunks": chunks}
        for name, alpha in zip(names, weights.alphas, strict=True):
            used[f"alpha/{name}"] = alpha
            if len(names) > 1 and name in means:
                values |= {f"kd_loss/{name}": means[name], f"alpha/{name}": alpha}
        used |= {f"score/{name}": score for name, score in scores.items()}
        learner.scale.update(ce, kd)
        weights.update(scores)
    if not all(math.isfinite(v) for v in values.values()):
        raise InputError(
            f"step {step}: the loss is not a number ({values})",
            "finite cross-entropy and distillation terms",
            "lower the learning rate or use bf16; the last checkpoint is intact",
        )
    return StepOutcome(values, used)


def _scores(learner: Learner, totals: Mapping[str, float]) -> dict[str, float]:
    """Of the teachers that had chunks in this step; none where the weights are fixed."""
    found = {n: totals.get(f"statistic_tokens/{n}", 0) for n in learner.teacher_names}
    weights = learner.teacher_weights
    return {n: weights.score(totals[f"statistic/{n}"], tokens) for n, tokens in found.items() if tokens}


def step_record(step: int, totals: Mapping[str, float], seconds: float, used: Mapping[str, float]) -> dict[str, float]:
    """What ``history.jsonl`` keeps of a step.

    ``step, ce, kd, scale, tokens, chunks, seconds``, where kd is the weighted sum over the teachers and chunks are
    those of all; of each teacher ``kd/NAME, chunks/NAME, alpha/NAME``, its divergence's metrics, and ``score/NAME``
    where the weights follow from it.
    """
    record = {
        "step": step,
        "ce": totals["ce"] / max(totals["tokens"], 1),
        "tokens": totals["tokens"],
        "seconds": seconds,
        **used,
    }
    for key, total in totals.items():
        metric, _, name = key.partition("/")
        if metric == "chunks":
            record[key] = total
        elif name and not metric.startswith("statistic") and (chunks := totals[f"chunks/{name}"]):
            record[key] = total / chunks
    return record

"""What surrounds a training step under every training loop: its micro-batches before it, its sums and record after.

Before a step its micro-batches are fetched, and their tokens and each teacher's chunks are counted over the
data-parallel ranks (one all-reduce of as many integers).  A teacher runs on a micro-batch when the student's schedule
asks for it; one that cannot do so runs over all of them first.  After it the sums reach all pipeline stages (one
broadcast), and scale and weights are updated.
"""

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch.distributed as dist

from nemo_xtoken.data.batch import Batch
from nemo_xtoken.errors import InputError
from nemo_xtoken.objective.objective_state import ObjectiveState
from nemo_xtoken.teachers.contract import TeacherLost
from nemo_xtoken.training.lessons import Teaching
from nemo_xtoken.training.lookahead import wait_for_teachers
from nemo_xtoken.training.loss_terms import kd_means
from nemo_xtoken.training.micro_batch import MicroBatch, global_counts, select_chunks, with_states

__all__ = [
    "StepOutcome",
    "add_evaluated",
    "begin_evaluation",
    "begin_step",
    "explained",
    "from_last_stage",
    "step_record",
    "take_in",
]


logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StepOutcome:
    """The results of a step.

    Attributes:
        values: means and rates, for a log.
        used: what the step's record says of the objective; empty without distillation terms.
    """

    values: dict[str, float]
    used: dict[str, float]


def begin_step(
    batches: Sequence[Batch], teaching: Teaching, objective: ObjectiveState, step: int
) -> Iterator[MicroBatch]:
    """What the schedule of a training step works on; the objective has its counts.

    Args:
        batches: of this data-parallel rank, on its device.
        step: its number, for error messages.

    Collectives: one all-reduce of ``1 + teachers`` integers; those of the teachers that must run first.

    Raises:
        TeacherLost: a teacher elsewhere does not answer, on all processes; nothing of the step has begun.
    """
    wait_for_teachers(batches, teaching)
    chosen = [select_chunks(batch, teaching.selections, teaching.beginnings) for batch in batches]
    objective.counts = global_counts(chosen, len(objective.teacher_names))
    return with_states(chosen, teaching.teachers, teaching.sides, step)


def begin_evaluation(batches: Sequence[Batch], teaching: Teaching, step: int) -> Iterator[MicroBatch]:
    """What the schedule of an evaluation works on: a global batch with the states of the teachers.

    Where a teacher elsewhere does not answer there are none, which is told; training will wait for it.

    Args:
        batches: of this data-parallel rank, on its device.
        step: after which it is, for error messages.

    Collectives: those of the teachers that must run first.
    """
    try:
        wait_for_teachers(batches, teaching)
    except TeacherLost as lost:
        logger.warning("held-out text after step %d: no distance from the teacher (%s)", step, lost)
        return map(MicroBatch, batches)
    chosen = [select_chunks(batch, teaching.selections, teaching.beginnings) for batch in batches]
    return with_states(chosen, teaching.teachers, teaching.sides, step)


def add_evaluated(sums: dict[str, float], totals: Mapping[str, float]) -> None:
    """Adds a global batch of an evaluation; distances that one of them lacks are left out of all.

    Args:
        sums: changed; empty before the first.
        totals: of the batch, as ``training.loss_terms.held_out_terms`` reports them.
    """
    names = totals.keys() if not sums else sums.keys() & totals.keys()
    added = {name: sums.get(name, 0.0) + totals[name] for name in totals if name in names}
    sums.clear()
    sums.update(added)


def from_last_stage(sums: dict[str, float]) -> dict[str, float]:
    """The sums of the last pipeline stage, on all stages.  Collective: one broadcast of a small object under PP."""
    from megatron.core import parallel_state

    if parallel_state.get_pipeline_model_parallel_world_size() == 1:
        return sums
    shared = [sums]
    source = parallel_state.get_pipeline_model_parallel_last_rank()
    dist.broadcast_object_list(shared, src=source, group=parallel_state.get_pipeline_model_parallel_group())
    return shared[0]


def take_in(objective: ObjectiveState, totals: Mapping[str, float], seconds: float, step: int) -> StepOutcome:
    """Updates the scale and the teachers' weights from the sums of the step that has ended.

    Args:
        totals: of the global batch, as ``training.loss_terms.distillation_terms`` reports them.
        seconds: that it took.
        step: its number, for error messages.

    Raises:
        InputError: a loss that is not a number.
    """
    names, weights = objective.teacher_names, objective.teacher_weights
    ce = totals["ce"] / max(totals["tokens"], 1)
    values, used = {"ce_loss": ce}, dict[str, float]()
    if means := kd_means(totals, names):
        kd, scores = weights.weighted(means), _scores(objective, totals)
        scale = objective.scale.mean(ce, kd)
        chunks = sum(totals[f"chunks/{name}"] for name in means)
        values |= {"kd_loss": kd, "kd_scale": scale, "chunks_per_second": chunks / seconds}
        used = {"kd": kd, "scale": scale, "chunks": chunks}
        for name, alpha in zip(names, weights.alphas, strict=True):
            used[f"alpha/{name}"] = alpha
            if len(names) > 1 and name in means:
                values |= {f"kd_loss/{name}": means[name], f"alpha/{name}": alpha}
        used |= {f"score/{name}": score for name, score in scores.items()}
        objective.scale.update(ce, kd)
        weights.update(scores)
    if not all(math.isfinite(v) for v in values.values()):
        raise InputError(
            f"step {step}: the loss is not a number ({values})",
            "finite cross-entropy and distillation terms",
            "lower the learning rate or use bf16; the last checkpoint is intact",
        )
    return StepOutcome(values, used)


#: What Megatron says of a gradient before it is reduced, by what it is then.
_GRADIENTS = {"found NaN in": "not a number", "found Inf in": "infinite", "found unexpectedly large": "far too large"}


def explained(error: Exception, step: int, teaching: Teaching) -> Exception:
    """An error of Megatron's about a gradient in the words of this package; any other as it is.

    Args:
        step: that was going on.
        teaching: the teachers, one of which may be the reason.
    """
    found = next((said for text, said in _GRADIENTS.items() if f"{text} " in str(error) and "grad" in str(error)), None)
    if found is None or isinstance(error, InputError):
        return error
    try:
        teaching.check_given(step)
    except InputError as reason:
        return reason
    return InputError(
        f"step {step}: a gradient is {found}",
        "finite gradients",
        "lower optim.config.lr or warm up longer, or use bf16 in place of fp16; the last checkpoint is intact, and "
        "history.jsonl has the losses up to here",
    )


def _scores(objective: ObjectiveState, totals: Mapping[str, float]) -> dict[str, float]:
    """Of the teachers that had chunks in this step; none where the weights are fixed."""
    found = {n: totals.get(f"statistic_tokens/{n}", 0) for n in objective.teacher_names}
    weights = objective.teacher_weights
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

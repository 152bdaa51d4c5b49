"""A training step from outside: fetch its micro-batches, run the teachers, count, and take the sums in at the end."""

import dataclasses
import math
import time
from collections.abc import Iterator, Sequence
from typing import Any

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from torch import Tensor

from nemo_xtoken.errors import InputError
from nemo_xtoken.losses.chunks import IGNORED
from nemo_xtoken.losses.objective import DynamicScale, StepCounts
from nemo_xtoken.losses.teacher_weights import TeacherWeights
from nemo_xtoken.plugin.nemo2.inputs import schedule_shape
from nemo_xtoken.plugin.nemo2.loss import StepSums, kd_means
from nemo_xtoken.teachers.colocated import ColocatedTeacher

__all__ = ["DistillationSteps"]


class DistillationSteps(pl.Callback):
    """Surrounds every Megatron step.  Dynamic scale and teachers' weights are its state, which the checkpoint keeps.

    Before a step: the micro-batches of this data-parallel rank are fetched and moved to the device; their tokens and
    each teacher's chunks are counted over the data-parallel ranks (one all-reduce of as many integers).  A teacher runs
    on a micro-batch when the student's schedule asks for it; one that cannot, over all of them first.
    After it: the sums reach all pipeline stages (one broadcast), scale and weights are updated, means are logged.

    Args:
        scale, weights: the model's.
    """

    def __init__(self, scale: DynamicScale, weights: TeacherWeights) -> None:
        self.scale, self.weights = scale, weights
        self.totals: dict[str, float] = {}
        self.seconds = 0.0
        self.used: dict[str, float] = {}  # by the names of the history's records
        self._started = 0.0

    # NeMo hands every step through this hook and takes the step it returns.
    def on_megatron_step_start(self, step: Any) -> Any:
        """The same step over fetched micro-batches, each with its ``teacher_outputs`` in training."""
        from megatron.core.num_microbatches_calculator import get_num_microbatches

        model = step.pl_module
        self._started = time.perf_counter()
        batches = [_fetch(step.data) for _ in range(get_num_microbatches())]
        if not step.forward_only:
            _select_chunks(batches, model.selections)
            model.counts = _global_counts(batches, len(model.teacher_names))
            return dataclasses.replace(step, data=_with_teachers(batches, model.teachers, step.step_i + 1))
        return dataclasses.replace(step, data=iter(batches))

    def on_megatron_microbatches_start(self, step: Any) -> None:
        """Tells the schedule the shape it will see."""
        step.micro_batch_size, step.seq_length = schedule_shape(step.micro_batch_size, step.seq_length)

    def on_megatron_step_end(self, step: Any) -> None:
        """Shares the sums, updates the scale, logs, and stops the run if the loss is not a number."""
        model = step.pl_module
        loss = model.validation_loss_reduction if step.forward_only else model.training_loss_reduction
        self.totals = _from_last_stage(loss)
        self.seconds = time.perf_counter() - self._started
        if step.forward_only:
            return
        ce = self.totals["ce"] / max(self.totals["tokens"], 1)
        values = {"ce_loss": ce}
        self.used = {}
        if means := kd_means(self.totals, model.teacher_names):
            kd, scores = self.weights.weighted(means), self._scores(model.teacher_names)
            scale = self.scale.mean(ce, kd)
            chunks = sum(self.totals[f"chunks/{name}"] for name in means)
            values |= {"kd_loss": kd, "kd_scale": scale, "chunks_per_second": chunks / self.seconds}
            self.used = {"kd": kd, "scale": scale, "chunks": chunks}
            for name, alpha in zip(model.teacher_names, self.weights.alphas, strict=True):
                self.used[f"alpha/{name}"] = alpha
                if len(model.teacher_names) > 1 and name in means:
                    values |= {f"kd_loss/{name}": means[name], f"alpha/{name}": alpha}
            self.used |= {f"score/{name}": score for name, score in scores.items()}
            self.scale.update(ce, kd)
            self.weights.update(scores)
        if not all(math.isfinite(v) for v in values.values()):
            raise InputError(
                f"step {step.step_i + 1}: the loss is not a number ({values})",
                "finite cross-entropy and distillation terms",
                "lower the learning rate or use bf16; the last checkpoint is intact",
            )
        for name, value in values.items():
            model.log(name, value, prog_bar=name.endswith("loss"), batch_size=1, rank_zero_only=True)

    def _scores(self, names: Sequence[str]) -> dict[str, float]:
        """Of the teachers that had chunks in this step; none where the weights are fixed."""
        found = {n: self.totals.get(f"statistic_tokens/{n}", 0) for n in names}
        return {n: self.weights.score(self.totals[f"statistic/{n}"], tokens) for n, tokens in found.items() if tokens}

    def state_dict(self) -> dict[str, Any]:
        """The dynamic scale, and what the weights follow from."""
        return {"scale_ratio": self.scale.ratio, "teacher_weights": self.weights.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Puts them back."""
        self.scale.ratio = float(state_dict["scale_ratio"])
        if "teacher_weights" in state_dict:  # not in the checkpoints of runs from before there were several teachers
            self.weights.load_state_dict(state_dict["teacher_weights"])


def _fetch(data: Iterator[Any]) -> dict[str, Any]:
    """The next micro-batch on this rank's device; Lightning wraps it in a tuple with its number."""
    batch = next(data)
    if isinstance(batch, tuple):
        batch = batch[0]
    return {name: x.cuda(non_blocking=True) if isinstance(x, Tensor) else x for name, x in batch.items()}


def _with_teachers(
    batches: list[dict[str, Any]], teachers: Sequence[ColocatedTeacher], step: int
) -> Iterator[dict[str, Any]]:
    """The micro-batches with their ``teacher_outputs``; what a teacher can leave for later is not there before."""
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


def _select_chunks(batches: list[dict[str, Any]], selections: Sequence[torch.nn.Module | None]) -> None:
    """Leaves out the chunks that a teacher's loss does not score, before they are counted."""
    for number, selection in enumerate(selections):
        if selection is None:
            continue
        for batch in batches:
            chunks, labels = batch[f"teacher{number}_chunks"], batch[f"teacher{number}_labels"]
            batch[f"teacher{number}_chunks"] = chunks[selection(batch["student_labels"], labels, chunks)]


def _global_counts(batches: list[dict[str, Any]], teachers: int) -> StepCounts:
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


def _from_last_stage(loss: StepSums) -> dict[str, float]:
    """The sums of the last pipeline stage, on all stages.  Collective: one broadcast of a small object under PP."""
    from megatron.core import parallel_state

    if parallel_state.get_pipeline_model_parallel_world_size() == 1:
        return loss.sums
    shared = [loss.sums]
    source = parallel_state.get_pipeline_model_parallel_last_rank()
    dist.broadcast_object_list(shared, src=source, group=parallel_state.get_pipeline_model_parallel_group())
    return shared[0]

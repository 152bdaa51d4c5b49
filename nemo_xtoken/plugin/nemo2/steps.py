"""A training step from outside: fetch its micro-batches, run the teacher, count, and take the sums in at the end."""

import dataclasses
import math
import time
from collections.abc import Iterator
from typing import Any

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from torch import Tensor

from nemo_xtoken.errors import InputError
from nemo_xtoken.losses.chunks import IGNORED
from nemo_xtoken.losses.objective import DynamicScale, StepCounts
from nemo_xtoken.plugin.nemo2.inputs import schedule_shape
from nemo_xtoken.plugin.nemo2.loss import StepSums

__all__ = ["DistillationSteps"]


class DistillationSteps(pl.Callback):
    """Surrounds every Megatron step.  The dynamic scale is its state, so that it is kept in the checkpoint.

    Before a step: the micro-batches of this data-parallel rank are fetched and moved to the device; their tokens and
    chunks are counted over the data-parallel ranks (one all-reduce of two integers); the teacher runs over them.
    After it: the sums reach all pipeline stages (one broadcast), the scale is updated, means are logged.

    Args:
        scale: the model's.
    """

    def __init__(self, scale: DynamicScale) -> None:
        self.scale = scale
        self.totals: dict[str, float] = {}
        self.seconds = 0.0
        self.scale_used = 0.0
        self._started = 0.0

    # NeMo hands every step through this hook and takes the step it returns.
    def on_megatron_step_start(self, step: Any) -> Any:
        """The same step over fetched micro-batches, each with its ``teacher_output`` in training."""
        from megatron.core.num_microbatches_calculator import get_num_microbatches

        model = step.pl_module
        self._started = time.perf_counter()
        batches = [_fetch(step.data) for _ in range(get_num_microbatches())]
        if not step.forward_only:
            model.counts = _global_counts(batches)
            if model.teacher is not None:
                try:
                    outputs = model.teacher.outputs(batches)
                except InputError as error:
                    raise InputError(f"step {step.step_i + 1}: {error.found}", error.expected, error.fix) from None
                for batch, output in zip(batches, outputs, strict=True):
                    batch["teacher_output"] = output
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
        if chunks := self.totals.get("chunks", 0):
            kd = self.totals["kd"] / chunks
            self.scale_used = self.scale.mean(ce, kd)
            values |= {"kd_loss": kd, "kd_scale": self.scale_used, "chunks_per_second": chunks / self.seconds}
            self.scale.update(ce, kd)
        if not all(math.isfinite(v) for v in values.values()):
            raise InputError(
                f"step {step.step_i + 1}: the loss is not a number ({values})",
                "finite cross-entropy and distillation terms",
                "lower the learning rate or use bf16; the last checkpoint is intact",
            )
        for name, value in values.items():
            model.log(name, value, prog_bar=name.endswith("loss"), batch_size=1, rank_zero_only=True)

    def state_dict(self) -> dict[str, Any]:
        """The dynamic scale."""
        return {"scale_ratio": self.scale.ratio}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Puts it back."""
        self.scale.ratio = float(state_dict["scale_ratio"])


def _fetch(data: Iterator[Any]) -> dict[str, Any]:
    """The next micro-batch on this rank's device; Lightning wraps it in a tuple with its number."""
    batch = next(data)
    if isinstance(batch, tuple):
        batch = batch[0]
    return {name: x.cuda(non_blocking=True) if isinstance(x, Tensor) else x for name, x in batch.items()}


def _global_counts(batches: list[dict[str, Any]]) -> StepCounts:
    """Tokens and chunks of the whole global batch.  Collective: one all-reduce of two integers."""
    from megatron.core import parallel_state

    tokens = torch.stack([(batch["student_labels"] != IGNORED).sum() for batch in batches]).sum()
    chunks = torch.tensor(sum(batch["chunks"].shape[0] for batch in batches), device=tokens.device)
    counts = torch.stack([tokens, chunks])
    dist.all_reduce(counts, group=parallel_state.get_data_parallel_group(with_context_parallel=True))
    return StepCounts(*(int(n) for n in counts.tolist()))


def _from_last_stage(loss: StepSums) -> dict[str, float]:
    """The sums of the last pipeline stage, on all stages.  Collective: one broadcast of a small object under PP."""
    from megatron.core import parallel_state

    if parallel_state.get_pipeline_model_parallel_world_size() == 1:
        return loss.sums
    shared = [loss.sums]
    source = parallel_state.get_pipeline_model_parallel_last_rank()
    dist.broadcast_object_list(shared, src=source, group=parallel_state.get_pipeline_model_parallel_group())
    return shared[0]

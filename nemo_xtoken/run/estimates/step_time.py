"""How long a step takes, on paper: a roofline, nothing hidden behind anything.  Nothing here was timed on a GPU."""

import math
from dataclasses import dataclass
from typing import Any

from nemo_xtoken.run.estimates.loss_time import LossSizes, crossing_entries, rows_on_gpu
from nemo_xtoken.run.estimates.loss_traffic import traffic_of
from nemo_xtoken.run.estimates.memory import Training

__all__ = ["Gpu", "loss_sizes", "step_time"]


@dataclass(frozen=True)
class Gpu:
    """An H100: peak numbers, and the part of them that is assumed to be reached."""

    flops: float = 989e12 * 0.45
    memory_bytes: float = 3.35e12 * 0.7
    nvlink_bytes: float = 450e9 * 0.6
    capacity: float = 80 * 2**30


def loss_sizes(run: Training, teacher: int, tokens: float, chunks: float) -> LossSizes:
    """The loss of a micro-batch with one of its teachers, on a rank of the last stage.

    Args:
        teacher: which.
        tokens, chunks: teacher's tokens, and chunks, for each token of the student.
    """
    model, traffic = run.teachers[teacher].model, traffic_of(run.teachers[teacher].loss)
    columns = [t.model.vocabulary / run.sizes.tensor for t in run.teachers]
    tile = rows_on_gpu(run.student.vocabulary / run.sizes.tensor, max(columns), run.tile_mib)
    return LossSizes(
        rows=run.tokens,
        teacher_rows=run.tokens * tokens,
        chunks=run.tokens * chunks,
        positions=run.tokens,
        student_hidden=run.student.hidden,
        teacher_hidden=model.hidden,
        student_columns=run.student.vocabulary / run.sizes.tensor,
        teacher_columns=model.vocabulary / run.sizes.tensor,
        tp=run.sizes.tensor,
        crossing=crossing_entries(run.sizes.tensor) if traffic.exchanges else 0.0,
        tiles=math.ceil(run.tokens / tile),
        sequence_parallel=run.sequence_parallel,
        traffic=traffic,
    )


def step_time(run: Training, gpu: Gpu, tokens: float = 1.05, chunks: float = 0.95) -> dict[str, Any]:
    """Seconds of a step, by part.

    Args:
        tokens, chunks: teacher's tokens, and chunks, for each token of the student (Llama-3 <- Qwen3 on English text).

    Returns:
        ``student``, ``teachers``, and of the loss ``products``, ``elements`` and ``wire``; they add up to the step.
    """
    stages = run.sizes.pipeline
    bubble = 1 + (stages - 1) / max(run.micro_batches, 1)
    shared = run.sizes.tensor * stages
    student = 3 * run.student.forward_flops(run.tokens, run.length) / shared / gpu.flops * bubble
    teachers = 0.0
    for t in run.teachers:
        if not t.shares and not t.elsewhere:  # every copy takes its part of all micro-batches
            flops = t.model.forward_flops(run.tokens * run.sizes.context * tokens, run.length)
            teachers += flops * run.data_parallel / run.processes / gpu.flops * bubble
    losses = [loss_sizes(run, number, tokens, chunks) for number in range(len(run.teachers))]
    if losses:
        products, elements, wire = (sum(x) for x in zip(*((s.flops, s.touched, s.wire) for s in losses), strict=True))
        elements += losses[0].weights_touched + sum(s.teacher_weights_touched for s in losses[1:])
        if len(losses) > 1:  # the student's logits are made once
            products -= 6 * (len(losses) - 1) * run.tokens * run.student.hidden * losses[0].student_columns
    else:  # cross-entropy alone
        columns = run.student.vocabulary / run.sizes.tensor
        products, elements, wire = 6 * run.tokens * run.student.hidden * columns, 0.0, 0.0
    parts = {
        "student": student,
        "teachers": teachers,
        "products": products / gpu.flops,
        "elements": elements / gpu.memory_bytes,
        "wire": wire / gpu.nvlink_bytes,
    }
    return {name: seconds * run.micro_batches for name, seconds in parts.items()}

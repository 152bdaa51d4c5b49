"""The micro-batches of a step: their chunks are selected and counted, and the teachers' states are joined to them."""

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
import torch.distributed as dist

from nemo_xtoken.data.batch import IGNORED, Batch, with_beginnings
from nemo_xtoken.errors import InputError
from nemo_xtoken.losses.chunks import scored_chunks
from nemo_xtoken.objective.scale import StepCounts
from nemo_xtoken.teachers.contract import States, Teacher

__all__ = ["MicroBatch", "global_counts", "in_step", "on_device", "select_chunks", "with_states"]


@dataclass(frozen=True)
class MicroBatch:
    """What a schedule hands to the forward step, and this to the loss.

    Attributes:
        batch: on this rank's device, with the chunks that the losses score.
        states: of each of the run's teachers, None off the last pipeline stage; empty in an evaluation.
    """

    batch: Batch
    states: tuple[States | None, ...] = ()


def on_device(batch: Batch) -> Batch:
    """The same on this rank's device."""
    return batch.to(torch.cuda.current_device())


def select_chunks(
    batch: Batch, selections: Sequence[torch.nn.Module | None], beginnings: Sequence[bool] | None = None
) -> Batch:
    """The same batch with only the chunks that each teacher's loss scores.  Called once, before chunks are counted.

    Args:
        selections: see ``losses.registry.chunk_selection``; one a teacher.
        beginnings: whose loss takes beginnings of texts as well (``ChunkDivergence.takes_beginnings``); None: no one's.
    """
    if not selections:
        return batch
    taken = [
        replace(side, chunks=with_beginnings(side.chunks, side.beginnings)) if takes else side
        for side, takes in zip(batch.teachers, beginnings or [False] * len(selections), strict=False)
    ]
    batch = Batch(batch.student, tuple(taken))
    sides = [
        side
        if selected is None
        else replace(
            side,
            chunks=scored_chunks(selected, batch.student.labels, side.labels, side.chunks, batch.student.positions),
        )
        for side, selected in zip(batch.teachers, selections, strict=True)
    ]
    return Batch(batch.student, tuple(sides))


def global_counts(batches: Sequence[Batch], teachers: int) -> StepCounts:
    """Tokens and chunks of the whole global batch.  Collective: one all-reduce of ``1 + teachers`` integers.

    Context-parallel ranks have the same samples, so each data-parallel rank is counted once.

    Args:
        teachers: the number of those in use; further sides of the data are not counted.
    """
    from megatron.core import parallel_state

    tokens = torch.stack([(batch.student.labels != IGNORED).sum() for batch in batches]).sum()
    chunks = [sum(batch.teachers[number].chunks.shape[0] for batch in batches) for number in range(teachers)]
    counts = torch.cat([tokens.view(1), tokens.new_tensor(chunks)])
    dist.all_reduce(counts, group=parallel_state.get_data_parallel_group())
    total, *each = counts.tolist()
    return StepCounts(total, tuple(each))


def with_states(
    batches: Sequence[Batch], teachers: Sequence[Teacher], sides: Sequence[int], step: int
) -> Iterator[MicroBatch]:
    """The micro-batches with the teachers' states, which are computed only when needed if the teacher can do that.

    Args:
        sides: for each teacher which of a batch's sides it reads.
        step: its number, for error messages.
    """
    ahead = [
        None if teacher.one_at_a_time else deque(_states(step, teacher, side, batches))
        for teacher, side in zip(teachers, sides, strict=True)
    ]

    def each() -> Iterator[MicroBatch]:
        for batch in batches:  # nothing here holds states while the schedule works on them
            yield MicroBatch(
                batch,
                tuple(
                    _states(step, teacher, side, [batch])[0] if found is None else found.popleft()
                    for teacher, side, found in zip(teachers, sides, ahead, strict=True)
                ),
            )

    return each()


def _states(step: int, teacher: Teacher, side: int, batches: Sequence[Batch]) -> list[States | None]:
    with in_step(step):
        return teacher.states([batch.teachers[side] for batch in batches])


@contextmanager
def in_step(step: int) -> Iterator[None]:
    """Inside, an `InputError` names the step."""
    try:
        yield
    except InputError as error:
        raise InputError(f"step {step}: {error.found}", error.expected, error.fix) from None

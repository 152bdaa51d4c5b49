"""A teacher reads prepared text, and its states go to a folder: the work of ``xtoken cache``."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from nemo_xtoken.data.batch import Batch, TeacherSide, collate
from nemo_xtoken.data.dataset import DistillationDataset, TeacherPieces
from nemo_xtoken.errors import InputError
from nemo_xtoken.parallel.context_parallel import move_rows
from nemo_xtoken.parallel.vocabulary_shard import group_size
from nemo_xtoken.teachers.contract import States, Teacher
from nemo_xtoken.teachers.store.side_pieces import pieces_of
from nemo_xtoken.teachers.store.state_store import StateStore
from nemo_xtoken.teachers.store.state_writer import StateWriter

__all__ = ["Readable", "SamplesOfRun", "Work", "fill", "whole_states", "work_of", "wrong_anywhere"]


class Readable(Protocol):
    """Samples of one teacher's side."""

    def __len__(self) -> int: ...

    def pieces(self) -> TeacherPieces:
        """Of all samples."""
        ...

    def side(self, index: int) -> TeacherSide:
        """One sample, with b = 1."""
        ...


@dataclass(frozen=True)
class SamplesOfRun:
    """What a teacher reads in a run, one epoch of it.

    Attributes:
        samples: of one source of the run.
        number: of the teacher.
    """

    samples: DistillationDataset
    number: int = 0

    def __len__(self) -> int:
        return min(len(self.samples), self.samples.epoch_length)

    def pieces(self) -> TeacherPieces:
        """See `Readable`."""
        return self.samples.teacher_pieces(self.number)

    def side(self, index: int) -> TeacherSide:
        """See `Readable`."""
        return self.samples[index].teachers[self.number]


@dataclass(frozen=True)
class Work:
    """What is to be computed.

    Attributes:
        samples: which of each source of text: its number, and indices in it.
        tokens: positions of the pieces whose states are missing.
        there: of those that are not.
    """

    samples: tuple[tuple[int, int], ...]
    tokens: int
    there: int


def work_of(sources: Sequence[Readable], store: StateStore, part: int = 0, parts: int = 1) -> Work:
    """The samples of a part in which a piece has no states yet.

    A piece that occurs several times counts once, in the first sample that has it.

    Args:
        part, parts: which of how many shares of all samples.
    """
    samples: list[tuple[int, int]] = []
    tokens = there = 0
    seen: set[tuple[bytes, int, int]] = set()
    for number, source in enumerate(sources):
        pieces = source.pieces()
        mine = pieces.samples % parts == part
        pieces = TeacherPieces(*(column[mine] for column in pieces))
        lacking = store.lacking(pieces.digests, pieces.starts, pieces.counts)
        there += int(pieces.counts[~lacking].sum())
        wanted: set[int] = set()
        order = np.argsort(pieces.samples, kind="stable")
        for row in order[lacking[order]].tolist():
            key = bytes(pieces.digests[row]), int(pieces.starts[row]), int(pieces.counts[row])
            if key not in seen:
                seen.add(key)
                wanted.add(int(pieces.samples[row]))
                tokens += key[2]
        samples += [(number, index) for index in sorted(wanted)]
    return Work(tuple(samples), tokens, there)


def whole_states(states: States) -> Tensor:
    """The states of all positions ``[b*T, H]``.  Collective over the context-parallel group."""
    ranks = states.layout.positions.shape[0]
    if ranks == 1:
        return states.hidden
    everything = torch.arange(states.layout.rows().numel(), device=states.hidden.device)
    return move_rows(states.hidden, states.layout, [everything] * ranks)


def fill(
    teacher: Teacher,
    sources: Sequence[Readable],
    work: Work,
    writer: StateWriter | None,
    micro_batch: int,
    at_once: int,
    told: Callable[[int], None] = lambda tokens: None,
    made_of: Callable[[Tensor, TeacherSide], Tensor] | None = None,
) -> None:
    """Runs a teacher over samples and writes the states of those pieces that are missing.

    Collective over all processes, which have the same work: copies of the teacher (its data-parallel ranks) share the
    samples, and run equal numbers of micro-batches, some of them again; of a teacher elsewhere nothing is asked again.

    Args:
        teacher: in process groups of its own, where it is the only model, or elsewhere.
        work: see `work_of`; the same on all ranks.
        writer: on the ranks that write, those of the first tensor- and context-parallel rank of each copy's last
            pipeline stage; None elsewhere.
        micro_batch: samples at a time.
        at_once: micro-batches in one call of the teacher, to fill its pipeline.
        told: called with the positions that were written.
        made_of: what is written instead of a micro-batch's states ``[b*T, H]``; collective over the tensor-parallel
            group, on the first context-parallel rank of the last pipeline stage.  None: the states.

    Raises:
        InputError: on all processes, where one of them has no states, or cannot write; one all-reduce of a number for
            each call of the teacher.
    """
    from megatron.core import parallel_state

    copy, copies = parallel_state.get_data_parallel_rank(), parallel_state.get_data_parallel_world_size()
    batches = [work.samples[i : i + micro_batch] for i in range(0, len(work.samples), micro_batch)]
    rounds = -(-len(batches) // (copies * at_once))
    written: set[tuple[bytes, int, int]] = set()
    store = None if writer is None else StateStore(writer.folder, writer.fingerprint)
    coming: deque[dict[int, TeacherSide]] = deque()  # by the number of the micro-batch
    seen = 0
    wrong: InputError | None = None
    for number in range(rounds):
        while seen < min(rounds, number + teacher.ahead + 1):
            mine = [i for i in _share(seen, copy, copies, at_once) if teacher.colocated or i < len(batches)]
            taken = [batches[min(i, len(batches) - 1)] for i in mine]
            sides = [_joined([sources[source].side(index) for source, index in batch]) for batch in taken]
            coming.append(dict(zip(mine, sides, strict=True)))
            teacher.announce(sides)
            seen += 1
        due = coming.popleft()
        found: list[States | None] = []
        try:
            found = teacher.states(list(due.values()))
        except InputError as error:
            wrong = wrong or error
        _raise_together(wrong)
        for (i, side), states in zip(due.items(), found, strict=True):
            new = i < len(batches)
            if states is None:
                continue
            hidden = whole_states(states)
            if made_of is not None and new:
                hidden = made_of(hidden, side)
            if writer is None or store is None or not new or wrong is not None:
                continue
            for piece in pieces_of(side):
                key = piece.digest, piece.start, piece.count
                if key not in written and not store.holds(*key):
                    written.add(key)
                    try:
                        writer.add(piece.digest, piece.start, piece.ids, hidden[piece.rows])
                    except InputError as error:  # the others are told before their next states
                        wrong = error
                        break
                    told(piece.count)
    try:
        if writer is not None and wrong is None:
            writer.flush()
    except InputError as error:
        wrong = error
    _raise_together(wrong)


def _raise_together(wrong: InputError | None) -> None:
    """Raises this process's error, or that of others: none goes on into a collective that others never enter.

    Collectives over all processes: those of `wrong_anywhere`.
    """
    group = dist.group.WORLD if dist.is_initialized() else None
    anywhere = wrong_anywhere(None if wrong is None else wrong.found, group)
    if wrong is not None:
        raise wrong
    if anywhere is not None:
        raise InputError(f"another process has no states: {anywhere}", "states of all", "see its log")


def wrong_anywhere(wrong: str | None, group: Any) -> str | None:
    """What is wrong on any rank of a group, on all of them.

    Collectives over the group: one all-reduce of a number; where something is wrong, a gathering of texts.
    """
    ranks = group_size(group)
    if ranks == 1:
        return wrong
    flag = torch.tensor([int(wrong is not None)], device=torch.cuda.current_device())
    dist.all_reduce(flag, op=dist.ReduceOp.MAX, group=group)
    if not int(flag):
        return None
    texts: list[str | None] = [None] * ranks
    dist.all_gather_object(texts, wrong, group=group)
    return "; ".join(dict.fromkeys(text for text in texts if text is not None))


def _share(number: int, copy: int, copies: int, at_once: int) -> Iterator[int]:
    first = (number * copies + copy) * at_once
    return iter(range(first, first + at_once))


def _joined(sides: Sequence[TeacherSide]) -> TeacherSide:
    """One side of several, on this rank's device."""
    batch = collate([Batch(side, (side,)) for side in sides])
    return batch.teachers[0].map(lambda tensor: tensor.to(torch.cuda.current_device()))


def agreed(work: Work) -> Work:
    """The first process's, on all: files that others write meanwhile would make them differ.  One broadcast."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return work
    shared = [work]
    dist.broadcast_object_list(shared, src=0)
    return shared[0]

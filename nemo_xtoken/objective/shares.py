"""A micro-batch over a context-parallel group: every rank gets whole chunks, and an equal share of the work.

What a rank scores is a micro-batch of its own, of one sample that holds nothing but labelled rows.  Every label and
every chunk is on exactly one rank, so that sums, counts and gradients over the ranks are those of one process.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

from nemo_xtoken.losses.base import LossSum, ModelOutput, TeacherSignal
from nemo_xtoken.losses.chunks import ScoredRows
from nemo_xtoken.objective.tiles import TeacherRows, legal_cuts
from nemo_xtoken.parallel.context_parallel import ContextLayout, move_rows
from nemo_xtoken.parallel.vocabulary_shard import group_rank, group_size

__all__ = ["Held", "share", "sum_over"]


@dataclass(frozen=True)
class Held:
    """A model's output on a context-parallel rank.

    Attributes:
        output: hidden ``[n, H]``, this rank's rows of the layout; the output layer.
        layout: which positions of the micro-batch they are.
    """

    output: ModelOutput
    layout: ContextLayout


def share(
    student: Held, labels: Tensor, teachers: Sequence[TeacherSignal] = (), layouts: Sequence[ContextLayout] = ()
) -> tuple[ModelOutput, Tensor, list[TeacherSignal]]:
    """This rank's share of a micro-batch, in the form that ``cross_tokenizer_loss`` takes a micro-batch in.

    The shares are runs of labelled student positions, cut between chunks, of about equal numbers of student and teacher
    rows.

    Args:
        student: what this rank holds of it.
        labels: int64 ``[b, T_S]``, of the whole micro-batch, as everything else but the hidden states; equal on all
            ranks of the context-parallel group.
        teachers: their outputs' hidden states are this rank's rows of ``layouts``.

    Returns:
        student, labels and teachers of the share.  Collectives: an all-to-all of hidden states for each model, and its
        transpose in backward for the student's.

    Raises:
        InputError: chunks that no batch can have.
    """
    group = student.layout.group
    if group_size(group) == 1 and student.layout.bounds is None:
        return student.output, labels, list(teachers)
    empty = labels.new_zeros(0)
    rows = ScoredRows.build(labels.reshape(-1), empty, empty, only_chunks=False)
    parts = [TeacherRows.of(labels, teacher) for teacher in teachers]
    cuts = _cuts(rows, parts, group_size(group))
    me = group_rank(group)
    mine = slice(cuts[0][me], cuts[0][me + 1])
    wanted = [rows.rows[a:b] for a, b in itertools.pairwise(cuts[0])]
    output = ModelOutput(move_rows(student.output.hidden, student.layout, wanted), student.output.head)
    shared = []
    for teacher, layout, part, at in zip(teachers, layouts, parts, cuts[1:], strict=True):
        first = torch.nn.functional.pad(part.teacher.first, (0, 1), value=part.teacher.rows.numel())
        ends = first[at].tolist()
        hidden = move_rows(teacher.output.hidden, layout, [part.teacher.rows[a:b] for a, b in itertools.pairwise(ends)])
        run = slice(at[me], at[me + 1])
        on_student, on_teacher = part.student.part(mine, run), part.teacher.part(slice(ends[me], ends[me + 1]), run)
        chunks = torch.stack(
            [
                torch.zeros_like(on_student.first),
                on_student.first,
                on_student.tokens,
                on_teacher.first,
                on_teacher.tokens,
            ],
            dim=1,
        )
        shared.append(
            replace(
                teacher,
                output=ModelOutput(hidden, teacher.output.head),
                labels=on_teacher.labels[None],
                chunks=chunks,
                before=torch.stack([on_student.before, on_teacher.before]),
            )
        )
    return output, rows.labels[None, mine], shared


def _cuts(rows: ScoredRows, parts: Sequence[TeacherRows], ranks: int) -> list[list[int]]:
    """Where the shares begin and end: in labelled rows, then in each teacher's chunks, ``[1 + teachers][cp + 1]``."""
    before = legal_cuts([part.student for part in parts] or [rows])[: 1 + len(parts)]
    work = before[0].clone()
    for part, chunks in zip(parts, before[1:], strict=True):
        first = torch.nn.functional.pad(part.teacher.first, (0, 1), value=part.teacher.rows.numel()).cpu()
        work += first[chunks]
    targets = work[-1] * torch.arange(ranks + 1) / ranks
    at = torch.searchsorted(work.double(), targets.double())
    at[0], at[-1] = 0, work.numel() - 1
    cuts: list[list[int]] = before[:, at].tolist()
    return cuts


def sum_over(group: ProcessGroup | None, sums: Sequence[LossSum]) -> list[LossSum]:
    """Totals and counts over the ranks of a group, without metrics.  Collective: one all-reduce of a few float64."""
    if group_size(group) == 1:
        return list(sums)
    counts = torch.tensor([s.count for s in sums], dtype=torch.float64, device=sums[0].total.device)
    values = torch.stack([torch.stack([s.total.double() for s in sums]), counts], dim=1)
    dist.all_reduce(values, group=group)
    return [
        LossSum(total.to(s.total.dtype), int(count)) for s, (total, count) in zip(sums, values.unbind(), strict=True)
    ]

"""A teacher in the student's processes with tensor, pipeline, context or expert parallel sizes of its own.

Its copies (its data-parallel ranks) divide the micro-batches of all the student's data-parallel ranks among them; the
hidden states then go to the ranks that compute the loss, those of the student's last pipeline stage.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from nemo_xtoken.data.batch import Inputs
from nemo_xtoken.parallel.context_parallel import ContextLayout, move_rows
from nemo_xtoken.parallel.head import OutputHead
from nemo_xtoken.parallel.ownership import Ownership, spread_rows
from nemo_xtoken.teachers.colocated import ColocatedTeacher
from nemo_xtoken.teachers.contract import States, TeacherHost
from nemo_xtoken.teachers.groups import TeacherGroups
from nemo_xtoken.teachers.output import output_head

__all__ = ["OwnLayoutTeacher"]


@dataclass(frozen=True)
class _Place:
    """Where a process is in a layout.

    Attributes:
        last: on the last pipeline stage.
    """

    tensor: int
    context: int
    data: int
    last: bool

    @classmethod
    def here(cls) -> "_Place":
        from megatron.core import parallel_state as ps

        return cls(
            ps.get_tensor_model_parallel_rank(),
            ps.get_context_parallel_rank(),
            ps.get_data_parallel_rank(),
            ps.is_pipeline_last_stage(),
        )


class OwnLayoutTeacher(ColocatedTeacher):
    """As the teacher it is made of, in groups of its own.

    Args:
        groups: those it was built in.
        arguments: of :class:`~nemo_xtoken.teachers.colocated.ColocatedTeacher`.

    Collective over all processes: one all-gather of a few integers.
    """

    def __init__(self, groups: TeacherGroups, *arguments: Any) -> None:
        from megatron.core import parallel_state

        self.groups = groups
        with groups.active():
            super().__init__(*arguments)
            mine = _Place.here()
        self.one_at_a_time = False  # its copies share a step's micro-batches out
        self.students_group = parallel_state.get_data_parallel_group()
        self.students_context = parallel_state.get_context_parallel_group()
        found: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(found, (_Place.here(), mine))
        self._students: list[_Place] = [student for student, _ in found]
        self._copy = mine.data
        self._sources = {own: rank for rank, (_, own) in enumerate(found) if own.last}
        self._dtype = next(self.model.parameters()).dtype

    @classmethod
    def open(cls, host: TeacherHost) -> "OwnLayoutTeacher":
        """Collective over all processes: makes the teacher's process groups, and loads it in them."""
        groups = TeacherGroups(host.sizes)
        with groups.active():
            model = host.load()
        return cls(groups, model, host.vocabulary_size, host.form, host.label)

    def lay_out(self, *ownerships: Ownership) -> list[OutputHead]:
        """See `Teacher.lay_out`.  Collective over all processes: the layer goes once through all of them."""
        config, device = self.model.config, torch.cuda.current_device()
        weight = torch.empty(0, config.hidden_size, dtype=self._dtype, device=device)
        if self.last_stage:
            tied = self.model.share_embeddings_and_output_weights
            layer = self.model.output_layer
            weight = (self.model.shared_embedding_or_output_weight() if tied else layer.weight).detach()
            if not tied:  # nobody but the loss needs its rows; the layer still runs, see HiddenStateTap
                layer.weight.data = weight[:1].clone()
        sources = [self._sources[_Place(tensor, 0, 0, last=True)] for tensor in range(self.groups.sizes.tensor)]
        rows = torch.tensor(weight.shape[0], device=device)
        dist.broadcast(rows, src=sources[0])
        laid_out = spread_rows(weight, int(rows), sources, dist.group.WORLD, ownerships)
        heads = []
        for ownership, own_rows in zip(ownerships, laid_out, strict=True):
            columns = torch.from_numpy(ownership.owned).to(device)
            heads.append(output_head(own_rows, ownership.shard, config, columns))
        return heads

    @torch.no_grad()
    def states(self, sides: Sequence[Inputs]) -> list[States | None]:
        """See `Teacher.states`.  A context-parallel rank of the student gets a run of the positions.

        Collectives, over all processes: an all-gather of the inputs over the student's data-parallel group; an
        all-to-all of hidden states, each sent once to every rank that needs it, for each micro-batch of a copy.
        """
        everyones = self._everyones(sides)
        copies = dist.get_world_size() // self.groups.sizes.ranks
        each = -(-len(everyones) // copies)  # copies run equal numbers, because experts may span them
        me, first = dist.get_rank(), self._copy * each
        mine = [everyones[min(number, len(everyones) - 1)] for number in range(first, first + each)]
        with self.groups.active():
            hidden = [self._whole(states) for states in super().states(mine)]
        positions = sides[0].tokens.numel()
        contexts = 1 + max(place.context for place in self._students)
        run = -(-positions // contexts)
        found: dict[int, Tensor] = {}
        for turn in range(each):
            computed = [copy * each + turn for copy in range(copies) if copy * each + turn < len(everyones)]
            part, hidden[turn] = hidden[turn], None  # what is delivered is not kept: a step's states once, not twice
            found |= self._deliver(computed, each, part, run, len(sides))
        if not self._students[me].last:
            return [None] * len(sides)
        runs = torch.arange(contexts * run, device=torch.cuda.current_device()).view(contexts, run)
        layout = ContextLayout(runs.masked_fill(runs >= positions, -1), self.students_context)
        own = self._students[me].data * len(sides)
        return [States(found[own + number], layout) for number in range(len(sides))]

    def _everyones(self, sides: Sequence[Inputs]) -> list[Inputs]:
        """The teacher's inputs of all the student's data-parallel ranks, rank after rank."""
        gathered = []
        for name in (field.name for field in fields(Inputs)):
            stacked = torch.stack([getattr(side, name) for side in sides])
            parts = [torch.empty_like(stacked) for _ in range(dist.get_world_size(self.students_group))]
            dist.all_gather(parts, stacked, group=self.students_group)
            gathered.append(torch.cat(parts))
        return [Inputs(*values) for values in zip(*gathered, strict=True)]

    def _whole(self, states: States | None) -> Tensor | None:
        """Over the teacher's context-parallel ranks put together, ``[b*T_T, H_T]``; None off its last stage."""
        if states is None:
            return None
        rows = states.hidden
        if self.groups.sizes.context > 1:
            everything = torch.arange(states.layout.rows().numel(), device=rows.device)
            rows = move_rows(rows, states.layout, [everything] * self.groups.sizes.context)
        return rows.to(self._dtype)

    def _deliver(
        self, computed: Sequence[int], each: int, hidden: Tensor | None, run: int, step: int
    ) -> dict[int, Tensor]:
        """Micro-batches that copies have just computed, to who needs them; what came here, by number.

        Args:
            computed: their numbers among everyone's.
            each: micro-batches of a copy.
            hidden: of this process's copy, None off its last stage.
            run: positions for a context-parallel rank of the student.
            step: micro-batches of a data-parallel rank of the student.
        """
        me, sizes = dist.get_rank(), self.groups.sizes
        sent, received = [0] * len(self._students), [0] * len(self._students)
        parts: list[tuple[int, Tensor]] = []
        arriving: list[tuple[int, int]] = []
        for number in computed:
            for rank, student in enumerate(self._students):
                if not student.last or student.data != number // step:
                    continue
                place = _Place(
                    student.tensor % sizes.tensor, student.context % sizes.context, number // each, last=True
                )
                source = self._sources[place]
                if source == me:
                    assert hidden is not None
                    part = hidden[student.context * run : (student.context + 1) * run]
                    parts.append((rank, torch.nn.functional.pad(part, (0, 0, 0, run - part.shape[0]))))
                    sent[rank] = run
                if rank == me:
                    arriving.append((source, number))
                    received[source] = run
        nothing = torch.empty(0, self.model.config.hidden_size, dtype=self._dtype, device=torch.cuda.current_device())
        out = nothing.new_empty(sum(received), nothing.shape[1])
        # a copy computes one micro-batch at a time: a process gets at most one from another
        by_rank = [part for _, part in sorted(parts, key=lambda item: item[0])]
        dist.all_to_all_single(out, torch.cat([nothing, *by_rank]), received, sent)
        return {number: out[i * run : (i + 1) * run] for i, (_, number) in enumerate(sorted(arriving))}

"""A colocated teacher whose forward pass of the next micro-batch runs beside the student's backward pass of one.

What every rank launches, in this order, for micro-batch i: the student's forward pass and its loss; the teacher's
forward pass of i + 1, on a stream of its own and in process groups of its own; the student's backward pass.  The next
micro-batch may be the first of the next step.  The order is that of the host's one thread, so it is the same on all
ranks; on the device the last two run at the same time, and so do their collectives, each on its own communicators.
"""

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import is_dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from nemo_xtoken.data.batch import Inputs
from nemo_xtoken.parallel.context_parallel import ContextLayout
from nemo_xtoken.run.layout import check_ahead
from nemo_xtoken.run.unsupported import CONNECTIONS
from nemo_xtoken.teachers.ahead.next_in_line import NextInLine
from nemo_xtoken.teachers.ahead.own_workspace import OwnWorkspace
from nemo_xtoken.teachers.ahead.side_stream import SideStream
from nemo_xtoken.teachers.colocated import ColocatedTeacher, ModelInputs
from nemo_xtoken.teachers.contract import States, TeacherHost
from nemo_xtoken.teachers.groups import TeacherGroups

__all__ = ["AheadTeacher"]

logger = logging.getLogger(__name__)


class _Given(NamedTuple):
    """What a launch leaves.

    Attributes:
        states: of the micro-batch.
        bad: bool ``[n]`` in the host's memory, which of the rows are no numbers; once the stream is through.
    """

    states: States
    bad: Tensor


class AheadTeacher(ColocatedTeacher):
    """As the teacher it is made of, one micro-batch ahead of the student.

    Launching does not wait for the device, so what is no number is seen when the step is over: see `check_given`.

    Args:
        groups: those it was built in, of the student's layout.
        stream: beside the student's.
        arguments: of :class:`~nemo_xtoken.teachers.colocated.ColocatedTeacher`.
    """

    ahead = 1  # step: that after the one at hand, for its first micro-batch

    def __init__(self, groups: TeacherGroups, stream: SideStream, *arguments: Any) -> None:
        self.groups, self._stream = groups, stream
        with groups.active():
            super().__init__(*arguments)
        self._workspace = OwnWorkspace() if stream.stream is not None else None
        self._line = NextInLine(self._prepare, self._launch)
        self._unchecked: list[tuple[Inputs, ContextLayout, Tensor]] = []

    @classmethod
    def open(cls, host: TeacherHost) -> "AheadTeacher":
        """Collective over all processes: makes the teacher's process groups, and loads it in them.

        Raises:
            InputError: a layout that is not the student's, or one with pipeline stages; experts.
        """
        check_ahead(host.label, "teacher", host.sizes, host.student_sizes, host.config.num_moe_experts)
        stream = SideStream.here()
        if stream.stream is not None and os.environ.get(CONNECTIONS) == "1":
            logger.warning(
                "%s=1 with ahead=true of the %s: the device takes up kernels in the order of their launches then, so "
                "that the student's backward pass waits for the teacher; set it to 8, or leave ahead out",
                CONNECTIONS,
                host.label,
            )
        groups = TeacherGroups(host.sizes)
        with groups.active():
            model = host.load()
        return cls(groups, stream, model, host.vocabulary_size, host.form, host.label)

    def announce(self, sides: Sequence[Inputs]) -> None:
        """See `Teacher.announce`."""
        self._line.announce(sides)

    def begin_next(self) -> None:
        """Launches the forward pass of the next micro-batch; the host does not wait.

        Collectives, in the teacher's own groups: those of its layers.
        """
        self._line.launch()

    @torch.no_grad()
    def states(self, sides: Sequence[Inputs]) -> list[States | None]:
        """See `Teacher.states`: what has been launched, and what has not is computed now, in the current stream."""
        return [self._states(side) for side in sides]

    def check_given(self) -> None:
        """See `Teacher.check_given`."""
        unchecked, self._unchecked = self._unchecked, []
        for side, layout, bad in unchecked:
            self._check_numbers(bad, layout, side)

    def close(self) -> None:
        """Lets go of what has been launched."""
        self._line.clear()
        self._unchecked.clear()

    def _states(self, side: Inputs) -> States:
        given = self._line.take(side)
        if given is None:
            self._stream.join()  # the model has one set of buffers
            inputs = self._prepare(side)
            with self.groups.active():
                [states] = self._run([inputs], 1, side.tokens.shape)
            self._check_numbers(self._no_numbers(states), states.layout, side)
        else:
            states = given.states
            self._stream.join([states.hidden])
            self._unchecked.append((side, states.layout, given.bad))
        self._line.prepare()
        return states

    @torch.no_grad()
    def _launch(self, side: Inputs, inputs: ModelInputs) -> _Given:
        workspace = nullcontext() if self._workspace is None else self._workspace.active()
        rows = inputs[0].local
        found = torch.empty(rows.shape, dtype=torch.bool, device="cpu", pin_memory=rows.is_cuda)
        with self._stream.beside(_tensors(inputs[1])), self.groups.active(), workspace:
            [states] = self._run([inputs], 1, side.tokens.shape)
            found.copy_(self._no_numbers(states), non_blocking=True)
        return _Given(states, found)


def _tensors(value: Any) -> Iterator[Tensor]:
    """All that a model's arguments hold."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for one in value.values():
            yield from _tensors(one)
    elif is_dataclass(value) and not isinstance(value, type):
        yield from _tensors(vars(value))

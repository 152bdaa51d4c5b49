"""What a teacher is to a run, wherever its hidden states come from.

A source of states is a subclass of `Teacher` in a file of its own and a row of ``teacher_sources.SOURCES``; or, from
outside of this package, a class that ``teacher.source=package.module:Class`` names.  Losses, training and the adapters
know this contract alone.
"""

import abc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from nemo_xtoken.data.batch import Inputs, TeacherSide
from nemo_xtoken.data.dataset import TeacherPieces
from nemo_xtoken.parallel.context_parallel import ContextLayout
from nemo_xtoken.parallel.head import OutputHead
from nemo_xtoken.parallel.ownership import Ownership
from nemo_xtoken.run.layout import ParallelSizes
from nemo_xtoken.teachers.fingerprint import Fingerprint
from nemo_xtoken.teachers.output_rows import OutputRows

__all__ = ["InputForm", "States", "Teacher", "TeacherHost", "TeacherLost"]


class TeacherLost(Exception):
    """A teacher elsewhere has not answered for as long as the settings say; the run may go on when it is back."""


@dataclass(frozen=True)
class States:
    """The last hidden states of a micro-batch, those that one context-parallel rank of the student holds.

    Attributes:
        hidden: ``[n, H]``, after the model's last norm; equal on all ranks of the student's tensor-parallel group.
        layout: which positions of the micro-batch they are, over the student's context-parallel group.
    """

    hidden: Tensor
    layout: ContextLayout


class InputForm(Protocol):
    """In which form a Megatron model of the run is given its input; ``training.inputs`` is the one."""

    def context_layout(self, inputs: Inputs) -> ContextLayout:
        """Which positions each context-parallel rank holds."""
        ...

    def model_inputs(self, inputs: Inputs, layout: ContextLayout) -> dict[str, Any]:
        """Keyword arguments of the model, for this rank."""
        ...

    def schedule_shape(self, micro_batch_size: int, length: int) -> tuple[int, int]:
        """Micro-batch size and length as Megatron's schedule sees them."""
        ...


@dataclass(frozen=True)
class TeacherHost:
    """What a run gives to the source of one of its teachers.

    Attributes:
        label: what messages call the teacher.
        settings: its ``TeacherConfig``.
        vocabulary_size: V_T.
        config: its architecture, a Megatron configuration in the student's precision and this teacher's layout.
        sizes: that layout.
        student_sizes: the student's, as far as such a model has them.
        form: of the inputs of models in this run.
        load: makes this rank's part of the model in the process groups that are in force: frozen, in evaluation mode.
            A source whose states come from elsewhere does not call it.
        dtype: of its states, that of the student's parameters in computation.
        output_rows: its output layer in its checkpoint, for a source without the model.
        fingerprint: what tells it from other teachers.  The first call may read all of its weights.
    """

    label: str
    settings: Any
    vocabulary_size: int
    config: Any
    sizes: ParallelSizes
    student_sizes: ParallelSizes
    form: InputForm
    load: Callable[[], Any]
    dtype: torch.dtype
    output_rows: Callable[[], OutputRows]
    fingerprint: Callable[[], Fingerprint]


class Teacher(abc.ABC):
    """A frozen model somewhere, whose hidden states the loss compares the student with.

    Its life: `check`, `check_loss` and `check_pieces` before anything is built; then on every rank of the run `open`,
    once `lay_out`, `states` step by step, and `close`, also where the run fails.

    Attributes:
        label: what messages call it.
        one_at_a_time: its states can be asked for micro-batch by micro-batch, in the midst of the student's schedule,
            so that those of one are there at a time.  Otherwise those of all micro-batches of a step come before it.
        colocated: its model lies in the run's processes, whose number its layout has to divide.
        may_be_lost: `wait` may raise `TeacherLost`.
        ahead: steps whose sides it wants to see before they are due.
    """

    colocated: ClassVar[bool] = False
    may_be_lost: ClassVar[bool] = False
    ahead: int = 0
    label: str
    one_at_a_time: bool

    @classmethod
    def check(cls, settings: Any, where: str) -> None:
        """Whether it can be had with these settings; every process calls it before anything is built.

        Args:
            settings: a ``TeacherConfig``.
            where: what that is called on the command line.

        Raises:
            InputError: it cannot.
        """
        return None

    @classmethod
    def check_loss(cls, settings: Any, where: str, loss: str, objective: Any) -> None:
        """Whether what it gives is enough for a loss; after `check`, before anything is built.

        Args:
            settings, where: see `check`.
            loss: a name that ``losses.registry.loss_named`` knows.
            objective: the run's ``ObjectiveConfig``.

        Raises:
            InputError: it is not.
        """
        return None

    @classmethod
    def check_pieces(cls, settings: Any, where: str, pieces: TeacherPieces) -> None:
        """Whether its states are there of all that it is to read, where that can be known before the run.

        Args:
            settings, where: see `check`.
            pieces: of one source of the training data or the held-out text.

        Raises:
            InputError: they are not.
        """
        return None

    @classmethod
    @abc.abstractmethod
    def open(cls, host: TeacherHost) -> "Teacher":
        """The teacher on this rank.

        Raises:
            InputError: it is not to be had.
        """

    @abc.abstractmethod
    def lay_out(self, *ownerships: Ownership) -> list[OutputHead]:
        """The output layer in each order that a loss wants, over the student's tensor-parallel groups.

        Ranks that compute no loss, all but the student's last pipeline stage, give no order.
        """

    @abc.abstractmethod
    def states(self, sides: Sequence[TeacherSide]) -> list[States | None]:
        """The hidden states of each micro-batch, in order.

        The states of a piece depend on its document, where it begins and ends in it, and the teacher alone: the side
        says these of each piece.  The order of the data, the micro-batch and the layout do not matter.

        Args:
            sides: the teacher's, of this data-parallel rank's micro-batches; one at a time where that is possible, else
                all of a step.

        Returns:
            None on the ranks that compute no loss.

        Raises:
            InputError: states that are not numbers, or are not to be had; the message names the samples.
        """

    def announce(self, sides: Sequence[TeacherSide]) -> None:  # noqa: B027 (nothing by default)
        """The micro-batches of a step that will be asked for, in the order of the steps; see ``ahead``."""

    def begin_next(self) -> None:  # noqa: B027 (nothing by default)
        """The student has been through a micro-batch of training, and its way back comes next: a teacher may begin on
        what it was announced.  Called on all ranks at the same place, where there are no pipeline stages."""

    def check_given(self) -> None:  # noqa: B027 (nothing by default)
        """After a step, whose sums are known: what `states` has given in it and could not look at at once.

        Raises:
            InputError: states that are not numbers.
        """

    def wait(self, sides: Sequence[TeacherSide]) -> None:  # noqa: B027 (nothing by default)
        """Until the states of a step's micro-batches are at hand; called before the step begins.

        Raises:
            InputError: they are not to be had.
            TeacherLost: the teacher does not answer.
        """

    def close(self) -> None:  # noqa: B027 (nothing by default)
        """Lets go of what is not this process's own."""

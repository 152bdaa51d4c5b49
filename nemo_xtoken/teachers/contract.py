"""What a teacher is to a run, wherever its hidden states come from."""

import abc
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from nemo_xtoken.data.batch import TeacherSide
from nemo_xtoken.parallel.context_parallel import ContextLayout
from nemo_xtoken.parallel.head import OutputHead
from nemo_xtoken.parallel.ownership import Ownership

__all__ = ["States", "Teacher"]


@dataclass(frozen=True)
class States:
    """The last hidden states of a micro-batch, those that one context-parallel rank of the student holds.

    Attributes:
        hidden: ``[n, H]``, after the model's last norm; equal on all ranks of the student's tensor-parallel group.
        layout: which positions of the micro-batch they are, over the student's context-parallel group.
    """

    hidden: Tensor
    layout: ContextLayout


class Teacher(abc.ABC):
    """A frozen model somewhere, whose hidden states the loss compares the student with.

    Attributes:
        label: what messages call it.
        one_at_a_time: its states can be asked for micro-batch by micro-batch, in the midst of the student's schedule,
            so that those of one are there at a time.  Otherwise those of all micro-batches of a step come before it.
    """

    label: str
    one_at_a_time: bool

    @abc.abstractmethod
    def lay_out(self, *ownerships: Ownership) -> list[OutputHead]:
        """The output layer in each order that a loss wants, over the student's tensor-parallel groups.

        Every rank of the run calls it once, before any states; those that compute no loss, all but the student's last
        pipeline stage, without an order.
        """

    @abc.abstractmethod
    def states(self, sides: Sequence[TeacherSide]) -> list[States | None]:
        """The hidden states of each micro-batch, in order.  Every rank of the run calls it.

        Args:
            sides: the teacher's, of this data-parallel rank's micro-batches; one at a time where that is possible, else
                all of a step.

        Returns:
            None on the ranks that compute no loss.

        Raises:
            InputError: states that are not numbers, or are not to be had; the message names the samples.
        """

"""What sources of states have in common whose model lies in no process of the run."""

import abc
from collections.abc import Sequence

import torch
from torch import Tensor

from nemo_xtoken.data.batch import TeacherSide
from nemo_xtoken.errors import InputError
from nemo_xtoken.parallel.context_parallel import ContextLayout
from nemo_xtoken.parallel.head import OutputHead
from nemo_xtoken.parallel.ownership import Ownership
from nemo_xtoken.teachers.contract import States, Teacher, TeacherHost
from nemo_xtoken.teachers.output import output_head
from nemo_xtoken.teachers.output_rows import spread_output_rows

__all__ = ["TeacherWithoutModel"]


class TeacherWithoutModel(Teacher):
    """States of pieces come from elsewhere, the output layer from the checkpoint.

    Args:
        host: of the run.
    """

    def __init__(self, host: TeacherHost) -> None:
        from megatron.core import parallel_state

        self.label, self.host, self.one_at_a_time = host.label, host, True
        self.dtype: torch.dtype = host.dtype
        self.width = int(host.config.hidden_size)
        self.last_stage = parallel_state.is_pipeline_last_stage()

    def lay_out(self, *ownerships: Ownership) -> list[OutputHead]:
        """See `Teacher.lay_out`.  Collective over all processes: the layer goes once through all of them."""
        device = torch.cuda.current_device()
        weights = spread_output_rows(self.host.output_rows(), ownerships, self.dtype, device, self.label)
        return [
            output_head(weight, one.shard, self.host.config, torch.from_numpy(one.owned).to(device))
            for weight, one in zip(weights, ownerships, strict=True)
        ]

    def states(self, sides: Sequence[TeacherSide]) -> list[States | None]:
        """See `Teacher.states`."""
        if not self.last_stage:
            return [None] * len(sides)
        return [self._states(side) for side in sides]

    def _states(self, side: TeacherSide) -> States:
        layout = self.host.form.context_layout(side)
        return States(self.held(side, layout), layout)

    @abc.abstractmethod
    def held(self, side: TeacherSide, layout: ContextLayout) -> Tensor:
        """``[n, H]`` on the device: the states of a micro-batch, of the positions that this rank holds.

        Raises:
            InputError: they are not to be had.
        """

    @staticmethod
    def held_of(whole: Tensor, layout: ContextLayout) -> Tensor:
        """The same of ``[b*T, H]``, of all positions."""
        return layout.take(whole) if layout.positions.shape[0] > 1 else whole

    def not_finite(self, sample: Tensor) -> InputError:
        """What is said of a sample whose states are not numbers.

        Args:
            sample: its index in the data set.
        """
        return InputError(
            f"the {self.label}'s states are not numbers for sample {int(sample)} of the data set",
            "finite hidden states",
            "check the teacher's weights and precision (bf16 rather than fp16), and the text of that sample",
        )

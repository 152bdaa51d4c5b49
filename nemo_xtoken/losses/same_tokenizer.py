"""The plain KL between two models of one tokenizer: the drop-in case, without W."""

import numpy as np
import torch
from torch import Tensor

from nemo_xtoken.errors import InputError
from nemo_xtoken.losses.common import CommonSet
from nemo_xtoken.losses.directions import direction_named
from nemo_xtoken.parallel.layout import VocabularyShard, group_size
from nemo_xtoken.parallel.softmax import all_reduce_sum

__all__ = ["SameTokenizerKL"]


class SameTokenizerKL(torch.nn.Module):
    """``KL(p_T || p_S)`` over one vocabulary, or another direction of it.

    Output layers padded to equal sizes are sharded alike, and each rank compares its own columns.  Padded differently
    over several ranks, the same token lies on different ranks; its probability is then exchanged.

    Args:
        student, teacher: layouts, of equal vocabulary size, over one group.
        direction: ``"forward"``, ``"reverse"`` or ``"js"``.

    Raises:
        InputError: the sizes differ, or no such direction.
    """

    metric_names: tuple[str, ...] = ()

    def __init__(self, student: VocabularyShard, teacher: VocabularyShard, direction: str = "forward") -> None:
        super().__init__()
        if student.size != teacher.size:
            raise InputError(
                f"loss same_tokenizer for a student of {student.size} and a teacher of {teacher.size} tokens",
                "one vocabulary",
                "use loss=auto, or one of the losses across tokenizers",
            )
        self.direction = direction_named(direction)
        self.group, self.student = student.group, student
        self.exchange = None
        if student.rows != teacher.rows and group_size(student.group) > 1:
            every = np.arange(student.size)
            self.exchange = CommonSet(every, every, student.size, student.size).exchange(student, teacher)

    def value(self, p_student: Tensor, p_teacher: Tensor) -> Tensor:
        """``[1, k]``: the divergence.

        Args:
            p_student: ``[k, V/tp]``, this rank's columns.
            p_teacher: ``[k, V/tp]`` likewise, of another width where the padding differs.

        Collectives: one all-reduce of k values; with different padding over several ranks those of ``project``.
        """
        p, q = self._beside(p_student, p_teacher)
        return all_reduce_sum(self.direction.term(p, q).sum(1), self.group).unsqueeze(0)

    def student_gradient(self, p_student: Tensor, p_teacher: Tensor) -> Tensor:
        """``-p_T / p_S`` for the forward direction, ``[k, V/tp]``, 0 in padding.

        Collectives: none; with different padding over several ranks those of ``project`` and ``pull``.
        """
        p, q = self._beside(p_student, p_teacher)
        g = self.direction.slope(p, q)
        if self.exchange is not None:
            return self.exchange.pull(torch.where(self.exchange.reached, g, 0), g.new_zeros(g.shape[0]))
        return torch.nn.functional.pad(g, (0, p_student.shape[1] - g.shape[1]))

    def _beside(self, p_student: Tensor, p_teacher: Tensor) -> tuple[Tensor, Tensor]:
        """Both sides' probabilities of the same tokens, ``[k, m]``."""
        if self.exchange is not None:
            return p_teacher, self.exchange.project(p_student)[0]
        valid = self.student.valid_rows
        return p_teacher[:, :valid], p_student[:, :valid]

"""The plain KL between two models of one tokenizer: the drop-in case, without W."""

import torch
from torch import Tensor

from nemo_xtoken.errors import InputError
from nemo_xtoken.kernels.choice import active
from nemo_xtoken.losses.base import ChunkDivergence, Comparison
from nemo_xtoken.losses.directions import direction_named
from nemo_xtoken.losses.top_k import TopKClasses
from nemo_xtoken.parallel.ownership import Ownership
from nemo_xtoken.parallel.softmax import all_reduce_sum
from nemo_xtoken.parallel.vocabulary_shard import VocabularyShard

__all__ = ["SameTokenizerKL"]


class SameTokenizerKL(ChunkDivergence):
    """``KL(p_T || p_S)`` over one vocabulary, or another direction of it.

    The teacher's output layer takes the student's layout, so that each rank compares its own columns.

    Args:
        student: layout of its output layer.
        teacher_size: tokens of the teacher.
        direction: ``"forward"``, ``"reverse"`` or ``"js"``.
        top_k: tokens that stay classes of their own, per chunk those that the teacher finds most probable (of equal
            ones the smaller id); all others are one class, REST, on either side.  None: all.

    Raises:
        InputError: the sizes differ, or no such direction.
    """

    metric_names: tuple[str, ...] = ()

    def __init__(
        self, student: VocabularyShard, teacher_size: int, direction: str = "forward", top_k: int | None = None
    ) -> None:
        super().__init__()
        if student.size != teacher_size:
            raise InputError(
                f"loss same_tokenizer for a student of {student.size} and a teacher of {teacher_size} tokens",
                "one vocabulary",
                "use loss=auto, or one of the losses across tokenizers",
            )
        self.direction = direction_named(direction)
        self.group = student.group
        self.ownership = Ownership.in_order(student)
        self.classes = None
        if top_k is not None and top_k < teacher_size:
            tokens = torch.arange(student.rows) < student.valid_rows
            self.classes = TopKClasses(top_k, self.ownership, tokens)

    def start(self, p_student: Tensor, entry_weights: Tensor | None = None) -> Tensor:
        """Nothing has to travel."""
        return p_student

    def finish(self, started: Tensor, p_teacher: Tensor, coefficients: Tensor | None) -> Comparison:
        """The divergence and its derivative, ``-p_T / p_S`` for the forward direction, 0 in padding.

        Args:
            p_teacher: ``[k, V/tp]``, this rank's columns; overwritten.

        Collectives: one all-reduce of k values (3k with a top-k, and those of ``top_k_mask``).
        """
        kernels, q = active(), started.clone()
        if self.classes is None:
            total, _, slope = kernels.compare(self.direction, p_teacher, q, None, coefficients)
            return Comparison(all_reduce_sum(total, self.group).unsqueeze(0), slope)
        kept, tails = self.classes.fold(p_teacher, q)
        total, _, slope = kernels.compare(self.direction, p_teacher, q, None, coefficients)
        divergence, p_rest, q_rest = all_reduce_sum(torch.cat([total.unsqueeze(0), tails]), self.group)
        rest_term, rest_slope = self.direction.compare(p_rest, q_rest, coefficients)
        values = (divergence + rest_term).unsqueeze(0)
        if slope is None or rest_slope is None:
            return Comparison(values)
        return Comparison(values, torch.where(kept, slope, rest_slope.unsqueeze(1)))

"""The plain KL between two models of one tokenizer: the drop-in case, without W."""

from torch import Tensor

from nemo_xtoken.errors import InputError
from nemo_xtoken.losses.base import ChunkDivergence, Comparison
from nemo_xtoken.losses.directions import direction_named
from nemo_xtoken.parallel.layout import VocabularyShard
from nemo_xtoken.parallel.ownership import Ownership
from nemo_xtoken.parallel.softmax import all_reduce_sum

__all__ = ["SameTokenizerKL"]


class SameTokenizerKL(ChunkDivergence):
    """``KL(p_T || p_S)`` over one vocabulary, or another direction of it.

    The teacher's output layer takes the student's layout, so that each rank compares its own columns.

    Args:
        student: layout of its output layer.
        teacher_size: tokens of the teacher.
        direction: ``"forward"``, ``"reverse"`` or ``"js"``.

    Raises:
        InputError: the sizes differ, or no such direction.
    """

    metric_names: tuple[str, ...] = ()

    def __init__(self, student: VocabularyShard, teacher_size: int, direction: str = "forward") -> None:
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

    def start(self, p_student: Tensor, entry_weights: Tensor | None = None) -> Tensor:
        """Nothing has to travel."""
        return p_student

    def finish(self, started: Tensor, p_teacher: Tensor, coefficients: Tensor | None) -> Comparison:
        """The divergence and its derivative, ``-p_T / p_S`` for the forward direction, 0 in padding.

        Args:
            p_teacher: ``[k, V/tp]``, this rank's columns.

        Collectives: one all-reduce of k values.
        """
        wanted = None if coefficients is None else coefficients.unsqueeze(1)
        terms, slope = self.direction.compare(p_teacher, started.clone(), wanted)
        return Comparison(all_reduce_sum(terms.sum(1), self.group).unsqueeze(0), slope)

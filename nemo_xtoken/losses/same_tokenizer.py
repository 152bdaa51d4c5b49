"""The plain KL between two models of one tokenizer: the drop-in case, without W."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from nemo_xtoken.errors import InputError
from nemo_xtoken.kernels.reference import TORCH
from nemo_xtoken.kernels.tile_kernels import TileKernels
from nemo_xtoken.losses.base import ChunkDivergence, Comparison
from nemo_xtoken.losses.directions import direction_named
from nemo_xtoken.losses.pair import VocabularyPair
from nemo_xtoken.losses.top_k import TopKClasses
from nemo_xtoken.parallel.column_pairs import ColumnPairs
from nemo_xtoken.parallel.ownership import Ownership
from nemo_xtoken.parallel.softmax import all_reduce_sum
from nemo_xtoken.parallel.vocabulary_shard import VocabularyShard

__all__ = ["SameTokenizerKL"]


class SameTokenizerKL(ChunkDivergence):
    """``KL(p_T || p_S)`` over one vocabulary, or another direction of it.

    The teacher's output layer takes the student's layout, so that each rank compares its own columns.  Tokens that only
    the teacher has, such as one more for padding, are left out of its output layer; those that only the student has
    have probability 0 on its side.

    Args:
        student: layout of its output layer.
        teacher_size: tokens of the teacher; the ids that both have mean the same.
        direction: ``"forward"``, ``"reverse"`` or ``"js"``.
        top_k: tokens that stay classes of their own, per chunk those that the teacher finds most probable (of equal
            ones the smaller id); all others are one class, REST, on either side.  None: all.
        kernels: what goes over the tiles.

    Raises:
        InputError: no such direction, or one that is infinite where only the student has a token.
    """

    options: ClassVar[Mapping[str, Any]] = {"direction": "forward", "top_k": None}
    suits = frozenset({"one tokenizer"})

    def __init__(
        self,
        student: VocabularyShard,
        teacher_size: int,
        direction: str = "forward",
        top_k: int | None = None,
        kernels: TileKernels = TORCH,
    ) -> None:
        super().__init__()
        self.kernels = kernels
        self.direction = direction_named(direction)
        if student.size > teacher_size and direction == "reverse":
            raise InputError(
                f"direction=reverse for a student of {student.size} and a teacher of {teacher_size} tokens",
                "a teacher that can say all that the student can: the divergence is infinite otherwise",
                "use direction=forward or js",
            )
        self.group = student.group
        shared = dataclasses.replace(student, size=min(student.size, teacher_size))
        self.ownership = Ownership.in_order(shared, teacher_size)
        self.classes = None
        if top_k is not None and top_k < shared.size:
            tokens = torch.arange(student.rows) < shared.valid_rows
            self.classes = TopKClasses(top_k, self.ownership, tokens)
        self._pairs = None
        if kernels.pairs is not None and self.classes is None:
            self._pairs = ColumnPairs.of_equal(direction, kernels.pairs, student, self.ownership.shard)

    @classmethod
    def of(
        cls, pair: VocabularyPair, student: VocabularyShard, options: Mapping[str, Any], kernels: TileKernels
    ) -> "SameTokenizerKL":
        """Over the one vocabulary."""
        return cls(student, pair.teacher.size, **options, kernels=kernels)

    @classmethod
    def check(cls, pair: VocabularyPair, options: Mapping[str, Any]) -> None:
        """
        Raises:
            InputError: the tokens of the two tokenizers differ, or see the class.
        """
        if not pair.student.shares_ids(pair.teacher):
            raise InputError(
                f"loss same_tokenizer for the tokenizers {pair.student.name} and {pair.teacher.name}, whose tokens "
                "differ",
                "one tokenizer, but for special tokens behind the others such as one more for padding",
                "use loss=auto, or one of the losses across tokenizers",
            )
        cls(VocabularyShard(pair.student.size, pair.student.size), pair.teacher.size, **options)

    @classmethod
    def linear_in_teacher(cls, options: Mapping[str, Any]) -> bool:
        """Its gradient is ``-p_T / q`` by class, unless the direction or a top-k depends on the teacher otherwise."""
        return options["direction"] == "forward" and options["top_k"] is None

    def column_pairs(self) -> ColumnPairs | None:
        """The equal tokens; None with a top-k."""
        return self._pairs

    def start(self, p_student: Tensor, entry_weights: Tensor | None = None) -> Tensor:
        """Nothing has to travel."""
        return p_student

    def finish(self, started: Tensor, p_teacher: Tensor, coefficients: Tensor | None) -> Comparison:
        """The divergence and its derivative, ``-p_T / p_S`` for the forward direction, 0 in padding.

        Args:
            p_teacher: ``[k, V/tp]``, this rank's columns; overwritten.

        Collectives: one all-reduce of k values (3k with a top-k, and those of ``top_k_mask``).
        """
        kernels, q = self.kernels, started.clone()
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

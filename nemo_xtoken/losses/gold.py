"""GOLD: token by token where the vocabularies agree, sorted where they do not.

``sum_C p_T[t] (log p_T[t] - log p_S[s])`` over the strict common set C, with full-vocabulary softmaxes that are not
renormalised, plus the L1 distance of the probabilities outside C, sorted in descending order on each side.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from nemo_xtoken.kernels.pair_kernels import STUDENT_LARGEST, Beside, PairKernels, PairRows, TileLogits
from nemo_xtoken.kernels.reference import TORCH
from nemo_xtoken.kernels.tile_kernels import TileKernels
from nemo_xtoken.losses.base import ChunkDivergence, Comparison, LossForm
from nemo_xtoken.losses.options import DivergenceOptions
from nemo_xtoken.losses.pair import VocabularyPair
from nemo_xtoken.losses.partial_kl import check_partial_kl, make_partial_kl
from nemo_xtoken.losses.sorted_l1 import DEFAULT_CAP, SortedL1
from nemo_xtoken.losses.top_k import ComparesLargest
from nemo_xtoken.parallel.column_pairs import ColumnPairs
from nemo_xtoken.parallel.common_set import CommonSet
from nemo_xtoken.parallel.vocabulary_shard import VocabularyShard

__all__ = ["Gold"]


class Gold(ChunkDivergence, ComparesLargest):
    """The partial KL over C and the sorted L1 distance of the remainders.

    Args:
        common: C; ``CommonSet.strict`` for GOLD proper.
        student: layout of its output layer.
        partial_kl: ``"paper"``, the published form, which can be negative; ``"rest"``, closed by one class REST a side,
            which cannot.  (The sum is not negative in either: the sorted distance is at least the difference of the
            masses outside C, and the published partial KL at least its negative.)
        cap: values of a remainder that are compared one by one (see ``sorted_l1``).
        top_k: tokens of C that stay classes of their own (``ProjectedKL``); with ``"rest"`` only.
        kernels: what goes over the tiles.
    """

    options: ClassVar[Mapping[str, Any]] = {"partial_kl": "paper", "sorted_cap": DEFAULT_CAP, "top_k": None}
    suits = frozenset({"inside"})
    forms = tuple(LossForm(options=DivergenceOptions(partial_kl=form)) for form in ("paper", "rest"))
    metric_names: tuple[str, ...] = (
        "teacher_uncommon",
        "student_uncommon",
        "exchange_bytes",
        "partial_kl",
        "sorted_l1",
        "sorted_l1_missing",
    )
    #: How the remainders are compared.
    remainder_type: ClassVar[type[SortedL1]] = SortedL1

    def __init__(
        self,
        common: CommonSet,
        student: VocabularyShard,
        partial_kl: str = "paper",
        cap: int = DEFAULT_CAP,
        top_k: int | None = None,
        kernels: TileKernels = TORCH,
    ) -> None:
        super().__init__()
        exchange = common.exchange(student, kernels)
        self.common = make_partial_kl(partial_kl, exchange, top_k)
        self.ownership = exchange.ownership
        outside = common.student_outside, common.teacher_outside
        self.remainder = self.remainder_type(*outside, student, self.ownership, cap)
        self._pairs = self.common.column_pairs()
        if self._pairs is not None:
            self._pairs.kinds[self.remainder.student.columns] |= STUDENT_LARGEST

    @classmethod
    def of(
        cls, pair: VocabularyPair, student: VocabularyShard, options: Mapping[str, Any], kernels: TileKernels
    ) -> "Gold":
        """Over the strict common set."""
        return cls(pair.strict, student, options["partial_kl"], options["sorted_cap"], options["top_k"], kernels)

    @classmethod
    def check(cls, pair: VocabularyPair, options: Mapping[str, Any]) -> None:
        """
        Raises:
            InputError: a top-k of the form without REST.
        """
        check_partial_kl(options["partial_kl"], options["top_k"])

    @classmethod
    def common_sets(cls, pair: VocabularyPair) -> tuple[CommonSet, ...]:
        """C."""
        return (pair.strict,)

    def column_pairs(self) -> ColumnPairs | None:
        """The pairs of C; None with a top-k."""
        return self._pairs

    def compare_largest(
        self,
        kernels: PairKernels,
        sides: tuple[TileLogits, TileLogits],
        rows: tuple[PairRows, PairRows],
        temperature: float,
    ) -> Beside:
        """The distance of the remainders, which are REST's columns; metrics: the last three."""
        return self.remainder.compare_largest(kernels, sides, rows, temperature)._replace(metrics=3)

    def start(self, p_student: Tensor, entry_weights: Tensor | None = None) -> tuple[Any, Any]:
        """Begins both parts."""
        return self.common.start(p_student, entry_weights), self.remainder.start(p_student)

    def finish(self, started: tuple[Any, Any], p_teacher: Tensor, coefficients: Tensor | None) -> Comparison:
        """The loss, then ``metric_names``: masses outside C, bytes sent, the loss's two parts, and what the cap hides.

        The gradient is the sum of the parts'; one is 0 where the other is not, except for REST.  Collectives: those of
        the two parts.
        """
        remainder = self.remainder.finish(started[1], p_teacher, coefficients)  # the other may overwrite p_teacher
        common = self.common.finish(started[0], p_teacher, coefficients)
        (partial_kl, *masses), (distance, missing) = common.values, remainder.values
        values = torch.stack([partial_kl + distance, *masses, partial_kl, distance, missing])
        if common.gradient is None or remainder.gradient is None:
            return Comparison(values)
        return Comparison(values, common.gradient.add_(remainder.gradient))

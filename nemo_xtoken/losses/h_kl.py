"""H-KL: GOLD with the common set widened by W (X-Token, arXiv 2605.21699)."""

from collections.abc import Mapping
from typing import Any, ClassVar

from nemo_xtoken.kernels.reference import TORCH
from nemo_xtoken.kernels.tile_kernels import TileKernels
from nemo_xtoken.losses.base import LossForm
from nemo_xtoken.losses.gold import Gold
from nemo_xtoken.losses.options import DivergenceOptions
from nemo_xtoken.losses.pair import VocabularyPair
from nemo_xtoken.losses.sorted_l1 import DEFAULT_CAP
from nemo_xtoken.parallel.common_set import CommonSet
from nemo_xtoken.parallel.vocabulary_shard import VocabularyShard
from nemo_xtoken.projection.matrix import ProjectionMatrix

__all__ = ["HybridKL"]


class HybridKL(Gold):
    """A student token without an equal is compared with the teacher token that W gives most of its weight.

    Args:
        strict: the pairs that keep their place, ``CommonSet.strict``.
        matrix: W, by which they are widened (``CommonSet.widened``).
        student: layout of its output layer.
        partial_kl: ``"rest"`` closes C with one class REST a side, so that the KL is never negative; ``"paper"`` is the
            published form, which can be where the student has more mass on C than the teacher.
        cap: values of a remainder that are compared one by one (see ``sorted_l1``).
        top_k: tokens of C that stay classes of their own (``ProjectedKL``); with ``"rest"`` only.
        kernels: what goes over the tiles.
    """

    options: ClassVar[Mapping[str, Any]] = {"partial_kl": "rest", "sorted_cap": DEFAULT_CAP, "top_k": None}
    needs_matrix = True
    forms = tuple(LossForm("paper", options=DivergenceOptions(partial_kl=form)) for form in ("rest", "paper"))

    def __init__(
        self,
        strict: CommonSet,
        matrix: ProjectionMatrix,
        student: VocabularyShard,
        partial_kl: str = "rest",
        cap: int = DEFAULT_CAP,
        top_k: int | None = None,
        kernels: TileKernels = TORCH,
    ) -> None:
        super().__init__(strict.widened(matrix), student, partial_kl, cap, top_k, kernels)

    @classmethod
    def of(
        cls, pair: VocabularyPair, student: VocabularyShard, options: Mapping[str, Any], kernels: TileKernels
    ) -> "HybridKL":
        """Over the strict common set and the pair's W."""
        values = options["partial_kl"], options["sorted_cap"], options["top_k"]
        return cls(pair.strict, pair.matrix, student, *values, kernels)

    @classmethod
    def common_sets(cls, pair: VocabularyPair) -> tuple[CommonSet, ...]:
        """C, widened."""
        return (pair.strict.widened(pair.matrix),)

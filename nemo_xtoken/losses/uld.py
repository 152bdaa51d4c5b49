"""ULD: the distance of the two sorted distributions over whole vocabularies (arXiv 2402.12030), a baseline."""

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from nemo_xtoken.kernels.tile_kernels import TileKernels
from nemo_xtoken.losses.pair import VocabularyPair
from nemo_xtoken.losses.sorted_l1 import DEFAULT_CAP, SortedL1
from nemo_xtoken.parallel.ownership import Ownership
from nemo_xtoken.parallel.vocabulary_shard import VocabularyShard

__all__ = ["UniversalLogitDistance"]


class UniversalLogitDistance(SortedL1):
    """Every token takes part; which token has a probability does not matter.

    Args:
        student: layout of its output layer.
        teacher_size: tokens of the teacher, which is laid out evenly.
        cap: values of a side that are compared one by one (see ``sorted_l1``).
    """

    options: ClassVar[Mapping[str, Any]] = {"sorted_cap": DEFAULT_CAP}

    def __init__(self, student: VocabularyShard, teacher_size: int, cap: int = DEFAULT_CAP) -> None:
        every = np.ones(student.size, dtype=bool), np.ones(teacher_size, dtype=bool)
        super().__init__(*every, student, Ownership.even(teacher_size, student.group), cap)

    @classmethod
    def of(
        cls, pair: VocabularyPair, student: VocabularyShard, options: Mapping[str, Any], kernels: TileKernels
    ) -> "UniversalLogitDistance":
        """Over the whole vocabularies."""
        return cls(student, pair.teacher.size, options["sorted_cap"])

"""ULD: the distance of the two sorted distributions over whole vocabularies (arXiv 2402.12030), a baseline."""

import numpy as np

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

    def __init__(self, student: VocabularyShard, teacher_size: int, cap: int = DEFAULT_CAP) -> None:
        every = np.ones(student.size, dtype=bool), np.ones(teacher_size, dtype=bool)
        super().__init__(*every, student, Ownership.even(teacher_size, student.group), cap)

"""ULD: the L1 distance of the two sorted distributions over the whole vocabularies (arXiv 2402.12030)."""

import numpy as np

from nemo_xtoken.losses.sorted_l1 import DEFAULT_CAP, SortedL1
from nemo_xtoken.parallel.layout import VocabularyShard

__all__ = ["UniversalLogitDistance"]


class UniversalLogitDistance(SortedL1):
    """``sum_i |sorted(p_S)_i - sorted(p_T)_i|``, the shorter padded with zeros; needs no W and no common tokens.

    Args:
        student, teacher: layouts, over one group.
        cap: values that are compared one by one (see ``sorted_l1``).
    """

    def __init__(self, student: VocabularyShard, teacher: VocabularyShard, cap: int = DEFAULT_CAP) -> None:
        every_s, every_t = np.ones(student.size, dtype=bool), np.ones(teacher.size, dtype=bool)
        super().__init__(every_s, every_t, student, teacher, cap)

"""GOLD: token by token where the vocabularies agree, sorted where they do not.

``sum_C p_T[t] (log p_T[t] - log p_S[s])`` over the strict common set C, with full-vocabulary softmaxes that are not
renormalised, plus the L1 distance of the probabilities outside C, sorted in descending order on each side.
"""

import torch
from torch import Tensor

from nemo_xtoken.losses.common import CommonSet
from nemo_xtoken.losses.partial_kl import make_partial_kl
from nemo_xtoken.losses.sorted_l1 import DEFAULT_CAP, SortedL1
from nemo_xtoken.parallel.layout import VocabularyShard

__all__ = ["Gold"]


class Gold(torch.nn.Module):
    """The partial KL over C and the sorted L1 distance of the remainders.

    Args:
        common: C; ``CommonSet.strict`` for GOLD proper.
        student, teacher: layouts, over one group.
        partial_kl: ``"paper"``, the published form, which can be negative; ``"rest"``, closed by one class REST a side,
            which cannot.  (The sum is not negative in either: the sorted distance is at least the difference of the
            masses outside C, and the published partial KL at least its negative.)
        cap: values of a remainder that are compared one by one (see ``sorted_l1``).
    """

    metric_names: tuple[str, ...] = (
        "teacher_uncommon",
        "student_uncommon",
        "partial_kl",
        "sorted_l1",
        "sorted_l1_missing",
    )

    def __init__(
        self,
        common: CommonSet,
        student: VocabularyShard,
        teacher: VocabularyShard,
        partial_kl: str = "paper",
        cap: int = DEFAULT_CAP,
    ) -> None:
        super().__init__()
        self.common = make_partial_kl(partial_kl, common.exchange(student, teacher))
        self.remainder = SortedL1(common.student_outside, common.teacher_outside, student, teacher, cap)

    def value(self, p_student: Tensor, p_teacher: Tensor) -> Tensor:
        """``[6, k]``: the loss, then ``metric_names``: masses outside C, the loss's two parts, and what the cap hides.

        Args:
            p_student: ``[k, V_S/tp]``, this rank's columns.
            p_teacher: ``[k, V_T/tp]``, this rank's columns.

        Collectives: those of the two parts.
        """
        partial_kl, *masses = self.common.value(p_student, p_teacher)
        distance, missing = self.remainder.value(p_student, p_teacher)
        return torch.stack([partial_kl + distance, *masses, partial_kl, distance, missing])

    def student_gradient(self, p_student: Tensor, p_teacher: Tensor) -> Tensor:
        """The sum of the parts' derivatives, ``[k, V_S/tp]``; one is 0 where the other is not, but for REST."""
        g = self.common.student_gradient(p_student, p_teacher)
        return g.add_(self.remainder.student_gradient(p_student, p_teacher))

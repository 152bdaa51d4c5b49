"""The cases as a micro-batch of free logits, the way the losses of a training step take it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from nemo_xtoken.certify.agreement import Agreement
from nemo_xtoken.certify.cases import Case
from nemo_xtoken.certify.reduced import Pair, reduce_pair
from nemo_xtoken.losses.base import ChunkDivergence, ModelOutput
from nemo_xtoken.parallel.head import FreeLogits
from nemo_xtoken.parallel.vocabulary_shard import VocabularyShard

__all__ = ["LEAK", "Problem"]

#: The mass that each side keeps for the tokens that it never says, evenly, so that every logit is a number, as those of
#: a model are.  Except for this the two agree.
LEAK = 1e-9


@dataclass(frozen=True)
class Problem:
    """K cases one after the other in one sample; each is a chunk, and every position belongs to one.

    Attributes:
        cases: the cases.
        pair: the vocabularies that the logits are over.
        student, teacher: float64 ``[T, V]``, log-probabilities of each side where both agree.
        student_labels, teacher_labels: int64 ``[1, T]``.
        chunks: int64 ``[K, 5]``, as `TeacherSignal` has them.
    """

    cases: Sequence[Case]
    pair: Pair
    student: Tensor
    teacher: Tensor
    student_labels: Tensor
    teacher_labels: Tensor
    chunks: Tensor

    @classmethod
    def reduced(cls, cases: Sequence[Case], pair: Pair, workers: int = 0) -> "Problem":
        """Over the tokens that have mass at some position of some case, and those they are bound to.

        Args:
            workers: processes that there may be to find them.
        """
        has_mass = [{token for case in cases for p in case.agreement.at_right(side) for token in p} for side in (0, 1)]
        chunks = [case.agreement.right for case in cases]
        return cls.over(cases, reduce_pair(pair, has_mass[0], has_mass[1], chunks, workers))

    @classmethod
    def over(cls, cases: Sequence[Case], pair: Pair) -> "Problem":
        """Over the tokens of ``pair``, which are all that have mass, and others."""
        agreements = [case.agreement for case in cases]
        student, student_labels = _side(agreements, 0, pair.ids[0])
        teacher, teacher_labels = _side(agreements, 1, pair.ids[1])
        lengths = np.array([[len(path) for path in a.right] for a in agreements])
        first = lengths.cumsum(axis=0) - lengths
        columns = [np.zeros_like(first[:, 0]), first[:, 0], lengths[:, 0], first[:, 1], lengths[:, 1]]
        chunks = torch.from_numpy(np.stack(columns, axis=1))
        return cls(cases, pair, student, teacher, student_labels, teacher_labels, chunks)

    @property
    def student_shard(self) -> VocabularyShard:
        """The whole vocabulary on this process."""
        return VocabularyShard(self.pair.student.size, self.pair.student.size)

    @property
    def first_rows(self) -> Tensor:
        """``[K]``: the student's first row of each case."""
        return self.chunks[:, 1]

    def teacher_output(self, divergence: ChunkDivergence) -> ModelOutput:
        """The teacher's logits in the order that a divergence wants."""
        order = divergence.ownership
        logits = self.teacher.new_full((len(self.teacher), order.shard.padded), -torch.inf)
        logits[:, : order.shard.size] = self.teacher[:, torch.from_numpy(order.order)]
        return ModelOutput(logits, FreeLogits(order.shard, torch.from_numpy(order.owned)))

    def by_case(self, student_rows: Tensor) -> Tensor:
        """``[K]``: the sums over each case's rows of something ``[T]``."""
        return student_rows.new_zeros(len(self.chunks)).index_add_(0, self._case_of_row, student_rows)

    @cached_property
    def _case_of_row(self) -> Tensor:
        return torch.arange(len(self.chunks)).repeat_interleave(self.chunks[:, 2])

    def probability(self, student: Tensor) -> Tensor:
        """``[K]``: that a student with these logits writes the right continuation."""
        at_label = student.gather(1, self.student_labels.view(-1, 1)).squeeze(1)
        return self.by_case(at_label - student.logsumexp(dim=1)).exp()


def _side(agreements: Sequence[Agreement], side: int, ids: np.ndarray) -> tuple[Tensor, Tensor]:
    """Log-probabilities ``[T, V]`` and labels ``[1, T]`` of one side, in the numbers of the pair's tokens."""
    labels = np.searchsorted(ids, [token for a in agreements for token in a.right[side]])
    said = [p for a in agreements for p in a.at_right(side)]
    logits = torch.empty((len(said), len(ids)), dtype=torch.float64)
    for row, p in zip(logits, said, strict=True):
        row[:] = math.log(LEAK / max(len(ids) - len(p), 1))
        at = torch.from_numpy(np.searchsorted(ids, list(p)))
        row[at] = torch.tensor(list(p.values()), dtype=torch.float64).log() + math.log1p(-LEAK)
    return logits, torch.from_numpy(labels).unsqueeze(0)

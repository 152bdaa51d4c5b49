"""ALM: the likelihood of a chunk on both sides, as two outcomes: it is said, or it is not (arXiv 2503.20083).

``KL(Bernoulli(m_T^(1/tau)) || Bernoulli(m_S^(1/tau)))`` with m the probability of all tokens of a chunk, by the chain
rule, on either side: the binarised divergence of Approximate Likelihood Matching.  What else could be said is not seen.

A likelihood is biased where the text could go on in the same token: the side that has said ``2`` may still say ``20``.
So chunks are taken together until one ends where both sides' next token begins with a blank, a line break, or is a
special one, with which the tokens before it hardly ever merge.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from nemo_xtoken.kernels.tile_kernels import TileKernels
from nemo_xtoken.losses.base import LaterTerms, LossForm
from nemo_xtoken.losses.chunks import ScoredRows
from nemo_xtoken.losses.directions import bernoulli_kl
from nemo_xtoken.losses.options import DivergenceOptions
from nemo_xtoken.losses.pair import VocabularyPair
from nemo_xtoken.losses.slots import ByChunk
from nemo_xtoken.parallel.ownership import Ownership
from nemo_xtoken.parallel.softmax import all_reduce_sum, pick_local
from nemo_xtoken.parallel.vocabulary_shard import VocabularyShard
from nemo_xtoken.vocab.vocabulary import Vocabulary

__all__ = ["ChunkLikelihood", "UnbiasedEnds"]

#: What a token begins with that hardly any token before it merges with.
OPENERS = b" \t\n\r"
#: The power of the paper's experiments.
DEFAULT_POWER = 100.0


class UnbiasedEnds(torch.nn.Module):
    """Takes chunks that follow each other together, up to where both sides' next token opens something new.

    Args:
        student, teacher: the vocabularies.
    """

    student: Tensor
    teacher: Tensor

    def __init__(self, student: Vocabulary, teacher: Vocabulary) -> None:
        super().__init__()
        for name, vocabulary in (("student", student), ("teacher", teacher)):
            opens = np.array([not data or data[0] in OPENERS for data in vocabulary.token_bytes])
            self.register_buffer(name, torch.from_numpy(opens), persistent=False)

    def forward(self, student_labels: Tensor, teacher_labels: Tensor, chunks: Tensor) -> Tensor:
        """int64 ``[k, 5]``; arguments as in :class:`TeacherSignal`."""
        sample, a, n, c, m = chunks.unbind(1)
        opens = self.student[student_labels[sample, a].clamp_min(0)]
        opens = opens & self.teacher[teacher_labels[sample, c].clamp_min(0)]
        follows = (sample[1:] == sample[:-1]) & (a[1:] == (a + n)[:-1]) & (c[1:] == (c + m)[:-1])
        starts = torch.nn.functional.pad(~follows | opens[1:], (min(len(chunks), 1), 0), value=True)
        merged = chunks[starts].clone()
        merged[:, [2, 4]] = 0
        return merged.index_add(0, starts.long().cumsum(0) - 1, chunks * chunks.new_tensor([0, 0, 1, 0, 1]))


class ChunkLikelihood(ByChunk):
    """The Bernoulli KL of chunk likelihoods; nothing of the vocabularies is compared.

    Args:
        student: layout of its output layer.
        teacher_size: tokens of the teacher's vocabulary.
        power: tau; 1 leaves likelihoods as they are.  The larger it is, the less a rare chunk counts as not said.
    """

    options: ClassVar[Mapping[str, Any]] = {"power": DEFAULT_POWER}
    forms = tuple(LossForm(options=DivergenceOptions(power=power)) for power in (None, 1.0))
    metric_names: tuple[str, ...] = ("teacher_likelihood",)
    owned: Tensor

    def __init__(self, student: VocabularyShard, teacher_size: int, power: float = DEFAULT_POWER) -> None:
        super().__init__()
        self.student, self.ownership = student, Ownership.even(teacher_size, student.group)
        self.power = power
        self.register_buffer("owned", torch.from_numpy(self.ownership.owned), persistent=False)

    @classmethod
    def of(
        cls, pair: VocabularyPair, student: VocabularyShard, options: Mapping[str, Any], kernels: TileKernels
    ) -> "ChunkLikelihood":
        """Needs the sizes alone."""
        return cls(student, pair.teacher.size, options["power"])

    @classmethod
    def selection(cls, pair: VocabularyPair) -> UnbiasedEnds:
        """The chunks, taken together where one alone would end inside of what the text goes on with."""
        return UnbiasedEnds(pair.student, pair.teacher)

    @classmethod
    def linear_in_teacher(cls, options: Mapping[str, Any]) -> bool:
        """It looks at the observed tokens alone."""
        return True

    def later_terms(
        self,
        p_student: Tensor,
        student: ScoredRows,
        p_teacher: Tensor,
        teacher: ScoredRows,
        coefficients: Tensor | None,
    ) -> LaterTerms:
        """The divergence, and the teacher's likelihood; collectives: one all-reduce of a number for each row."""
        rows = torch.nonzero(student.chunk >= 0).squeeze(1)
        labels, p = student.labels[rows], p_student.index_select(0, rows)
        picked = pick_local(p, labels, self.student)
        theirs = pick_local(p_teacher, self.owned[teacher.labels], self.ownership.shard)
        both = all_reduce_sum(torch.cat([picked, theirs]), self.student.group)
        at_student, at_teacher = both.split([rows.numel(), theirs.numel()])
        k = student.first.numel()
        log_s = at_student.new_zeros(k).index_add(0, student.chunk[rows], _log(at_student))
        log_t = at_teacher.new_zeros(k).index_add(0, teacher.chunk, _log(at_teacher))
        values, slope = bernoulli_kl(log_t / self.power, log_s / self.power)
        metrics = log_t.exp().unsqueeze(0)
        if coefficients is None:
            nothing = values[:0]
            return LaterTerms(values, (rows[:0], rows[:0], nothing), (rows[:0], nothing), metrics)
        by_row = (coefficients * slope / self.power)[student.chunk[rows]]
        column = labels - self.student.start
        mine = torch.nonzero((column >= 0) & (column < self.student.rows)).squeeze(1)
        return LaterTerms(values, (rows[mine], column[mine], by_row[mine]), (rows, by_row), metrics)


def _log(p: Tensor) -> Tensor:
    return p.clamp_min(torch.finfo(p.dtype).tiny).log()

"""Prefix-exact P-KL: the KL divergence of what a student's and a teacher's tokens have in common, chunk by chunk.

P-KL compares the teacher's next token with the student's next token put into the teacher's vocabulary.  That is exact
where the teacher's tokens are the shorter ones; where they are the longer ones no row of W can say what follows.  Here
both sides are put into the classes of :mod:`nemo_xtoken.projection.prefixes`, on which two models that agree on strings
agree whichever has the longer tokens, and inside a class the pieces of the text tell the tokens apart
(:mod:`nemo_xtoken.losses.spelling`).  Nothing is averaged over a chunk, decayed or cut off; a student that says what
the teacher says has the loss 0 and the gradient 0.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from nemo_xtoken.errors import InputError
from nemo_xtoken.kernels.reference import TORCH
from nemo_xtoken.kernels.tile_kernels import TileKernels
from nemo_xtoken.losses.base import ChunkDivergence, Comparison, LaterTerms
from nemo_xtoken.losses.chunks import ScoredRows
from nemo_xtoken.losses.directions import DIRECTIONS
from nemo_xtoken.losses.pair import VocabularyPair
from nemo_xtoken.losses.spelling import Rows, SpelledClasses, compare_spellings
from nemo_xtoken.parallel.exchange import Projection, VocabularyExchange
from nemo_xtoken.parallel.ownership import Ownership
from nemo_xtoken.parallel.softmax import all_reduce_sum
from nemo_xtoken.parallel.vocabulary_shard import VocabularyShard
from nemo_xtoken.projection.matrix import ProjectionMatrix
from nemo_xtoken.projection.prefixes import PrefixClasses, SpelledTokens

__all__ = ["PrefixKL", "SameClass"]


class SameClass(torch.nn.Module):
    """Tells the chunks whose first tokens are of one class.

    Others, a few in a hundred at most, are where one side has cut a word as it does not cut it by itself.

    Args:
        classes: of the pair of tokenizers.
    """

    student: Tensor
    teacher: Tensor

    def __init__(self, classes: PrefixClasses) -> None:
        super().__init__()
        for side in ("student", "teacher"):
            found = torch.from_numpy(getattr(classes, side).classes)
            self.register_buffer(side, found, persistent=False)

    def forward(self, student_labels: Tensor, teacher_labels: Tensor, chunks: Tensor) -> Tensor:
        """bool ``[K]``; arguments as in :class:`TeacherSignal`."""
        sample, at_student, _, at_teacher, _ = chunks.unbind(1)
        labels = student_labels[sample, at_student], teacher_labels[sample, at_teacher]
        return self.student[labels[0].clamp_min(0)] == self.teacher[labels[1].clamp_min(0)]


class PrefixKL(ChunkDivergence):
    """``KL(A p_T || B p_S)`` over the classes at a chunk's first position, and the divergences of its pieces.

    A and B add the probabilities of a class up.  A class lies at the column of its pair's teacher token, which is
    co-sharded with the student's; its other teacher tokens lie on the same rank where there is room.  The derivative by
    ``p_S`` is ``-B^T (A p_T / B p_S)``.

    Tokens of no class are one class REST on either side.  Where the student has none the teacher is conditioned on the
    classes, weighted by their mass, as in P-KL.

    Args:
        classes: of the pair of tokenizers.
        student: layout of its output layer.
        kernels: what goes over the tiles.

    Raises:
        InputError: classes of other vocabularies.
    """

    metric_names: tuple[str, ...] = ("teacher_rest", "student_rest", "exchange_bytes", "spelled")
    merges = ("first", "first")

    def __init__(self, classes: PrefixClasses, student: VocabularyShard, kernels: TileKernels = TORCH) -> None:
        super().__init__()
        size = len(classes.teacher.classes)
        if len(classes.student.classes) != student.size:
            raise InputError(
                f"prefix classes of {len(classes.student.classes)} student tokens, a model of {student.size}",
                "equal sizes",
                "give the model the tokenizer it was trained with",
            )
        into = _matrix(classes.student, size)
        self.ownership = Ownership.co_sharded(into, student, beside=classes.teacher.classes)
        order, shard = self.ownership.order, self.ownership.shard
        self.exchange = VocabularyExchange(into, student, self.ownership, kernels)
        owned = SpelledTokens(classes.teacher.classes[order], classes.teacher.pieces[order])
        self.gathering = VocabularyExchange(_matrix(owned, size), shard, self.ownership, kernels)
        own = torch.arange(student.size).numpy()
        self.spelled = torch.nn.ModuleList(
            [
                SpelledClasses(classes.student, size, size, own, student.start, student.rows),
                SpelledClasses(classes.teacher, student.size, size, self.ownership.owned, shard.start, shard.rows),
            ]
        )

    @classmethod
    def of(
        cls, pair: VocabularyPair, student: VocabularyShard, options: Mapping[str, Any], kernels: TileKernels
    ) -> "PrefixKL":
        """Over the pair's prefix classes."""
        return cls(pair.classes, student, kernels)

    @classmethod
    def selection(cls, pair: VocabularyPair) -> SameClass:
        """The chunks whose first tokens are of one class."""
        return SameClass(pair.classes)

    def start(self, p_student: Tensor, entry_weights: Tensor | None = None) -> Projection:
        """The student's classes on their way; see ``VocabularyExchange.start``."""
        return self.exchange.start(p_student)

    def later_terms(
        self,
        p_student: Tensor,
        student: ScoredRows,
        p_teacher: Tensor,
        teacher: ScoredRows,
        coefficients: Tensor | None,
    ) -> LaterTerms:
        """The divergences of the pieces; collectives: see ``compare_spellings``."""
        tables = self.spelled[0], self.spelled[1]
        sides = Rows(p_student, student), Rows(p_teacher, teacher)
        return compare_spellings(*sides, tables, coefficients, self.exchange.group)  # type: ignore[arg-type]

    def finish(self, started: Projection, p_teacher: Tensor, coefficients: Tensor | None) -> Comparison:
        """The divergence over classes, the teacher's and the student's mass in none, the bytes a rank sends.

        Args:
            p_teacher: ``[k, V_T/tp]``, this rank's columns.

        Collectives: those of ``VocabularyExchange.start`` for the teacher, one all-reduce of k values; with a gradient
        those of ``Projection.pull``.
        """
        gathered = self.gathering.start(p_teacher)
        q, rest = started.finish()
        p, p_rest = gathered.finish()
        forward = DIRECTIONS["forward"]
        total, _, slope = self.exchange.kernels.compare(forward, p, q, None, coefficients)
        divergence = all_reduce_sum(total, self.exchange.group)
        rest_slope = torch.zeros_like(rest)
        if self.exchange.has_rest:
            rest_term, found = forward.compare(p_rest, rest.clone(), coefficients)
            divergence = divergence + rest_term
            rest_slope = rest_slope if found is None else found
        else:
            inside = (1 - p_rest).clamp_min(0)
            divergence = divergence - torch.xlogy(inside, inside)
        sent = self.exchange.bytes_a_chunk(rest.itemsize) + self.gathering.bytes_a_chunk(rest.itemsize) / 2
        values = torch.stack([divergence, p_rest, rest, torch.full_like(rest, sent)])
        if slope is None:
            return Comparison(values)
        return Comparison(values, started.pull(slope, rest_slope)[0])


def _matrix(side: SpelledTokens, teacher_size: int) -> ProjectionMatrix:
    """The 0/1 matrix that puts each token into the column of its class."""
    ids = side.classes.reshape(-1, 1).astype("int32")
    return ProjectionMatrix(ids, (ids >= 0).astype("float32"), teacher_size, "", "")

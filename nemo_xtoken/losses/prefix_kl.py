"""Prefix-exact P-KL: the KL divergence of what a student's and a teacher's tokens have in common, chunk by chunk.

P-KL compares the teacher's next token with the student's next token put into the teacher's vocabulary.  That is exact
where the teacher's tokens are the shorter ones; where they are the longer ones no row of W can say what follows.  Here
both sides are put into the classes of :mod:`nemo_xtoken.projection.prefixes`, on which two models that agree on strings
agree whichever has the longer tokens, and inside a class the pieces of the text tell the tokens apart
(:mod:`nemo_xtoken.losses.spelling`).  Nothing is averaged over a chunk, decayed or cut off; a student that says what
the teacher says has the loss 0 and the gradient 0.

With ``boundary`` it has so at every boundary of a text as well: both sides are conditioned on the classes that are open
there (:mod:`nemo_xtoken.losses.boundaries`).
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from nemo_xtoken.errors import InputError
from nemo_xtoken.kernels.pair_kernels import TileLogits
from nemo_xtoken.kernels.reference import TORCH
from nemo_xtoken.kernels.tile_kernels import TileKernels, smallest
from nemo_xtoken.losses.base import ChunkDivergence, Comparison, LaterTerms
from nemo_xtoken.losses.boundaries import Boundaries, Following, unpacked
from nemo_xtoken.losses.chunk_leaves import LeafTable
from nemo_xtoken.losses.chunks import Picked, ScoredRows, device_of, known_rows
from nemo_xtoken.losses.directions import DIRECTIONS
from nemo_xtoken.losses.leaf_divergence import LeafDivergence, LeafPlan
from nemo_xtoken.losses.pair import VocabularyPair
from nemo_xtoken.parallel.column_pairs import ColumnPairs
from nemo_xtoken.parallel.exchange import Projection, VocabularyExchange
from nemo_xtoken.parallel.ownership import Ownership
from nemo_xtoken.parallel.softmax import all_reduce_sum
from nemo_xtoken.parallel.vocabulary_shard import VocabularyShard
from nemo_xtoken.projection.matrix import ProjectionMatrix
from nemo_xtoken.projection.prefixes import PrefixClasses
from nemo_xtoken.vocab.neighbours import Neighbours

__all__ = ["HaveClasses", "PrefixKL"]


class HaveClasses(torch.nn.Module):
    """Tells the chunks whose first tokens both have a class: all but those of bytes that one side cannot write.

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
        return (self.student[labels[0].clamp_min(0)] >= 0) & (self.teacher[labels[1].clamp_min(0)] >= 0)


class PrefixPlan(NamedTuple):
    """Of a tile.

    Attributes:
        leaves: of its chunks of several tokens; None: there is nothing to compare.
        closed: uint8 ``[k, ..]``, this rank's closed classes, see `Boundaries.closed`; None: all are open.
    """

    leaves: LeafPlan | None
    closed: Tensor | None = None


class PrefixKL(ChunkDivergence):
    """``KL(A p_T || B p_S)`` over the classes at a chunk's first position, and the divergences of its pieces.

    A and B add the probabilities of a class up.  A class lies at the column of its pair's teacher token, which is
    co-sharded with the student's; its other teacher tokens lie on the same rank where there is room.  The derivative
    with respect to ``p_S`` is ``-B^T (A p_T / B p_S)``.

    Tokens of no class are one class REST on either side.  Where the student has none the teacher is conditioned on the
    classes, weighted by their mass, as in P-KL.

    With ``following`` the sum is over the open classes O alone, of both sides given O and weighted by the teacher's
    mass of O: ``P_T(O) KL(A p_T | O || B p_S | O)``, which is never more than the whole.  Chunks whose own class is
    closed are not compared inside of it.

    Args:
        classes: of the pair of tokenizers.
        student: layout of its output layer.
        kernels: what goes over the tiles.
        following: what can follow the student's and the teacher's tokens; None: boundaries are not looked at.

    Raises:
        InputError: classes of other vocabularies.
    """

    metric_names: tuple[str, ...] = ("teacher_rest", "student_rest", "exchange_bytes", "by_leaves")
    merges = ("first", "first")
    every_position = True
    options: ClassVar[Mapping[str, Any]] = {"boundary": False}

    def __init__(
        self,
        classes: PrefixClasses,
        student: VocabularyShard,
        kernels: TileKernels = TORCH,
        following: tuple[Following, Following] | None = None,
    ) -> None:
        super().__init__()
        size = len(classes.teacher.classes)
        if len(classes.student.classes) != student.size:
            raise InputError(
                f"prefix classes of {len(classes.student.classes)} student tokens, a model of {student.size}",
                "equal sizes",
                "give the model the tokenizer it was trained with",
            )
        into = _matrix(classes.student.classes, size)
        self.ownership = Ownership.co_sharded(into, student, beside=classes.teacher.classes)
        self.exchange = VocabularyExchange(into, student, self.ownership, kernels)
        gathering = _matrix(classes.teacher.classes[self.ownership.order], size)
        self.gathering = VocabularyExchange(gathering, self.ownership.shard, self.ownership, kernels)
        rest = "compared" if self.exchange.has_rest else "conditioned"
        pairs = kernels.pairs if following is None else None  # its kernels compare all columns
        self._pairs = None if pairs is None else ColumnPairs("forward", rest, pairs, self.exchange, self.gathering)
        self.leaves = LeafDivergence(LeafTable(classes), student, self.ownership, pairs)
        self.boundaries = None if following is None else Boundaries(classes, following, self.ownership)
        if following is not None:
            *names, last = self.metric_names
            self.metric_names = (*names, "put_aside", last)

    @classmethod
    def of(
        cls, pair: VocabularyPair, student: VocabularyShard, options: Mapping[str, Any], kernels: TileKernels
    ) -> "PrefixKL":
        """Over the pair's prefix classes."""
        following = (Neighbours(pair.student), Neighbours(pair.teacher)) if options["boundary"] else None
        return cls(pair.classes, student, kernels, following)

    @classmethod
    def check(cls, pair: VocabularyPair, options: Mapping[str, Any]) -> None:
        """``boundary`` is for byte-pair encodings."""
        if options["boundary"]:
            for vocabulary in (pair.student, pair.teacher):
                vocabulary.byte_pairs()

    @classmethod
    def selection(cls, pair: VocabularyPair) -> HaveClasses:
        """The chunks whose first tokens both have a class."""
        return HaveClasses(pair.classes)

    def column_pairs(self) -> ColumnPairs | None:
        """The classes."""
        return self._pairs

    def start(self, p_student: Tensor, entry_weights: Tensor | None = None) -> Projection:
        """The student's classes on their way; see ``VocabularyExchange.start``."""
        return self.exchange.start(p_student)

    def plans(self, tiles: Sequence[tuple[ScoredRows, ScoredRows] | None]) -> Sequence[PrefixPlan | None]:
        """Of the leaves and the boundaries; one wait for the device."""
        known, device = known_rows(tiles), device_of(tiles)
        if self.boundaries is None:
            return [None if leaves is None else PrefixPlan(leaves) for leaves in self.leaves.plans(known, device)]
        closed = [None if tile is None else self.boundaries.closed(tile) for tile in known]
        plans = self.leaves.plans(known, device, [None if one is None else one.own for one in closed])
        return [
            None if one is None else PrefixPlan(leaves, torch.from_numpy(one.bits).to(device, non_blocking=True))
            for leaves, one in zip(plans, closed, strict=True)
        ]

    def planned_terms(self, plan: PrefixPlan, picked: tuple[Picked, Picked], coefficients: Tensor | None) -> LaterTerms:
        """The divergences of the leaves; collectives: see ``LeafDivergence``."""
        if plan.leaves is not None:
            later: LaterTerms = self.leaves(plan.leaves, picked, coefficients)
            return later
        assert plan.closed is not None
        none = plan.closed.new_zeros(0, dtype=torch.int64)
        nothing = picked[0](none, none)
        values = nothing.new_zeros(len(plan.closed))
        return LaterTerms(values, (none, none, nothing), (none, nothing), values.unsqueeze(0))

    def paired_terms(
        self, plan: PrefixPlan, sides: tuple[TileLogits, TileLogits], temperature: float, coefficients: Tensor | None
    ) -> LaterTerms:
        """The same by kernels."""
        assert plan.leaves is not None
        return self.leaves.by_logits(plan.leaves, sides, temperature, coefficients)

    def later_terms(
        self,
        p_student: Tensor,
        student: ScoredRows,
        p_teacher: Tensor,
        teacher: ScoredRows,
        coefficients: Tensor | None,
    ) -> LaterTerms:
        """Nothing: no chunk of the tile has leaves to compare."""
        values, none = p_student.new_zeros(student.first.numel()), student.first[:0]
        return LaterTerms(values, (none, none, values[:0]), (none, values[:0]), values.unsqueeze(0))

    def finish(self, started: Projection, p_teacher: Tensor, coefficients: Tensor | None) -> Comparison:
        """:meth:`planned_finish` without a plan."""
        return self.planned_finish(PrefixPlan(None), started, p_teacher, coefficients)

    def planned_finish(
        self, plan: PrefixPlan, started: Projection, p_teacher: Tensor, coefficients: Tensor | None
    ) -> Comparison:
        """The divergence over classes, the teacher's and the student's mass in none, the bytes a rank sends; with
        boundaries the teacher's mass that was put aside.

        Args:
            p_teacher: ``[k, V_T/tp]``, this rank's columns.

        Collectives: those of ``VocabularyExchange.start`` for the teacher, one all-reduce of k values, with
        boundaries one of 2k more; with a gradient those of ``Projection.pull``.
        """
        gathered = self.gathering.start(p_teacher)
        q, rest = started.finish()
        p, p_rest = gathered.finish()
        forward = DIRECTIONS["forward"]
        given = None if plan.closed is None else self._given(plan.closed, (p, p_rest), (q, rest))
        total, _, slope = self.exchange.kernels.compare(forward, p, q, None, coefficients)
        divergence = all_reduce_sum(total, self.exchange.group)
        rest_slope = torch.zeros_like(rest)
        scale = None
        if given is not None:
            divergence = divergence + given.term
            scale = None if coefficients is None else coefficients * given.slope
        if self.exchange.has_rest:
            rest_term, found = forward.compare(p_rest, rest.clone(), coefficients)
            divergence = divergence + rest_term
            rest_slope = rest_slope if found is None else found
        elif given is None:
            inside = (1 - p_rest).clamp_min(0)
            divergence = divergence - torch.xlogy(inside, inside)
        sent = self.exchange.bytes_a_chunk(rest.itemsize) + self.gathering.bytes_a_chunk(rest.itemsize) / 2
        metrics = [p_rest, rest, torch.full_like(rest, sent)]
        if self.boundaries is not None:
            metrics.append(torch.zeros_like(rest) if given is None else given.aside)
        values = torch.stack([divergence, *metrics])
        if slope is None:
            return Comparison(values)
        if given is not None and scale is not None:
            slope.addcmul_(given.open, scale.unsqueeze(1))
            if self.exchange.has_rest:
                rest_slope = rest_slope + scale
        return Comparison(values, started.pull(slope, rest_slope)[0])

    def _given(self, closed: Tensor, teacher: tuple[Tensor, Tensor], student: tuple[Tensor, Tensor]) -> "_Given":
        """What conditioning adds; takes the closed classes out of both sides.

        Args:
            closed: see `PrefixPlan`.
            teacher, student: ``[k, columns]``, the classes, overwritten; ``[k]``, REST.  Collective: an all-reduce of
                2k values.
        """
        (p, p_rest), (q, rest) = teacher, student
        open_ = unpacked(closed, p.shape[1]).to(p.dtype)
        masses = all_reduce_sum(torch.stack([p.mul_(open_).sum(1), q.mul_(open_).sum(1)]), self.exchange.group)
        aside = (1 - p_rest - masses[0]).clamp_min(0)
        if self.exchange.has_rest:
            masses = masses + torch.stack([p_rest, rest])
        p_all, q_all = masses
        ratio = p_all / q_all.clamp_min(smallest(q_all))
        return _Given(open_, -p_all * ratio.clamp_min(smallest(ratio)).log(), ratio, aside)


class _Given(NamedTuple):
    """
    Attributes:
        open: ``[k, columns]``, 1 for the classes that are compared.
        term: ``[k]``, what is added to the sum over these: ``-P_T(O) log(P_T(O) / P_S(O))``.
        slope: ``[k]``, its derivative with respect to each probability in O.
        aside: ``[k]``, the teacher's mass of the closed classes.
    """

    open: Tensor
    term: Tensor
    slope: Tensor
    aside: Tensor


def _matrix(classes: np.ndarray, teacher_size: int) -> ProjectionMatrix:
    """The 0/1 matrix that puts each token into the column of its class."""
    ids = classes.reshape(-1, 1).astype("int32")
    return ProjectionMatrix(ids, (ids >= 0).astype("float32"), teacher_size, "", "")

"""What the passes over a pair of tiles of logits do, where kernels have them: see ``TileKernels.pairs``.

A probability is never kept: each pass makes it anew from the logit and its row's normaliser.  The passes over the tiles
are three (statistics of the rows, the comparison, the gradient), whatever the divergence, as long as it is one of
`losses.directions` between columns that W brings together.  Beside columns, or in their place, the largest of a row are
compared; to find them is a pass that reads a side several times.  The way by probabilities, ``TileKernels``, is the
reference.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from nemo_xtoken.kernels.leaf_arrays import LeafArrays, PrefixArrays, SlotArrays, SupportArrays

__all__ = [
    "NO_COLUMNS",
    "STUDENT_ENTRIES",
    "STUDENT_LARGEST",
    "STUDENT_OWN",
    "STUDENT_REST",
    "STUDENT_TABLE",
    "TEACHER_OWN",
    "TEACHER_REST",
    "TEACHER_TABLE",
    "Beside",
    "ColumnPlan",
    "Largest",
    "LargestSlopes",
    "PairGradient",
    "PairKernels",
    "PairRows",
    "TileLogits",
]

#: Bits of ``ColumnPlan.kinds``: a side's own probability counts in the column of the same number; a value of its table
#: does; the column's own probability counts in REST; it counts in other columns, by the entries of its row of W; it may
#: be one of the largest.
STUDENT_OWN, TEACHER_OWN, STUDENT_TABLE, TEACHER_TABLE, STUDENT_REST, TEACHER_REST, STUDENT_ENTRIES, STUDENT_LARGEST = (
    1 << bit for bit in range(8)
)
#: ``ColumnPlan.direction`` where no columns are compared.
NO_COLUMNS = "none"


class TileLogits(NamedTuple):
    """One side of a tile at a temperature.

    Attributes:
        z: ``[n, V/tp]`` logits, this rank's columns, -inf in padding.
        norms: ``[n]``, the log-normaliser over all ranks.
        log_p: ``[n]``, log-probabilities of the labels.
        labels: int64 ``[n]``, over all ranks' columns; the first of this rank's is ``start``.
        valid: columns before the padding.
    """

    z: Tensor
    norms: Tensor
    log_p: Tensor
    labels: Tensor
    start: int
    valid: int


class PairRows(NamedTuple):
    """The chunks of a tile on one side: as in ``ScoredRows``; ``chunk`` is of the rows."""

    first: Tensor
    tokens: Tensor
    chunk: Tensor


@dataclass(frozen=True)
class ColumnPlan:
    """How two sides' columns are brought together, and how the gradient finds its way back.

    Attributes:
        direction: name of a direction of `losses.directions`, or `NO_COLUMNS`.
        rest: what lies in no column: ``compared``, a class of its own; ``conditioned``, the teacher is conditioned on
            the columns, weighted by their mass; ``open``, left out.
        kinds: uint8 ``[wider of both]``.
        slots_s, slots_t: int32 ``[V_T/tp]``, the place of a column in either side's table.
        row_slots: int32 ``[V_S/tp]``, the number of a student column with entries.
        row_starts: int64, where the entries of each begin; one more at the end.
        weights, by_row: of the entries, ``[E]``; the place in the table of slopes of each.
        entries: the most that a column has.
    """

    direction: str
    rest: str
    kinds: Tensor
    slots_s: Tensor
    slots_t: Tensor
    row_slots: Tensor
    row_starts: Tensor
    weights: Tensor
    by_row: Tensor
    entries: int


class Largest(NamedTuple):
    """The largest logits of the first rows of chunks, of those that take part, on this rank; of equal ones the smaller
    column goes first.

    Attributes:
        limits, last: ``[k]``, the least of them, and the last column of those that are equal to it, int32.
        starts: int32 ``[k, blocks]``, how many stand before each block of columns of the gradient's kernel.
        values, columns: ``[k, w]``, the logits and, int32, their columns, in order of the columns; -inf and -1 behind.
        left: ``[k]``, the probability of the others that take part.
    """

    limits: Tensor
    last: Tensor
    starts: Tensor
    values: Tensor
    columns: Tensor
    left: Tensor


class LargestSlopes(NamedTuple):
    """A derivative with respect to the probabilities of the student's largest.

    Attributes:
        of: these.
        slopes: ``[k, w]``, what is added to the slope that all have.
    """

    of: Largest
    slopes: Tensor


class Beside(NamedTuple):
    """What a divergence adds to its columns, or is in their place.

    Attributes:
        largest: for the gradient; None: nothing.
        sums: ``[4, k]``, as of :meth:`PairKernels.compare` over all ranks, where no columns are compared; None: 0.
        terms: ``[5, k]``: the sum of q times its slope; the slope of REST's columns; what the columns alone amount to,
            which :meth:`PairKernels.chunk_terms` fills in; what is added to that; and another metric.  None: 0.
        metrics: how many of the last of these rows are the last metrics of the divergence.
    """

    largest: LargestSlopes | None
    sums: Tensor | None = None
    terms: Tensor | None = None
    metrics: int = 0


class PairKernels(ABC):
    """One implementation of the passes."""

    @abstractmethod
    def statistics(self, z: Tensor, labels: Tensor, start: int, valid: int, temperature: float) -> Tensor:
        """``[3, n]``: the log-normaliser over this rank's columns, the logits of the labels by the temperature, 0
        elsewhere, and the difference of both: the labels' log-probabilities where there is one rank.

        Args:
            z: ``[n, V/tp]``; left as it is.
            labels: int64 ``[n]``; this rank's are from ``start`` on.
        """

    @abstractmethod
    def spread(
        self,
        side: TileLogits,
        first: Tensor,
        columns: Tensor,
        weights: Tensor,
        starts: Tensor,
        temperature: float,
    ) -> Tensor:
        """``[k, d]``, sums of weighted probabilities at the rows ``first [k]``.

        Args:
            columns, weights: ``[E]``, of the entries, token after token.
            starts: int64 ``[d + 1]``, where each token's begin.
        """

    @abstractmethod
    def compare(
        self,
        plan: ColumnPlan,
        sides: tuple[TileLogits, TileLogits],
        rows: tuple[PairRows, PairRows],
        tables: tuple[Tensor, Tensor | None],
        temperature: float,
    ) -> tuple[Tensor, Tensor]:
        """
        Args:
            tables: ``[k, d_S]`` and ``[k, d_T]``, what is added to columns that have a slot; None: none has.

        Returns:
            ``([4, k]: this rank's part of the divergence, of sum_v q * slope, of the teacher's and of the student's
            mass in REST; [k, d_S]: the slopes with respect to q where the student's table has a part)``.
        """

    @abstractmethod
    def chunk_terms(
        self,
        plan: ColumnPlan,
        sides: tuple[TileLogits, TileLogits],
        rows: tuple[PairRows, PairRows],
        sums: Tensor | None,
        weight: Tensor,
        chain_rule: bool,
        beside: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """
        Args:
            sums: ``[4, k]``, of :meth:`compare`, over all ranks; None: 0.
            weight: scalar, of the divergence in the objective.
            chain_rule: whether the later tokens of a chunk count as ``objective.merge`` says.
            beside: ``Beside.terms``, whose third row is written; None: there are none.

        Returns:
            ``([3, k]: each chunk's term, the teacher's and the student's mass in REST; [4, k], for the gradient: the
            coefficient of the divergence, that of REST's slope, the sum of dL/dlog p, the derivative by log p of each
            later label)``.
        """

    @abstractmethod
    def largest(
        self, side: TileLogits, first: Tensor, mask: Tensor, keep: int, room: int, temperature: float, search: bool
    ) -> Largest:
        """
        Args:
            first: ``[k]``, the rows.
            mask: uint8 ``[V/tp]``, not 0 for columns that take part.
            keep: how many of them; at most ``room``, which is the width of the tensors.
            search: more than these take part.
        """

    @abstractmethod
    def sorted_distance(
        self,
        sides: tuple[TileLogits, TileLogits],
        first: tuple[Tensor, Tensor],
        ranked: tuple[Tensor, Tensor],
        order: Tensor,
        left: tuple[Tensor, Tensor] | None,
        count: int,
        room: int,
        own: int,
        temperature: float,
        beyond: bool,
    ) -> tuple[Tensor, Tensor]:
        """The distance of the sorted probabilities, see `losses.sorted_l1`.

        Args:
            ranked: ``[k, w_S]`` and ``[k, w_T]``, the largest logits of all ranks, in descending order.
            order: int64 ``[k, w_S]``, where each of the student's stood among all ranks' before; this rank's ``room``
                begin at ``own``.
            left: the probability beyond these, of all ranks; None: there is nothing.
            count: how many of each side are compared one by one.
            beyond: compare what is left by its mass.

        Returns:
            ``(Beside.terms, [k, room]: LargestSlopes.slopes)``.
        """

    @abstractmethod
    def partners(
        self, teacher: TileLogits, first: Tensor, tokens: Tensor, partner: Tensor, temperature: float
    ) -> Tensor:
        """``[k, n]``, probabilities of the partners of tokens, 0 where another rank has them.

        Args:
            tokens: ``[k, n]``; -1: none.
            partner: int64, the teacher's column over all ranks of each token, -1 where there is none.
        """

    @abstractmethod
    def restricted_reverse(
        self,
        student: TileLogits,
        first: Tensor,
        chosen: Tensor,
        partners: Tensor,
        order: Tensor | None,
        room: int,
        own: int,
        temperature: float,
    ) -> tuple[Tensor, Tensor]:
        """The reverse KL of both sides given some tokens, see `losses.strict_1to1`.

        Args:
            chosen: ``[k, >= n]``, the student's logits of the tokens, of which the first n count.
            partners: ``[k, n]``, of :meth:`partners`, over all ranks.
            order, room, own: as in :meth:`sorted_distance`; None: as they are.

        Returns:
            ``(Beside.sums, [k, room]: LargestSlopes.slopes)``.
        """

    @abstractmethod
    def leaves(
        self,
        arrays: LeafArrays,
        sides: tuple[TileLogits, TileLogits],
        temperature: float,
        weights: Tensor | None,
        reduce: Callable[[Tensor], Tensor],
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """The divergences of the leaves of chunks, see `losses.leaf_divergence`.

        Args:
            weights: ``[k]``, of the tile's chunks in the objective; None: no gradient is wanted.
            reduce: sums the masses of slots over the ranks, in place.

        Returns:
            ``([2, k]: values, and 1 for chunks with leaves; the derivative with respect to the log-probabilities of the
            student's entries as if all were free; [n], its sum over all ranks at each of the student's rows)``, the
            last two None without weights.
        """

    @abstractmethod
    def slot_masses(self, slots: SlotArrays, sides: tuple[TileLogits, TileLogits], temperature: float) -> Tensor:
        """``[slots]``, this rank's part of the masses."""

    @abstractmethod
    def slot_entries(
        self, slots: SlotArrays, student: TileLogits, masses: Tensor, slopes: Tensor, temperature: float
    ) -> tuple[Tensor, Tensor]:
        """The last two of :meth:`leaves`, from the student's masses over all ranks and the derivative by them."""

    @abstractmethod
    def common_support(
        self, arrays: SupportArrays, masses: tuple[Tensor, Tensor], weight: Tensor | None, beta: float
    ) -> tuple[Tensor, Tensor]:
        """``([4, c]: values, the teacher's and the student's mass on REST, 0; [student slots], the derivative)``.

        Args:
            masses: of the student's and the teacher's slots, over all ranks.
            weight: scalar, of the divergence in the objective; None: no gradient is wanted.
        """

    @abstractmethod
    def prefixes(
        self, arrays: PrefixArrays, masses: tuple[Tensor, Tensor], sums: Tensor, weight: Tensor | None, rest: str
    ) -> tuple[Tensor, Tensor, Tensor]:
        """``([1, c]: values inside of teacher tokens; Beside.terms; [student slots], the derivative)``; arguments as of
        :meth:`common_support` and :meth:`chunk_terms`, and ``ColumnPlan.rest``."""

    @abstractmethod
    def gradient(
        self,
        student: TileLogits,
        temperature: float,
        settings: Tensor,
        dz: Tensor,
        *,
        more: bool,
        softcap: bool = False,
        inner: Tensor | None = None,
        pair: "PairGradient | None" = None,
    ) -> None:
        """Writes the objective's derivative with respect to the product of hidden states and output weight to ``dz``.

        Args:
            settings: ``[3]``: its derivative with respect to each label's log-probability, of what is no chunk's; the
                logits' scale and their softcap, see ``OutputHead``; 1 where they are not this function's business.
            dz: ``[n, V_S/tp]`` in any type; may be ``student.z``.
            more: add to what is there.
            softcap: the logits have one.
            inner: ``[n]``, the sum over the whole vocabulary of derivatives with respect to log p that the caller adds.
            pair: the part of a teacher.
        """


@dataclass(frozen=True)
class PairGradient:
    """What :meth:`PairKernels.gradient` needs of a teacher.

    Attributes:
        by_chunk: ``[4, k]``, of :meth:`PairKernels.chunk_terms`.
        slopes: ``[k, d]``, at the tokens of this rank's entries.
        largest: of what is compared beside columns; None: nothing.
    """

    plan: ColumnPlan
    teacher: TileLogits
    rows: tuple[PairRows, PairRows]
    tables: tuple[Tensor, Tensor | None]
    by_chunk: Tensor
    slopes: Tensor
    largest: LargestSlopes | None = None

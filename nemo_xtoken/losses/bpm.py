"""BPM: the teacher's next bytes as a distribution over the student's tokens (Byte-Prefix Marginalization, 2607.22334).

At each position of the student the teacher's probabilities are put on student tokens: that of a teacher token on the
longest student token that its bytes begin with, of none on a residual class.  The loss is the KL divergence of the
student from this, summed over the student's positions in a chunk:

- Where both sides have a boundary it is the whole of the teacher's distribution.
- Where the student is inside of a teacher's token, it is that of the teacher's tokens that begin with the bytes which
  the student has said of it, given that it is one of these; what is left of each is looked at.
- Where the student's own token goes over an end of the teacher's, it gets what the teacher gives to the text up to its
  end (the observed tokens, and at the last one all that begin with what is left), a bound from below; it is taken from
  the token that has the first teacher token's mass.

Student tokens on which nothing is put are the residual class of the student; so the divergence is never negative.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from nemo_xtoken.kernels.leaf_arrays import InsideArrays, OverArrays, PrefixArrays, SlotArrays
from nemo_xtoken.kernels.pair_kernels import Beside, PairKernels, TileLogits
from nemo_xtoken.kernels.reference import TORCH
from nemo_xtoken.kernels.tile_kernels import RowGradient, TileKernels, smallest
from nemo_xtoken.losses.base import LaterTerms
from nemo_xtoken.losses.byte_cells import CellLists
from nemo_xtoken.losses.chunks import KnownRows, Picked, ScoredRows
from nemo_xtoken.losses.directions import DIRECTIONS
from nemo_xtoken.losses.pair import VocabularyPair
from nemo_xtoken.losses.slots import ByChunk, ComparesSlots, Masses, SlotMasses, planned, runs, terms_by_logits
from nemo_xtoken.parallel.column_pairs import ColumnPairs
from nemo_xtoken.parallel.exchange import VocabularyExchange
from nemo_xtoken.parallel.ownership import Ownership
from nemo_xtoken.parallel.softmax import all_reduce_sum
from nemo_xtoken.parallel.vocabulary_shard import VocabularyShard
from nemo_xtoken.projection.byte_prefixes import BytePrefixes
from nemo_xtoken.projection.matrix import ProjectionMatrix

__all__ = ["BytePrefixKL"]


class BytePrefixKL(ByChunk, ComparesSlots):
    """The KL divergences of the teacher's distributions over student tokens from the student's.

    Args:
        prefixes: of the pair of tokenizers.
        student: layout of its output layer.
        kernels: what goes over the tiles.
    """

    metric_names: tuple[str, ...] = ("teacher_rest", "student_rest", "exchange_bytes")
    every_position = True

    def __init__(self, prefixes: BytePrefixes, student: VocabularyShard, kernels: TileKernels = TORCH) -> None:
        super().__init__()
        self.prefixes = prefixes
        of_student = prefixes.names
        of_teacher = np.where(prefixes.of_teacher >= 0, of_student[prefixes.of_teacher], -1)
        size = len(of_teacher)
        into = _matrix(of_student, size)
        self.ownership = Ownership.co_sharded(into, student, beside=of_teacher)
        self.exchange = VocabularyExchange(into, student, self.ownership, kernels)
        gathering = _matrix(of_teacher[self.ownership.order], size)
        self.gathering = VocabularyExchange(gathering, self.ownership.shard, self.ownership, kernels)
        self.slots = SlotMasses(student, self.ownership)
        owned = np.append(self.ownership.owned, -1)  # of -1: no column
        self._student_column, self._teacher_column = owned[of_student], owned[of_teacher]
        rest = "compared" if self.exchange.has_rest else "conditioned"
        self._pairs = None
        if kernels.pairs is not None:
            self._pairs = ColumnPairs("forward", rest, kernels.pairs, self.exchange, self.gathering)
        self._order = np.argsort(prefixes.of_teacher, kind="stable")
        self._starts = np.searchsorted(prefixes.of_teacher[self._order], np.arange(len(of_student) + 1))

    @classmethod
    def of(
        cls, pair: VocabularyPair, student: VocabularyShard, options: Mapping[str, Any], kernels: TileKernels
    ) -> "BytePrefixKL":
        """By the bytes of the pair's tokens."""
        return cls(pair.byte_prefixes, student, kernels)

    def column_pairs(self) -> ColumnPairs | None:
        """The classes at first positions."""
        return self._pairs

    def plans(self, tiles: Sequence[tuple[ScoredRows, ScoredRows] | None]) -> Sequence["_Plan | None"]:
        """What is compared in each tile; one wait for the device."""
        return planned(tiles, self._plan, _Plan.of)

    def planned_terms(self, plan: "_Plan", picked: tuple[Picked, Picked], coefficients: Tensor | None) -> LaterTerms:
        """The divergences at all positions; metrics: the teacher's and the student's residual mass at the first one,
        the bytes that a rank sends.

        Collectives: those of two ``VocabularyExchange.start``, two all-reduces: of k values and of one for each token
        that the student may say inside of a teacher's; with a gradient those of ``Projection.pull``.
        """
        masses = self.slots(plan.slots, picked)
        slope = None if coefficients is None else torch.zeros_like(masses.student)
        started = self.exchange.start(picked[0].whole(plan.first[0]))
        gathered = self.gathering.start(picked[1].whole(plan.first[1]))
        q, q_rest = started.finish()
        p, p_rest = gathered.finish()
        metrics = [p_rest.clone(), q_rest.clone()]
        alone = plan.over.move(masses, (p, p_rest), q_rest)
        forward = DIRECTIONS["forward"]
        total, _, by_column = self.exchange.kernels.compare(forward, p, q, None, coefficients)
        values = all_reduce_sum(total, self.exchange.group)
        by_rest = None
        if self.exchange.has_rest:
            term, by_rest = forward.compare(p_rest, q_rest.clone(), coefficients)
            values = values + term
        else:  # the teacher is conditioned on what the student can say
            inside = (1 - p_rest).clamp_min(0)
            values = values - torch.xlogy(inside, inside)
        term, by_mass = forward.compare(alone.moved, masses.student[alone.slot], _at(coefficients, alone.chunk))
        values = values.index_add(0, alone.chunk, term)
        inside, by_slot = plan.inside.compare(masses, coefficients)
        values = values.index_add(0, plan.inside.chunk, inside)
        sent = self.exchange.bytes_a_chunk(values.itemsize) + self.gathering.bytes_a_chunk(values.itemsize) / 2
        metrics.append(torch.full_like(values, sent))
        if slope is None or by_column is None or by_mass is None:
            return masses.terms(values, None, torch.stack(metrics))
        by_rest = torch.zeros_like(q_rest) if by_rest is None else by_rest
        slope = slope + by_slot
        slope.index_add_(0, alone.slot, by_mass - by_rest[alone.chunk])  # which are not of the residual class here
        gradient = started.pull(by_column, by_rest)[0]
        found: LaterTerms = masses.terms(values, slope, torch.stack(metrics))
        return found._replace(rows=RowGradient(gradient, plan.first[0]))

    def compare_slots(
        self,
        plan: "_Plan",
        kernels: PairKernels,
        sides: tuple[TileLogits, TileLogits],
        sums: Tensor | None,
        temperature: float,
        weight: Tensor | None,
    ) -> tuple[Beside, LaterTerms]:
        """What is not a class at a first position; collectives: an all-reduce of a value for each slot."""
        assert plan.fused is not None
        assert sums is not None
        assert self._pairs is not None
        masses = self.slots.by_logits(plan.slots, kernels, sides, temperature)
        values, terms, slope = kernels.prefixes(plan.fused, masses, sums, weight, self._pairs.rest)
        wanted = None if weight is None else slope
        return Beside(None, terms=terms), terms_by_logits(
            plan.slots, kernels, sides[0], masses[0], wanted, values[0], values[:, :0], temperature
        )

    def _plan(self, student: KnownRows, teacher: KnownRows) -> dict[str, Any]:
        """A tile's, on the CPU."""
        listed = CellLists(self.prefixes, None if self._pairs is None else self._put_on)
        for chunk, (a, n, c, m) in enumerate(
            zip(student.first, student.tokens, teacher.first, teacher.tokens, strict=True)
        ):
            if n > 1 or m > 1:
                listed.chunk(chunk, (int(a), student.labels[a : a + n]), (int(c), teacher.labels[c : c + m]))
        over, inside = listed.table("over"), listed.table("inside")
        made = {
            "slots": self.slots.arrays(listed.lists, len(student.labels)),
            "student_first": student.first,
            "teacher_first": teacher.first,
            "over": self._over(over),
            "inside": _inside_arrays(inside),
        }
        if self._pairs is not None:
            number = np.full(len(student.first), -1)
            number[over["chunk"]] = np.arange(len(over["chunk"]))
            slots = {"label": over["label"], "head": over["head_slot"]}
            named = {name: over[name] for name in ("head_mass", "token_mass", "chain", "length")}
            made["fused"] = {
                "over": {"over": number, **slots, **named},
                "inside": {name: column for name, column in inside.items() if name != "chunk"},
            }
        return made

    def _put_on(self, token: int) -> np.ndarray:
        """int64, the teacher tokens whose longest beginning is this student token."""
        return self._order[self._starts[token] : self._starts[token + 1]]

    def _over(self, over: dict[str, np.ndarray]) -> dict[str, Any]:
        heads, tokens = self._teacher_column[over["head"]], self._student_column[over["token"]]
        shard = self.ownership.shard
        column = np.concatenate([heads, tokens])
        mine = (column >= shard.start) & (column < shard.start + shard.rows)
        every = np.arange(len(heads))
        of = np.tile(every, 2)[mine]
        none, without = np.flatnonzero(heads < 0), np.flatnonzero(tokens < 0)
        return {
            "chain": runs(over["chain"], over["length"]),
            "chain_of": np.repeat(every, over["length"]),
            "of": of,
            "row": over["chunk"][of],
            "column": column[mine] - shard.start,
            "sign": np.repeat([-1, 1], len(heads))[mine],
            "none": none,
            "none_chunk": over["chunk"][none],
            "without": without,
            "without_chunk": over["chunk"][without],
            "without_slot": over["label"][without],
            "chunks": len(heads),
        }


class _Alone(NamedTuple):
    """First student tokens that are a class of their own in their chunk alone.

    Attributes:
        chunk, slot: int64 ``[a]``.
        moved: ``[a]``, what the teacher says of them.
    """

    chunk: Tensor
    slot: Tensor
    moved: Tensor


class _Over(NamedTuple):
    """Of the chunks whose first student token goes over an end of the teacher's.

    Attributes:
        chain, chain_of: the teacher's slots whose product is moved, and which of these chunks they belong to.
        of, row, column, sign: what is moved in this rank's columns, from (-1) or to (1) which of each chunk's row.
        none, none_chunk: of these chunks those whose teacher token is of the residual class, and their numbers.
        without, without_chunk, without_slot: those whose student token has no column; its slot.
        chunks: how many they are.
    """

    chain: Tensor
    chain_of: Tensor
    of: Tensor
    row: Tensor
    column: Tensor
    sign: Tensor
    none: Tensor
    none_chunk: Tensor
    without: Tensor
    without_chunk: Tensor
    without_slot: Tensor
    chunks: int

    def move(self, masses: Masses, p: tuple[Tensor, Tensor], q_rest: Tensor) -> _Alone:
        """Gives first student tokens what the teacher says of them, in place."""
        moved = _product(masses, self.chain, self.chain_of, self.chunks).to(q_rest.dtype)
        columns, rest = p
        at = self.row, self.column
        columns.index_put_(at, (columns[at] + self.sign * moved[self.of]).clamp_min_(0))
        rest.index_add_(0, self.none_chunk, -moved[self.none]).clamp_min_(0)
        found = _Alone(self.without_chunk, self.without_slot, moved[self.without])
        q_rest.index_add_(0, found.chunk, -masses.student[found.slot]).clamp_min_(0)
        return found


class _Inside(NamedTuple):
    """Of the comparisons inside of teacher tokens.

    Attributes:
        chunk, rest: int64 ``[c]``, and the teacher's slot of the residual class.
        comparison, student, teacher: of each cell, and its slots.
        crossing: the comparisons where the student's token goes over an end of the teacher's; ``into`` its cell.
        out, out_of: the cell that has the teacher token's mass, and which of ``crossing``.
        rest_out, rest_out_of: the comparisons where the residual class has it, and which of ``crossing``.
        chain, chain_of: the teacher's slots whose product is moved, and which of ``crossing`` they belong to.
    """

    chunk: Tensor
    rest: Tensor
    comparison: Tensor
    student: Tensor
    teacher: Tensor
    crossing: Tensor
    into: Tensor
    out: Tensor
    out_of: Tensor
    rest_out: Tensor
    rest_out_of: Tensor
    chain: Tensor
    chain_of: Tensor

    def compare(self, masses: Masses, coefficients: Tensor | None) -> tuple[Tensor, Tensor]:
        """The divergences ``[c]``; their derivatives by the student's slots."""
        t, t_rest, comparison = masses.teacher[self.teacher], masses.teacher[self.rest], self.comparison
        whole = t_rest.index_add(0, comparison, t).clamp_min(smallest(t))
        moved = _product(masses, self.chain, self.chain_of, self.crossing.numel()).to(t.dtype)
        t = t.index_add(0, self.into, moved).index_add_(0, self.out, -moved[self.out_of])
        t = t.clamp_min_(0) / whole[comparison]
        t_rest = t_rest.index_add(0, self.rest_out, -moved[self.rest_out_of]).clamp_min_(0) / whole
        with torch.enable_grad():
            student = masses.student.detach().requires_grad_(coefficients is not None)
            s = student[self.student]
            nearest = torch.finfo(s.dtype).eps / 2
            s_rest = (1 - torch.zeros_like(t_rest).index_add(0, comparison, s)).clamp_min(nearest)
            values = _term(t_rest, s_rest).index_add(0, comparison, _term(t, s))
            if coefficients is None:
                return values, student
            (by_slot,) = torch.autograd.grad((values * coefficients[self.chunk]).sum(), student)
        return values.detach(), by_slot


class _Plan(NamedTuple):
    """Of a tile.

    Attributes:
        first: the first rows of its chunks, of the student and the teacher.
        over: what is compared at these beside classes.
        inside: what is compared behind them.
        fused: both for kernels that work on logits; None: there are none.
    """

    slots: SlotArrays
    first: tuple[Tensor, Tensor]
    over: _Over
    inside: _Inside
    fused: PrefixArrays | None

    @classmethod
    def of(
        cls,
        slots: dict[str, Any],
        student_first: Tensor,
        teacher_first: Tensor,
        over: dict[str, Any],
        inside: dict[str, Any],
        fused: dict[str, Any] | None = None,
    ) -> "_Plan":
        """From groups of numbers and tensors."""
        kernels = None
        if fused is not None:
            kernels = PrefixArrays(InsideArrays(**fused["inside"]), OverArrays(**fused["over"]))
        return cls(SlotArrays(**slots), (student_first, teacher_first), _Over(**over), _Inside(**inside), kernels)


def _inside_arrays(inside: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    cells = inside["cells"]
    start = np.cumsum(cells) - cells
    crossing = np.flatnonzero(inside["length"])
    out = inside["out"][crossing]
    some, none = np.flatnonzero(out >= 0), np.flatnonzero(out < 0)
    return {
        "chunk": inside["chunk"],
        "rest": inside["teacher"],
        "comparison": np.repeat(np.arange(len(cells)), cells),
        "student": runs(inside["student"], cells),
        "teacher": runs(inside["teacher"] + 1, cells),
        "crossing": crossing,
        "into": (start + inside["into"])[crossing],
        "out": start[crossing[some]] + out[some],
        "out_of": some,
        "rest_out": crossing[none],
        "rest_out_of": none,
        "chain": runs(inside["chain"], inside["length"]),
        "chain_of": np.repeat(np.arange(len(crossing)), inside["length"][crossing]),
    }


def _product(masses: Masses, slots: Tensor, of: Tensor, count: int) -> Tensor:
    """float64 ``[count]``, the products of the teacher's slots."""
    log = masses.teacher[slots].double()
    log = log.clamp_min_(torch.finfo(torch.float64).tiny).log_()
    return log.new_zeros(count).index_add_(0, of, log).exp_()


def _term(p: Tensor, q: Tensor) -> Tensor:
    """What a class adds to the forward KL."""
    bound = smallest(q)
    return p * (p.clamp_min(bound).log() - q.clamp_min(bound).log())


def _at(x: Tensor | None, index: Tensor) -> Tensor | None:
    return None if x is None else x[index]


def _matrix(classes: np.ndarray, teacher_size: int) -> ProjectionMatrix:
    """The 0/1 matrix that puts each token into the column of its class."""
    ids = classes.reshape(-1, 1).astype("int32")
    return ProjectionMatrix(ids, (ids >= 0).astype("float32"), teacher_size, "", "")

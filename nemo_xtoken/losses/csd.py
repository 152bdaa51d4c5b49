"""CSD: what both sides can say in the same number of steps (Common-Support Distillation, arXiv 2610.28895).

By the kind of a chunk:

- 1 token on either side: the KL over the tokens that both vocabularies have, all others as one class REST.
- 1 to several, several to 1: the side with several tokens keeps its observed ones but the last; what it may say then is
  compared with the tokens of the other side that are spelled so, ``p(observed) p(last | observed)`` with ``p(token)``.
  All else is REST.
- several to several: the observed tokens, as one outcome of two: said or not.

``D = sum of the first kind + beta * sum of the others``, over the number of chunks.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from nemo_xtoken.kernels.leaf_arrays import SlotArrays, SupportArrays
from nemo_xtoken.kernels.pair_kernels import Beside, PairKernels, TileLogits
from nemo_xtoken.kernels.reference import TORCH
from nemo_xtoken.kernels.tile_kernels import RowGradient, TileKernels, smallest
from nemo_xtoken.losses.base import LaterTerms
from nemo_xtoken.losses.chunks import KnownRows, Picked, ScoredRows
from nemo_xtoken.losses.pair import VocabularyPair
from nemo_xtoken.losses.partial_kl import make_partial_kl
from nemo_xtoken.losses.slots import (
    ByChunk,
    ComparesSlots,
    FirstRows,
    Masses,
    SlotList,
    SlotMasses,
    planned,
    runs,
    terms_by_logits,
)
from nemo_xtoken.parallel.column_pairs import ColumnPairs
from nemo_xtoken.parallel.common_set import CommonSet
from nemo_xtoken.parallel.vocabulary_shard import VocabularyShard
from nemo_xtoken.projection.prefixes import PrefixClasses

__all__ = ["CommonSupport", "Completions"]


class Completions:
    """What may stand in the place of a token and its spelling, the last piece of the spelling being another one.

    Args:
        classes: of the pair, with the tokens' spellings.
        lengths: int ``[V_S]``, ``[V_T]``, the tokens' bytes: a spelling that is longer than its token is none.
    """

    def __init__(self, classes: PrefixClasses, lengths: tuple[np.ndarray, np.ndarray]) -> None:
        self._tables: list[dict[tuple[int, ...], dict[int, int]]] = []
        for side, spelled in enumerate((classes.student, classes.teacher)):
            table: dict[tuple[int, ...], dict[int, int]] = {}
            pieces = spelled.pieces
            bytes_of = np.where(pieces >= 0, lengths[1 - side][pieces], 0).sum(axis=1)
            count = (pieces >= 0).sum(axis=1)
            whole = (count > 1) & (bytes_of == lengths[side][spelled.tokens])
            for row in np.flatnonzero(whole).tolist():
                path = pieces[row, : count[row]].tolist()
                table.setdefault(tuple(path[:-1]), {}).setdefault(path[-1], int(spelled.tokens[row]))
            self._tables.append(table)

    def of(self, token: int, path: tuple[int, ...], side: int) -> tuple[np.ndarray, np.ndarray]:
        """int64 ``[e]``: tokens of ``side`` and last pieces of the other side, the observed ones among them.

        Args:
            token: of ``side``.
            path: what the other side says for it, two tokens at least.
        """
        found = {last: t for last, t in self._tables[side].get(path[:-1], {}).items() if t != token}
        found[path[-1]] = token
        return np.array(list(found.values())), np.array(list(found))


class CommonSupport(ByChunk, ComparesSlots):
    """The divergences of the common support, see above.

    Args:
        common: the tokens that both have, ``CommonSet.strict``.
        completions: of the pair.
        student: layout of its output layer.
        beta: weight of the chunks that are not of one token on either side.
        kernels: what goes over the tiles.
    """

    options: ClassVar[Mapping[str, Any]] = {"beta": 1.0}
    metric_names: tuple[str, ...] = ("teacher_rest", "student_rest", "exchange_bytes")

    def __init__(
        self,
        common: CommonSet,
        completions: Completions,
        student: VocabularyShard,
        beta: float = 1.0,
        kernels: TileKernels = TORCH,
    ) -> None:
        super().__init__()
        exchange = common.exchange(student, kernels)
        self.common, self.ownership = make_partial_kl("rest", exchange), exchange.ownership
        self.completions, self.beta = completions, beta
        self.slots = SlotMasses(student, self.ownership)

    @classmethod
    def of(
        cls, pair: VocabularyPair, student: VocabularyShard, options: Mapping[str, Any], kernels: TileKernels
    ) -> "CommonSupport":
        """Over the strict common set and the spellings of the pair's prefix classes."""
        lengths = pair.student.byte_length, pair.teacher.byte_length
        return cls(pair.strict, Completions(pair.classes, lengths), student, options["beta"], kernels)

    @classmethod
    def common_sets(cls, pair: VocabularyPair) -> tuple[CommonSet, ...]:
        """The tokens that both have."""
        return (pair.strict,)

    def column_pairs(self) -> ColumnPairs | None:
        """The pairs, of chunks of one token on either side."""
        return self.common.column_pairs()

    def plans(self, tiles: Sequence[tuple[ScoredRows, ScoredRows] | None]) -> Sequence["_Plan | None"]:
        """What is compared in each tile; one wait for the device."""
        return planned(tiles, self._plan, _Plan.of)

    def planned_terms(self, plan: "_Plan", picked: tuple[Picked, Picked], coefficients: Tensor | None) -> LaterTerms:
        """The divergences; metrics: the mass that either side has on REST, the bytes that a rank sends.

        Collectives: one all-reduce of a value for each token that is compared in chunks of several; for those of one
        token on either side, where there are any, those of ``VocabularyExchange.start`` and ``ProjectedKL.finish``.
        """
        masses = self.slots(plan.slots, picked)
        weights = None if coefficients is None else self.beta * coefficients
        found, slope, rests = _several(plan, masses, weights)
        k, one = plan.all_chunks, plan.one
        values = found.new_zeros(k).index_add(0, plan.chunk, self.beta * found)
        metrics = found.new_zeros((3, k)).index_add(1, plan.chunk, torch.cat([rests, torch.zeros_like(rests[:1])]))
        rows = None
        if one.numel():
            started = self.common.start(picked[0].whole(plan.student.first))
            weights = None if coefficients is None else coefficients[one]
            compared = self.common.finish(started, picked[1].whole(plan.teacher.first), weights)
            values = values.index_add(0, one, compared.values[0])
            metrics = metrics.index_add(1, one, compared.values[1:])
            rows = None if compared.gradient is None else RowGradient(compared.gradient, plan.student.first)
        return masses.terms(values, slope, metrics)._replace(rows=rows)

    def by_columns(self, plan: "_Plan", sides: tuple[FirstRows, FirstRows]) -> tuple[FirstRows, FirstRows]:
        """The chunks of one token on either side."""
        return plan.student, plan.teacher

    def compare_slots(
        self,
        plan: "_Plan",
        kernels: PairKernels,
        sides: tuple[TileLogits, TileLogits],
        sums: Tensor | None,
        temperature: float,
        weight: Tensor | None,
    ) -> tuple[Beside, LaterTerms]:
        """The other chunks; collectives: one all-reduce of a value for each token that is compared in them."""
        masses = self.slots.by_logits(plan.slots, kernels, sides, temperature)
        arrays = SupportArrays(
            plan.student.begin, plan.student.middle, plan.teacher.begin, plan.teacher.middle, plan.counts
        )
        found, slope = kernels.common_support(arrays, masses, weight, self.beta)
        wanted = None if weight is None else slope
        return Beside(None), terms_by_logits(
            plan.slots, kernels, sides[0], masses[0], wanted, found[0], found[1:], temperature
        )

    def _plan(self, student: KnownRows, teacher: KnownRows) -> dict[str, Any]:
        """A tile's, on the CPU."""
        lists = SlotList(), SlotList()
        several, outcomes = [], []
        one = (student.tokens == 1) & (teacher.tokens == 1)
        for chunk in np.flatnonzero(~one).tolist():
            a, c = int(student.first[chunk]), int(teacher.first[chunk])
            paths = [
                known.labels[row : row + known.tokens[chunk]].tolist() for known, row in ((student, a), (teacher, c))
            ]
            found = [np.array([path[-1]]) for path in paths]
            if 1 in (len(paths[0]), len(paths[1])):
                side = int(len(paths[1]) == 1)
                found[side], found[1 - side] = self.completions.of(paths[side][0], tuple(paths[1 - side]), side)
            bounds = []
            for slots, row, path, tokens in zip(lists, (a, c), paths, found, strict=True):
                begin = slots.count
                for depth, token in enumerate(path[:-1]):
                    slots.one(row + depth, np.array([token]))
                middle = slots.several(row + len(path) - 1, tokens, np.arange(len(tokens)), len(tokens))
                bounds += [begin, middle]
            several.append((chunk, *bounds))
            outcomes.append(len(found[0]))
        chunks, begin_s, middle_s, begin_t, middle_t = np.array(several, np.int64).reshape(-1, 5).T
        counts = np.array(outcomes, np.int64)
        sides = zip((student, teacher), (begin_s, begin_t), (middle_s, middle_t), strict=True)
        made = [_side(known, np.flatnonzero(one), begin, middle, counts) for known, begin, middle in sides]
        return {
            "slots": self.slots.arrays(lists, len(student.labels)),
            "all_chunks": len(one),
            "one": np.flatnonzero(one),
            "chunk": chunks,
            "counts": counts,
            "comparison": np.repeat(np.arange(len(counts)), counts),
            "student": made[0],
            "teacher": made[1],
        }


class _Side(NamedTuple):
    """Of the student or the teacher.

    Attributes:
        first, tokens, chunk: the chunks of one token on either side, as `PairRows` has them.
        begin, middle: int64 ``[c]``, where the slots of a comparison's observed tokens before the last begin, and those
            of its outcomes after them.
        slot: of each outcome.
        path, path_of: slots of the observed tokens before the last, and the comparison of each.
    """

    first: Tensor
    tokens: Tensor
    chunk: Tensor
    begin: Tensor
    middle: Tensor
    slot: Tensor
    path: Tensor
    path_of: Tensor


class _Plan(NamedTuple):
    """Of a tile.

    Attributes:
        slots: of what is compared in chunks that are not of one token on either side.
        all_chunks: of the tile; ``one`` those of one token on either side, ``chunk`` the others.
        counts: int64 ``[c]``, the outcomes of each but REST; ``comparison``: the comparison of each outcome.
    """

    slots: SlotArrays
    all_chunks: int
    one: Tensor
    chunk: Tensor
    counts: Tensor
    comparison: Tensor
    student: _Side
    teacher: _Side

    @classmethod
    def of(cls, slots: dict[str, Any], student: dict[str, Any], teacher: dict[str, Any], **other: Any) -> "_Plan":
        """From groups of numbers and tensors."""
        return cls(slots=SlotArrays(**slots), student=_Side(**student), teacher=_Side(**teacher), **other)


def _side(
    known: KnownRows, one: np.ndarray, begin: np.ndarray, middle: np.ndarray, counts: np.ndarray
) -> dict[str, np.ndarray]:
    chunk = np.full(len(known.labels), -1)
    chunk[known.first[one]] = np.arange(len(one))
    return {
        "first": known.first[one],
        "tokens": known.tokens[one],
        "chunk": chunk,
        "begin": begin,
        "middle": middle,
        "slot": runs(middle, counts),
        "path": runs(begin, middle - begin),
        "path_of": np.repeat(np.arange(len(begin)), middle - begin),
    }


def _several(plan: _Plan, masses: Masses, weights: Tensor | None) -> tuple[Tensor, Tensor | None, Tensor]:
    """The divergences ``[c]``, their derivatives by the student's slots, and both sides' REST ``[2, c]``."""
    count, comparison = plan.chunk.numel(), plan.comparison

    def shares(masses: Tensor, side: _Side) -> tuple[Tensor, Tensor]:
        """The probability of each outcome, and of REST."""
        path = _log(masses[side.path])
        before = path.new_zeros(count).index_add(0, side.path_of, path)
        p = masses[side.slot] * before.exp()[comparison]
        rest = (1 - p.new_zeros(count).index_add(0, comparison, p)).clamp_min(torch.finfo(p.dtype).eps / 2)
        return p, rest

    with torch.enable_grad():
        student = masses.student.detach().requires_grad_(weights is not None)
        (p, p_rest), (q, q_rest) = shares(masses.teacher, plan.teacher), shares(student, plan.student)
        values = p_rest * (_log(p_rest) - _log(q_rest))
        values = values.index_add(0, comparison, p * (_log(p) - _log(q)))
        slope = None
        if weights is not None:
            (slope,) = torch.autograd.grad((values * weights[plan.chunk]).sum(), student)
    return values.detach(), slope, torch.stack([p_rest, q_rest.detach()])


def _log(x: Tensor) -> Tensor:
    return x.clamp_min(smallest(x)).log()

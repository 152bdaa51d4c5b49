"""CSD: what both sides can say in the same number of steps (Common-Support Distillation, arXiv 2610.28895).

By the kind of a chunk:

- 1 token on either side: the KL over the tokens that both vocabularies have, all others as one class REST.
- 1 to several, several to 1: the side with several tokens keeps its observed ones but the last; what it may say then is
  compared with the tokens of the other side that are spelled so, ``p(observed) p(last | observed)`` with ``p(token)``.
  All else is REST.
- several to several: the observed tokens, as one outcome of two: said or not.

``D = sum of the first kind + beta * sum of the others``, over the number of chunks.
"""

from collections.abc import Mapping
from functools import cache
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from nemo_xtoken.kernels.reference import TORCH
from nemo_xtoken.kernels.tile_kernels import RowGradient, TileKernels, smallest
from nemo_xtoken.losses.base import LaterTerms
from nemo_xtoken.losses.chunks import ScoredRows
from nemo_xtoken.losses.pair import VocabularyPair
from nemo_xtoken.losses.partial_kl import make_partial_kl
from nemo_xtoken.losses.slots import ByChunk, Masses, SlotList, SlotMasses
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


class CommonSupport(ByChunk):
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

    def later_terms(
        self,
        p_student: Tensor,
        student: ScoredRows,
        p_teacher: Tensor,
        teacher: ScoredRows,
        coefficients: Tensor | None,
    ) -> LaterTerms:
        """The divergences; metrics: the mass that either side has on REST, the bytes that a rank sends.

        Collectives: one all-reduce of a value for each token that is compared in chunks of several; for those of one
        token on either side, where there are any, those of ``VocabularyExchange.start`` and ``ProjectedKL.finish``.
        """
        plan = _Plan(self.completions, student, teacher)
        masses = self.slots((p_student, p_teacher), plan.lists)
        weights = None if coefficients is None else self.beta * coefficients
        found, slope, rests = _several(plan, masses, weights)
        at, k = plan.on("chunk", found.device), student.first.numel()
        values = found.new_zeros(k).index_add(0, at, self.beta * found)
        metrics = found.new_zeros((3, k)).index_add(1, at, torch.cat([rests, torch.zeros_like(rests[:1])]))
        rows = None
        one = torch.nonzero((student.tokens == 1) & (teacher.tokens == 1)).squeeze(1)
        if one.numel():
            first = student.first[one]
            started = self.common.start(p_student.index_select(0, first))
            weights = None if coefficients is None else coefficients[one]
            compared = self.common.finish(started, p_teacher.index_select(0, teacher.first[one]), weights)
            values = values.index_add(0, one, compared.values[0])
            metrics = metrics.index_add(1, one, compared.values[1:])
            rows = None if compared.gradient is None else RowGradient(compared.gradient, first)
        return masses.terms(values, slope, metrics)._replace(rows=rows)


class _Plan:
    """The chunks of a tile that are not of one token on either side; arrays by name.

    ``chunk``: their numbers.  ``comparison``, ``student``, ``teacher``: of each outcome but REST its comparison and
    slots.  ``student_path``, ``teacher_path``: slots of the observed tokens that come before, of the comparison in
    ``student_of``, ``teacher_of``.
    """

    NAMES = ("chunk", "comparison", "student", "teacher", "student_path", "teacher_path", "student_of", "teacher_of")

    def __init__(self, completions: Completions, student: ScoredRows, teacher: ScoredRows) -> None:
        self.lists = SlotList(), SlotList()
        self.arrays: dict[str, list[int]] = {name: [] for name in self.NAMES}
        starts = [[getattr(s, name).tolist() for name in ("first", "tokens", "labels")] for s in (student, teacher)]
        (s_first, s_count, s_labels), (t_first, t_count, t_labels) = starts
        for chunk, (a, n, c, m) in enumerate(zip(s_first, s_count, t_first, t_count, strict=True)):
            if n == m == 1:
                continue
            paths = s_labels[a : a + n], t_labels[c : c + m]
            outcomes = [np.array([paths[0][-1]]), np.array([paths[1][-1]])]
            if 1 in (n, m):
                side = int(m == 1)
                found = completions.of(paths[side][0], tuple(paths[1 - side]), side)
                outcomes = list(found) if side == 0 else list(reversed(found))
            number = len(self.arrays["chunk"])
            self.arrays["chunk"].append(chunk)
            self.arrays["comparison"] += [number] * len(outcomes[0])
            for side, (name, row, path) in enumerate(zip(("student", "teacher"), (a, c), paths, strict=True)):
                count, slots = len(outcomes[side]), self.lists[side]
                first = slots.several(row + len(path) - 1, outcomes[side], np.arange(count), count)
                self.arrays[name] += range(first, first + count)
                for depth, token in enumerate(path[:-1]):
                    self.arrays[f"{name}_path"].append(slots.one(row + depth, np.array([token])))
                    self.arrays[f"{name}_of"].append(number)

    def on(self, name: str, device: torch.device) -> Tensor:
        """int64, an array."""
        return torch.tensor(self.arrays[name], dtype=torch.int64, device=device)


def _several(plan: _Plan, masses: Masses, weights: Tensor | None) -> tuple[Tensor, Tensor | None, Tensor]:
    """The divergences ``[c]``, their derivatives by the student's slots, and both sides' REST ``[2, c]``."""
    device, count = masses.student.device, len(plan.arrays["chunk"])
    on = cache(lambda name: plan.on(name, device))
    comparison = on("comparison")

    def shares(side: Tensor, name: str) -> tuple[Tensor, Tensor]:
        """The probability of each outcome, and of REST."""
        path = _log(side[on(f"{name}_path")])
        before = path.new_zeros(count).index_add(0, on(f"{name}_of"), path)
        p = side[on(name)] * before.exp()[comparison]
        rest = (1 - p.new_zeros(count).index_add(0, comparison, p)).clamp_min(torch.finfo(p.dtype).eps / 2)
        return p, rest

    with torch.enable_grad():
        student = masses.student.detach().requires_grad_(weights is not None)
        (p, p_rest), (q, q_rest) = shares(masses.teacher, "teacher"), shares(student, "student")
        values = p_rest * (_log(p_rest) - _log(q_rest))
        values = values.index_add(0, comparison, p * (_log(p) - _log(q)))
        slope = None
        if weights is not None:
            (slope,) = torch.autograd.grad((values * weights[on("chunk")]).sum(), student)
    return values.detach(), slope, torch.stack([p_rest, q_rest.detach()])


def _log(x: Tensor) -> Tensor:
    return x.clamp_min(smallest(x)).log()

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

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from nemo_xtoken.kernels.reference import TORCH
from nemo_xtoken.kernels.tile_kernels import RowGradient, TileKernels, smallest
from nemo_xtoken.losses.base import LaterTerms
from nemo_xtoken.losses.chunks import ScoredRows
from nemo_xtoken.losses.directions import DIRECTIONS
from nemo_xtoken.losses.pair import VocabularyPair
from nemo_xtoken.losses.slots import ByChunk, Masses, SlotList, SlotMasses
from nemo_xtoken.parallel.exchange import VocabularyExchange
from nemo_xtoken.parallel.ownership import Ownership
from nemo_xtoken.parallel.softmax import all_reduce_sum
from nemo_xtoken.parallel.vocabulary_shard import VocabularyShard
from nemo_xtoken.projection.byte_prefixes import BytePrefixes
from nemo_xtoken.projection.matrix import ProjectionMatrix

__all__ = ["BytePrefixKL"]


class BytePrefixKL(ByChunk):
    """The KL divergences of the teacher's distributions over student tokens from the student's.

    Args:
        prefixes: of the pair of tokenizers.
        student: layout of its output layer.
        kernels: what goes over the tiles.
    """

    metric_names: tuple[str, ...] = ("teacher_rest", "student_rest", "exchange_bytes")
    every_position = True
    student_column: Tensor
    teacher_column: Tensor

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
        for name, classes in (("student_column", of_student), ("teacher_column", of_teacher)):
            self.register_buffer(name, torch.from_numpy(owned[classes]), persistent=False)

    @classmethod
    def of(
        cls, pair: VocabularyPair, student: VocabularyShard, options: Mapping[str, Any], kernels: TileKernels
    ) -> "BytePrefixKL":
        """By the bytes of the pair's tokens."""
        return cls(pair.byte_prefixes, student, kernels)

    def later_terms(
        self,
        p_student: Tensor,
        student: ScoredRows,
        p_teacher: Tensor,
        teacher: ScoredRows,
        coefficients: Tensor | None,
    ) -> LaterTerms:
        """The divergences at all positions; metrics: the teacher's and the student's residual mass at the first one,
        the bytes that a rank sends.

        Collectives: those of two ``VocabularyExchange.start``, two all-reduces: of k values and of one for each token
        that the student may say inside of a teacher's; with a gradient those of ``Projection.pull``.
        """
        plan = _Plan(self.prefixes, student, teacher)
        masses = self.slots((p_student, p_teacher), plan.lists)
        slope = None if coefficients is None else torch.zeros_like(masses.student)
        started = self.exchange.start(p_student.index_select(0, student.first))
        gathered = self.gathering.start(p_teacher.index_select(0, teacher.first))
        q, q_rest = started.finish()
        p, p_rest = gathered.finish()
        metrics = [p_rest.clone(), q_rest.clone()]
        alone = self._move(plan, masses, (p, p_rest), q_rest)
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
        inside, by_slot = _inside(plan, masses, coefficients)
        values = values.index_add(0, plan.on("chunk", values.device), inside)
        sent = self.exchange.bytes_a_chunk(values.itemsize) + self.gathering.bytes_a_chunk(values.itemsize) / 2
        metrics.append(torch.full_like(values, sent))
        if slope is None or by_column is None or by_mass is None:
            return masses.terms(values, None, torch.stack(metrics))
        by_rest = torch.zeros_like(q_rest) if by_rest is None else by_rest
        slope = slope + by_slot
        slope.index_add_(0, alone.slot, by_mass - by_rest[alone.chunk])  # which are not of the residual class here
        gradient = started.pull(by_column, by_rest)[0]
        found: LaterTerms = masses.terms(values, slope, torch.stack(metrics))
        return found._replace(rows=RowGradient(gradient, student.first))

    def _move(self, plan: "_Plan", masses: Masses, p: tuple[Tensor, Tensor], q_rest: Tensor) -> "_Alone":
        """Gives first student tokens that go over an end of the teacher's what the teacher says of them, in place."""
        chunk, token, head, slot = (plan.on(name, q_rest.device) for name in ("over", "token", "head", "label"))
        moved = plan.chain(masses, len(chunk), "first").to(q_rest.dtype)
        columns, rest = p
        for column, sign in ((self.teacher_column[head], -1), (self.student_column[token], 1)):
            local = column - self.exchange.ownership.shard.start
            mine = torch.nonzero((column >= 0) & (local >= 0) & (local < columns.shape[1])).squeeze(1)
            columns.index_put_((chunk[mine], local[mine]), sign * moved[mine], accumulate=True)
        none = self.teacher_column[head] < 0
        rest.index_add_(0, chunk[none], -moved[none])
        columns.clamp_min_(0)
        rest.clamp_min_(0)
        without = torch.nonzero(self.student_column[token] < 0).squeeze(1)
        found = _Alone(chunk[without], slot[without], moved[without])
        q_rest.index_add_(0, found.chunk, -masses.student[found.slot]).clamp_min_(0)
        return found


class _Alone(NamedTuple):
    """First student tokens that are a class of their own in their chunk alone.

    Attributes:
        chunk, slot: int64 ``[a]``.
        moved: ``[a]``, what the teacher says of them.
    """

    chunk: Tensor
    slot: Tensor
    moved: Tensor


class _Plan:
    """What is compared in a tile's chunks beside the first position's classes; arrays by name.

    ``over``, ``token``, ``head``, ``label``: the chunks whose first student token goes over an end of the teacher's,
    that token, the teacher's first, and the student's slot.  ``chunk``, ``rest``: of each comparison inside a teacher's
    token, and the teacher's slot of the residual class.  ``comparison``, ``student``, ``teacher``: of each cell.  What
    goes over an end there: ``crossing`` the comparison, ``into`` its cell, ``out`` the cell that has the teacher
    token's mass, -1 for the residual class.  ``first_of``, ``first_slot``, ``crossing_of``, ``crossing_slot``: the
    teacher's slots whose product is what is moved, and which of ``over`` or ``crossing`` they belong to.
    """

    NAMES = (
        *("over", "token", "head", "label", "chunk", "rest", "comparison", "student", "teacher"),
        *("crossing", "into", "out", "first_of", "first_slot", "crossing_of", "crossing_slot"),
    )

    def __init__(self, prefixes: BytePrefixes, student: ScoredRows, teacher: ScoredRows) -> None:
        self.prefixes, self.lists = prefixes, (SlotList(), SlotList())
        self.arrays: dict[str, list[int]] = {name: [] for name in self.NAMES}
        starts = [[getattr(s, name).tolist() for name in ("first", "tokens", "labels")] for s in (student, teacher)]
        (s_first, s_count, s_labels), (t_first, t_count, t_labels) = starts
        for chunk, (a, n, c, m) in enumerate(zip(s_first, s_count, t_first, t_count, strict=True)):
            if n > 1 or m > 1:
                self._chunk(chunk, (a, s_labels[a : a + n]), (c, t_labels[c : c + m]))

    def on(self, name: str, device: torch.device) -> Tensor:
        """int64, an array."""
        return torch.tensor(self.arrays[name], dtype=torch.int64, device=device)

    def chain(self, masses: Masses, count: int, name: str) -> Tensor:
        """float64 ``[count]``, the products of the teacher's slots."""
        device = masses.teacher.device
        log = masses.teacher[self.on(f"{name}_slot", device)].double()
        log = log.clamp_min(torch.finfo(torch.float64).tiny).log()
        return log.new_zeros(count).index_add_(0, self.on(f"{name}_of", device), log).exp()

    def _add(self, **values: int) -> None:
        for name, value in values.items():
            self.arrays[name].append(value)

    def _chunk(self, chunk: int, student: tuple[int, list[int]], teacher: tuple[int, list[int]]) -> None:
        sides = self.prefixes.student, self.prefixes.teacher
        data = [[v.token_bytes[i] or b"" for i in ids] for v, (_, ids) in zip(sides, (student, teacher), strict=True)]
        text = b"".join(data[0])
        if not text or text != b"".join(data[1]):  # roles, or a tokenizer that writes other bytes
            return
        ends = [np.cumsum([len(x) for x in parts]) for parts in data]
        begin = 0
        for i, end in enumerate(ends[0].tolist()):
            j = int(np.searchsorted(ends[1], begin, side="right"))  # the teacher's token at `begin`
            last = int(np.searchsorted(ends[1], end, side="left"))  # and at the end
            at = int(ends[1][j]) - len(data[1][j])
            head, token = teacher[1][j], student[1][i]
            crossing, prefix = last > j, text[at:begin]
            if prefix:
                self._inside(chunk, (student[0] + i, token), (teacher[0] + j, data[1][j]), prefix, crossing)
            elif crossing:
                label = self.lists[0].one(student[0], np.array([token]))
                self._add(over=chunk, token=token, head=head, label=label)
            if crossing:
                name = "crossing" if prefix else "first"
                number = len(self.arrays["crossing" if prefix else "over"]) - 1
                for k in range(j, last + 1):
                    tokens = np.array([teacher[1][k]])
                    if k == last:
                        tokens = self.prefixes.beginning(text[int(ends[1][k]) - len(data[1][k]) : end])
                    slot = self.lists[1].one(teacher[0] + k, tokens)
                    self._add(**{f"{name}_of": number, f"{name}_slot": slot})
            begin = end

    def _inside(
        self, chunk: int, student: tuple[int, int], teacher: tuple[int, bytes], prefix: bytes, crossing: bool
    ) -> None:
        """A comparison at a student's row where ``prefix`` is said of the teacher's token at its row."""
        found = self.prefixes.after(prefix)
        count, number, first_cell = len(found.cells), len(self.arrays["chunk"]), len(self.arrays["comparison"])
        first = self.lists[1].several(teacher[0], found.tokens, found.cell, count + 1)
        own = self.lists[0].several(student[0], found.cells, np.arange(count), count)
        self._add(chunk=chunk, rest=first + count)
        self.arrays["comparison"] += [number] * count
        self.arrays["student"] += range(own, own + count)
        self.arrays["teacher"] += range(first, first + count)
        if not crossing:
            return
        places = {int(cell): first_cell + i for i, cell in enumerate(found.cells)}
        into = places.get(student[1], first_cell + count)
        if student[1] not in places:
            label = self.lists[0].one(student[0], np.array([student[1]]))
            nothing = self.lists[1].one(teacher[0], np.zeros(0, np.int64))
            self._add(comparison=number, student=label, teacher=nothing)
        out = places.get(self.prefixes.longest(teacher[1][len(prefix) :]), -1)
        self._add(crossing=number, into=into, out=out)


def _inside(plan: _Plan, masses: Masses, coefficients: Tensor | None) -> tuple[Tensor, Tensor]:
    """The divergences ``[comparisons]`` inside of teacher tokens; their derivatives by the student's slots."""
    device = masses.student.device
    comparison, cells, of_teacher, rest = (plan.on(x, device) for x in ("comparison", "student", "teacher", "rest"))
    crossing, into, out = (plan.on(x, device) for x in ("crossing", "into", "out"))
    t = masses.teacher[of_teacher]
    t_rest = masses.teacher[rest]
    whole = t_rest.index_add(0, comparison, t).clamp_min(smallest(t))
    moved = plan.chain(masses, len(crossing), "crossing").to(t.dtype)
    t = t.index_add(0, into, moved)
    some = out >= 0
    t = t.index_add(0, out[some], -moved[some]).clamp_min(0) / whole[comparison]
    t_rest = t_rest.index_add(0, crossing[~some], -moved[~some]).clamp_min(0) / whole
    with torch.enable_grad():
        student = masses.student.detach().requires_grad_(coefficients is not None)
        s = student[cells]
        nearest = torch.finfo(s.dtype).eps / 2
        s_rest = (1 - s.new_zeros(rest.numel()).index_add(0, comparison, s)).clamp_min(nearest)
        values = _term(t_rest, s_rest).index_add(0, comparison, _term(t, s))
        if coefficients is None:
            return values, student
        (by_slot,) = torch.autograd.grad((values * coefficients[plan.on("chunk", device)]).sum(), student)
    return values.detach(), by_slot


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

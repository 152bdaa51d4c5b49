"""Moving probabilities between the two vocabularies when both are sharded: ``W^T p`` and its transpose ``W g``.

The student's columns lie where its output layer lies, and so do the rows of W; the teacher's lie where
:class:`~nemo_xtoken.parallel.ownership.Ownership` put them.  A row of W whose one token lies on the same rank at the
same column is *in place*: a mask.  What the others send is summed by teacher token first, so that one all-to-all of the
distinct teacher tokens that cross ranks is all that travels; the transpose takes the same way back.  Who sends what to
whom is planned once, from the whole of W, and is the same on every rank.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from nemo_xtoken.errors import InputError
from nemo_xtoken.kernels.reference import TORCH
from nemo_xtoken.kernels.tile_kernels import Gather, TileKernels
from nemo_xtoken.parallel.ownership import Ownership
from nemo_xtoken.parallel.vocabulary_shard import VocabularyShard, group_size
from nemo_xtoken.projection.matrix import ProjectionMatrix

__all__ = ["Projection", "VocabularyExchange", "weighted_sums"]


class VocabularyExchange(torch.nn.Module):
    """This rank's rows of W, ready to move probabilities to the teacher's vocabulary and gradients back.

    W is closed by one column, REST, so that all mass is somewhere: a student token with an empty row maps to REST with
    weight 1, and the teacher's mass on tokens that W does not reach is its mass on REST.

    Args:
        matrix: the whole W (host memory); only this rank's rows are kept.
        student: layout of the student's output layer.
        ownership: of the teacher's tokens, over the same group.
        kernels: what goes over the tiles.

    Attributes:
        reached: bool ``[V_T/tp]``, this rank's teacher columns that W reaches.
        reached_tokens: how many it reaches on all ranks.
        empty: int64, this rank's student columns whose rows of W are empty.
        weights: ``[E]``, the entries of this rank's rows that are not in place, row after row.
        crossing: distinct teacher tokens that each rank sends to others for one chunk, ``[tp]``.
        sent, received: of these, what this rank sends to each and gets from it; empty: nothing crosses.
        whole: every row has at most one entry, of weight 1, and most of them are not in place: then a CPU takes
            `places`.
        places: int64 ``[V_S/tp]``, where the probability of each column goes, of this rank's columns of the teacher's,
            REST, nowhere, and what it sends.
    """

    reached: Tensor
    empty: Tensor
    weights: Tensor
    in_place: Tensor
    local_columns: Tensor
    incoming_columns: Tensor
    rows: Tensor
    row_starts: Tensor
    by_row: Tensor
    entry_part: Tensor
    token_order: Tensor
    by_token: Tensor
    token_starts: Tensor
    student_slots: Tensor
    teacher_slots: Tensor
    places: Tensor

    def __init__(
        self,
        matrix: ProjectionMatrix,
        student: VocabularyShard,
        ownership: Ownership,
        kernels: TileKernels = TORCH,
    ) -> None:
        super().__init__()
        self.kernels = kernels
        for side, size, shard in (
            ("student", matrix.student_size, student),
            ("teacher", matrix.teacher_size, ownership.shard),
        ):
            if size != shard.size:
                raise InputError(
                    f"a projection matrix for a {side} vocabulary of {size} tokens, a model of {shard.size}",
                    "equal sizes",
                    "give the model the tokenizer that W was built with, or build W for this pair",
                )
        self.student, self.teacher, self.ownership, self.group = student, ownership.shard, ownership, student.group
        self.has_rest = bool(matrix.empty_rows.any())
        self.has_unreached = not bool(matrix.reached.all())
        self.reached_tokens = int(matrix.reached.sum())
        plan = _Plan.make(matrix, student, ownership)
        self.crossing = plan.crossing
        self.sent, self.received, self.whole = plan.sent, plan.received, plan.whole
        for name, value in plan.tensors.items():
            self.register_buffer(name, torch.from_numpy(value), persistent=False)

    @classmethod
    def co_sharded(
        cls, matrix: ProjectionMatrix, student: VocabularyShard, kernels: TileKernels = TORCH
    ) -> "VocabularyExchange":
        """The exchange that sends least: each teacher token beside the student tokens that W maps to it."""
        return cls(matrix, student, Ownership.co_sharded(matrix, student), kernels)

    def bytes_a_chunk(self, itemsize: int) -> float:
        """Bytes that a rank sends for a chunk, forward and backward together; the mean over the ranks.

        (Forward a rank sends what crosses from it, backward what crosses to it: in the mean it is the same.)
        """
        return float(2 * itemsize * self.crossing.mean())

    @property
    def crosses(self) -> bool:
        """Whether anything travels between ranks."""
        return bool(self.sent or self.received)

    def start(self, p: Tensor, weights: Tensor | None = None) -> "Projection":
        """Begins ``W^T p``: what travels is under way when this returns.

        Args:
            p: ``[n, V_S/tp]`` student probabilities, this rank's columns.
            weights: ``[E]`` instead of the module's own.

        Collectives: one all-to-all of ``[crossing, n]`` and one all-reduce of n values (none of W's rows is empty: no
        all-reduce), both asynchronous.
        """
        return Projection(self, p, weights)

    def _to_teacher(self) -> Gather:
        """The rows in place, and what this rank's other rows bring to its own columns."""
        none = self.empty[:0]
        return Gather(self.teacher.rows, self.in_place, self.local_columns, none, self.teacher_slots, disjoint=False)

    def _to_student(self) -> Gather:
        """The rows in place, those with other entries, and the empty ones."""
        return Gather(self.student.rows, self.in_place, self.rows, self.empty, self.student_slots, disjoint=True)

    def _collect(self, g: Tensor) -> Tensor:
        """``[distinct, n]``: the values of g at the distinct tokens of this rank's entries, wherever they lie."""
        here = g.index_select(1, self.local_columns).t()
        if not self.crosses:
            return here.contiguous()
        table = g.new_empty((here.shape[0] + sum(self.sent), g.shape[0]))
        table[: here.shape[0]] = here
        self._fetch(table[here.shape[0] :], g)
        return table

    def _fetch(self, answered: Tensor, g: Tensor) -> None:
        """The values of g at what this rank sends, ``[sent, n]``, from where they lie."""
        asked = g.index_select(1, self.incoming_columns).t().contiguous()
        dist.all_to_all_single(answered, asked, self.sent, self.received, group=self.group)

    def _extended(self, n: int) -> tuple[int, int]:
        """The shape of what `places` tells of."""
        return n, self.teacher.rows + 2 + sum(self.sent)

    def _spread_whole(self, g: Tensor, g_rest: Tensor) -> Tensor:
        columns = self.teacher.rows
        values = g.new_empty(self._extended(len(g)))
        values[:, :columns], values[:, columns], values[:, columns + 1] = g, g_rest, 0
        if self.crosses:
            answered = g.new_empty((sum(self.sent), len(g)))
            self._fetch(answered, g)
            values[:, columns + 2 :] = answered.t()
        return values.index_select(1, self.places)

    def _spread(self, g: Tensor, g_rest: Tensor, weights: Tensor, table: Tensor) -> Tensor:
        sums = weighted_sums(table, self.by_row, self.row_starts, weights)
        return self.kernels.gather(g, self._to_student(), sums, g_rest)


class Projection:
    """``W^T p`` under way, and what its transpose needs.  Made by :meth:`VocabularyExchange.start`."""

    def __init__(self, exchange: VocabularyExchange, p: Tensor, learned: Tensor | None) -> None:
        self.exchange, self.p, self.learned = exchange, p, learned is not None
        self.weights = weights = exchange.weights if learned is None else learned
        self._waiting: list[dist.Work] = []
        self._q: Tensor | None = None
        if exchange.whole and p.is_cpu and not self.learned:
            # element by element in rows that fit into a cache: a third of the time of the way by whole columns
            found = p.new_zeros(exchange._extended(len(p))).scatter_add_(1, exchange.places.expand(p.shape), p)
            columns = exchange.teacher.rows
            self._q, self._rest = found[:, :columns], found[:, columns].contiguous()
            outgoing = found[:, columns + 2 :].t()
        else:
            self._parts = p.index_select(1, exchange.rows).t().contiguous()  # [rows with entries, n]
            sums = weighted_sums(self._parts, exchange.by_token, exchange.token_starts, weights[exchange.token_order])
            here = exchange.local_columns.numel()
            self._local, outgoing = sums[:here], sums[here:]
            self._rest = p.index_select(1, exchange.empty).sum(1)
        if exchange.crosses:
            self._incoming = p.new_empty((sum(exchange.received), p.shape[0]))
            self._outgoing = outgoing.contiguous()  # alive until it is sent
            splits = exchange.received, exchange.sent
            self._wait_for(
                dist.all_to_all_single(self._incoming, self._outgoing, *splits, group=exchange.group, async_op=True)
            )
        if exchange.has_rest and group_size(exchange.group) > 1:
            self._wait_for(dist.all_reduce(self._rest, group=exchange.group, async_op=True))

    def _wait_for(self, work: dist.Work | None) -> None:
        assert work is not None
        self._waiting.append(work)

    def finish(self) -> tuple[Tensor, Tensor]:
        """``(q [n, V_T/tp], this rank's columns of the teacher's vocabulary; REST [n], equal on all ranks)``."""
        exchange, p, q = self.exchange, self.p, self._q
        if q is None:
            q = exchange.kernels.gather(p, exchange._to_teacher(), self._local)
        for work in self._waiting:
            work.wait()
        at = 0
        for count in exchange.received:  # of one rank the columns are distinct
            q[:, exchange.incoming_columns[at : at + count]] += self._incoming[at : at + count].t()
            at += count
        return q, self._rest

    def pull(self, g: Tensor, g_rest: Tensor) -> tuple[Tensor, Tensor | None]:
        """The transpose: the gradient with respect to p, and to the entries.

        Args:
            g: ``[n, V_T/tp]``, this rank's columns.
            g_rest: ``[n]``, equal on all ranks.

        Returns:
            ``(W g [n, V_S/tp], this rank's columns, 0 in padding; that with respect to the entries [E], summed
            over the n rows, None where they are not learned)``.  Collectives: one all-to-all of ``[crossing, n]``.
        """
        exchange = self.exchange
        if self._q is not None:
            return exchange._spread_whole(g, g_rest), None
        table = exchange._collect(g)
        by_entry = (self._parts[exchange.entry_part] * table[exchange.by_row]).sum(1) if self.learned else None
        return exchange._spread(g, g_rest, self.weights, table), by_entry


def weighted_sums(table: Tensor, index: Tensor, starts: Tensor, weights: Tensor) -> Tensor:
    """``out[i] = sum_e weights[e] table[index[e]]`` over the entries e from ``starts[i]`` to ``starts[i + 1]``.

    Deterministic on every device: each output is summed by itself, in order.

    Args:
        table: ``[m, n]``.
        starts: int64 ``[outputs + 1]``.
    """
    if not index.numel():
        return table.new_zeros((starts.numel() - 1, table.shape[1]))
    return torch.nn.functional.embedding_bag(
        index, table, starts, mode="sum", per_sample_weights=weights.to(table.dtype), include_last_offset=True
    )


@dataclass(frozen=True)
class _Plan:
    """What a rank needs to know, as arrays."""

    tensors: dict[str, np.ndarray]
    sent: list[int]
    received: list[int]
    crossing: np.ndarray
    whole: bool

    @classmethod
    def make(cls, matrix: ProjectionMatrix, student: VocabularyShard, ownership: Ownership) -> "_Plan":
        ranks, me = student.ranks, student.rank
        s, slot = np.nonzero(matrix.ids >= 0)
        token, weight = matrix.ids[s, slot].astype(np.int64), matrix.weights[s, slot]
        rank, row = s // student.rows, s % student.rows
        owner, column = np.divmod(ownership.owned[token], ownership.shard.rows)
        stays = (weight == 1) & (owner == rank) & (column == row)
        in_place = np.zeros(student.rows, np.float32)
        in_place[row[stays & (rank == me)]] = 1
        loose = ~stays
        s, token, weight, rank, row, owner = (x[loose] for x in (s, token, weight, rank, row, owner))
        column = column[loose]
        # what every rank sends to every other: distinct (rank, owner, token)
        crosses = rank != owner
        moves = np.unique(np.stack([rank[crosses], owner[crosses], column[crosses]]), axis=1)
        counts = np.zeros((ranks, ranks), np.int64)
        np.add.at(counts, (moves[0], moves[1]), 1)
        arriving = moves[:, moves[1] == me]  # by sender, then by column
        mine = rank == me
        row, token, weight, owner, column = (x[mine] for x in (row, token, weight, owner, column))
        # distinct tokens of this rank's entries: those that stay first, then by owner, then by column
        key = np.where(owner == me, -1, owner) * ownership.shard.rows + column
        distinct, by_row = np.unique(key, return_inverse=True)
        rows, starts, part = np.unique(row, return_index=True, return_inverse=True)
        order = np.argsort(by_row, kind="stable")
        reached = np.zeros(ownership.shard.padded, dtype=bool)
        reached[: ownership.shard.size] = matrix.reached[ownership.order]
        empty = np.zeros(student.rows, dtype=bool)
        stop = student.start + student.valid_rows
        empty[: student.valid_rows] = matrix.empty_rows[student.start : stop]
        first = ownership.shard.start
        local_columns = distinct[distinct < 0] + ownership.shard.rows
        student_slots, teacher_slots = np.full(student.rows, -1, np.int32), np.full(ownership.shard.rows, -1, np.int32)
        student_slots[rows], student_slots[: student.valid_rows][empty[: student.valid_rows]] = np.arange(len(rows)), -2
        teacher_slots[local_columns] = np.arange(len(local_columns))
        tensors = {
            "reached": reached[first : first + ownership.shard.rows],
            "empty": np.flatnonzero(empty),
            "weights": weight.astype(np.float32),
            "in_place": in_place,
            "local_columns": local_columns,
            "incoming_columns": arriving[2],
            "rows": rows,  # student columns with entries
            "row_starts": np.append(starts, len(row)),
            "by_row": by_row.reshape(-1),  # the distinct token of each entry, row after row
            "entry_part": part.reshape(-1),  # the number of its row in `rows`
            "token_order": order,  # entries, token after token
            "by_token": part.reshape(-1)[order],
            # where each column's part comes from, see Gather.slots
            "student_slots": student_slots,
            "teacher_slots": teacher_slots,
            "token_starts": np.searchsorted(by_row.reshape(-1)[order], np.arange(len(distinct) + 1)),
        }
        here = len(local_columns)
        columns = np.append(local_columns, np.arange(len(distinct) - here) + ownership.shard.rows + 2)
        nowhere = np.full(student.rows, ownership.shard.rows + 1)
        places = np.where(in_place > 0, np.arange(student.rows), np.where(empty, ownership.shard.rows, nowhere))
        places[row] = columns[by_row.reshape(-1)]
        tensors["places"] = places
        single = ((matrix.ids >= 0).sum(1) <= 1).all() and (matrix.weights[matrix.ids >= 0] == 1).all()
        whole = bool(single and loose.sum() > len(loose) / 2)  # of all ranks: the same on each
        sent, received = counts[me].tolist(), counts[:, me].tolist()
        if not counts.any():
            sent = received = []
        arrays = {k: np.ascontiguousarray(v) for k, v in tensors.items()}
        return cls(arrays, sent, received, counts.sum(axis=1), whole)

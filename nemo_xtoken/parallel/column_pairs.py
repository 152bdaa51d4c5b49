"""Two sides' columns brought together for the passes over pairs of tiles (`PairKernels`), over the ranks.

What :class:`~nemo_xtoken.parallel.exchange.VocabularyExchange` moves as whole tiles of probabilities is here a table:
of each chunk the few columns that are not in place.  The rest of a tile is read where it lies.
"""

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from nemo_xtoken.kernels.pair_kernels import (
    STUDENT_ENTRIES,
    STUDENT_OWN,
    STUDENT_REST,
    STUDENT_TABLE,
    TEACHER_OWN,
    TEACHER_REST,
    TEACHER_TABLE,
    ColumnPlan,
    PairKernels,
    TileLogits,
)
from nemo_xtoken.parallel.exchange import VocabularyExchange, weighted_sums
from nemo_xtoken.parallel.vocabulary_shard import VocabularyShard

__all__ = ["ColumnPairs", "ColumnTable"]


class ColumnTable(torch.nn.Module):
    """The columns of the teacher's vocabulary that an exchange brings something to, and that something.

    Args:
        exchange: of the side.

    Attributes:
        columns: int64 ``[d]``, increasing, whoever they come from.
    """

    columns: Tensor
    entry_columns: Tensor
    entry_weights: Tensor
    merged: Tensor
    merged_starts: Tensor
    ones: Tensor
    local: Tensor
    incoming: Tensor

    def __init__(self, exchange: VocabularyExchange) -> None:
        super().__init__()
        self.exchange = exchange
        columns = torch.cat([exchange.local_columns, exchange.incoming_columns]).cpu().numpy()
        distinct, place = np.unique(columns, return_inverse=True)
        place, here = place.reshape(-1), exchange.local_columns.numel()
        order = np.argsort(place, kind="stable")  # of a column what comes from lower ranks first
        tensors = {
            "columns": distinct,
            "entry_columns": exchange.rows.cpu().numpy()[exchange.by_token.cpu().numpy()],
            "merged": order,
            "merged_starts": np.searchsorted(place[order], np.arange(len(distinct) + 1)),
            "local": place[:here],
            "incoming": place[here:],
        }
        for name, value in tensors.items():
            self.register_buffer(name, torch.from_numpy(value), persistent=False)
        weights = exchange.weights[exchange.token_order]
        self.register_buffer("entry_weights", weights, persistent=False)
        self.register_buffer("ones", torch.ones(len(order), dtype=weights.dtype), persistent=False)

    def start(self, kernels: PairKernels, side: TileLogits, first: Tensor, temperature: float) -> "_UnderWay":
        """What the rows ``first [k]`` bring to the columns; what travels is under way when this returns.

        Collectives: one asynchronous all-to-all of ``[crossing, k]``.
        """
        starts = self.exchange.token_starts
        return _UnderWay(self, kernels.spread(side, first, self.entry_columns, self.entry_weights, starts, temperature))

    def back(self, slopes: Tensor) -> Tensor:
        """From ``[k, d]``, at this rank's columns, to the tokens of its entries.  Collectives: an all-to-all back."""
        exchange = self.exchange
        if not exchange.crosses:
            return slopes
        here = slopes.index_select(1, self.local)
        asked = slopes.index_select(1, self.incoming).t().contiguous()
        answered = slopes.new_empty((sum(exchange.sent), slopes.shape[0]))
        dist.all_to_all_single(answered, asked, exchange.sent, exchange.received, group=exchange.group)
        return torch.cat([here, answered.t()], dim=1)


class _UnderWay:
    def __init__(self, table: ColumnTable, sums: Tensor) -> None:
        exchange = table.exchange
        self._table, self._sums, self._waiting = table, sums, None
        if exchange.crosses:
            here = exchange.local_columns.numel()
            self._outgoing = sums[:, here:].t().contiguous()  # alive until it is sent
            received = sum(exchange.received)
            self._stacked = sums.new_empty((here + received, sums.shape[0]))
            self._stacked[:here] = sums[:, :here].t()
            splits = exchange.received, exchange.sent
            self._waiting = dist.all_to_all_single(
                self._stacked[here:], self._outgoing, *splits, group=exchange.group, async_op=True
            )

    def finish(self) -> Tensor:
        """``[k, d]``."""
        if self._waiting is None:
            return self._sums
        self._waiting.wait()
        table = self._table
        return weighted_sums(self._stacked, table.merged, table.merged_starts, table.ones).t().contiguous()


class ColumnPairs(torch.nn.Module):
    """A divergence column by column between ``W^T p_S`` and the teacher's distribution.

    Args:
        direction: of `losses.directions`.
        rest: what becomes of the mass in no column, see `ColumnPlan`.
        kernels: the passes.
        exchange: the student's W.
        gathering: an exchange among the teacher's columns; None: its own count where the student's W reaches them, and
            the others in REST.
    """

    kinds: Tensor
    slots_s: Tensor
    slots_t: Tensor

    def __init__(
        self,
        direction: str,
        rest: str,
        kernels: PairKernels,
        exchange: VocabularyExchange | None,
        gathering: VocabularyExchange | None = None,
    ) -> None:
        super().__init__()
        self.direction, self.rest, self.kernels = direction, rest, kernels
        self.of_student = None if exchange is None else ColumnTable(exchange)
        self.of_teacher = None if gathering is None else ColumnTable(gathering)
        self.entries = 0
        if exchange is None or self.of_student is None:
            return
        rows = exchange.teacher.rows
        kinds = torch.zeros(max(exchange.student.rows, rows), dtype=torch.uint8)
        slots_s, slots_t = (torch.full((rows,), -1, dtype=torch.int32) for _ in range(2))
        _mark(kinds, self.of_student, slots_s, (STUDENT_OWN, STUDENT_TABLE, STUDENT_REST))
        kinds[exchange.rows] |= STUDENT_ENTRIES
        if self.of_teacher is None:
            kinds[:rows] |= torch.where(exchange.reached, TEACHER_OWN, TEACHER_REST).to(kinds.dtype)
        else:
            _mark(kinds, self.of_teacher, slots_t, (TEACHER_OWN, TEACHER_TABLE, TEACHER_REST))
        if exchange.rows.numel():
            self.entries = int(exchange.row_starts.diff().max())
        self._keep(kinds, slots_s, slots_t)

    @classmethod
    def of_equal(
        cls, direction: str, kernels: PairKernels, student: VocabularyShard, teacher: VocabularyShard
    ) -> "ColumnPairs":
        """Of two models of one tokenizer: columns of the same number are pairs, and nothing is left to REST.

        Args:
            teacher: layout of its output layer, whose columns lie as the student's do.
        """
        made = cls(direction, "open", kernels, None)
        kinds = torch.zeros(max(student.rows, teacher.rows), dtype=torch.uint8)
        kinds[: student.valid_rows] |= STUDENT_OWN
        kinds[: teacher.valid_rows] |= TEACHER_OWN
        made._keep(kinds, *(torch.zeros(0, dtype=torch.int32) for _ in range(2)))
        return made

    def _keep(self, kinds: Tensor, slots_s: Tensor, slots_t: Tensor) -> None:
        for name, value in {"kinds": kinds, "slots_s": slots_s, "slots_t": slots_t}.items():
            self.register_buffer(name, value, persistent=False)

    @property
    def plan(self) -> ColumnPlan:
        """What the kernels take."""
        known = self.direction, self.rest, self.kinds, self.slots_s, self.slots_t
        if self.of_student is None:
            return ColumnPlan(*known, *(self.slots_s,) * 4, entries=0)
        exchange = self.of_student.exchange
        back = exchange.student_slots, exchange.row_starts, exchange.weights, exchange.by_row
        return ColumnPlan(*known, *back, entries=self.entries)

    def bytes_a_chunk(self, itemsize: int) -> float:
        """Bytes that a rank sends for a chunk, forward and backward together; the mean over the ranks."""
        sent = 0.0 if self.of_student is None else self.of_student.exchange.bytes_a_chunk(itemsize)
        return sent + (0.0 if self.of_teacher is None else self.of_teacher.exchange.bytes_a_chunk(itemsize) / 2)

    def start(self, side: TileLogits, first: Tensor, temperature: float) -> "_UnderWay | None":
        """The student's part that is not in place; see `ColumnTable.start`."""
        return None if self.of_student is None else self.of_student.start(self.kernels, side, first, temperature)

    def finish(
        self, started: "_UnderWay | None", teacher: TileLogits, first: Tensor, temperature: float
    ) -> tuple[Tensor, Tensor | None]:
        """Both sides' tables, ``[k, d_S]`` and ``[k, d_T]``."""
        gathered = None
        if self.of_teacher is not None:
            gathered = self.of_teacher.start(self.kernels, teacher, first, temperature).finish()
        if started is None:
            return teacher.z.new_empty((first.numel(), 0)), gathered
        return started.finish(), gathered

    def back(self, slopes: Tensor) -> Tensor:
        """The slopes at the tokens of this rank's entries, from those at its columns; see `ColumnTable.back`."""
        return slopes if self.of_student is None else self.of_student.back(slopes)


def _mark(kinds: Tensor, table: ColumnTable, slots: Tensor, bits: tuple[int, int, int]) -> None:
    """Which of a side's columns are in place, get something of a table, or are REST's."""
    own, tabled, rest = bits
    exchange = table.exchange
    kinds[: exchange.student.rows] |= (exchange.in_place > 0).to(kinds.dtype) * own
    kinds[table.columns] |= tabled
    kinds[exchange.empty] |= rest
    slots[table.columns] = torch.arange(table.columns.numel(), dtype=torch.int32)

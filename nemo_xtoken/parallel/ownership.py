"""Which rank holds which teacher token.

The teacher is frozen, so its output layer can be laid out at will when it is loaded.  Co-sharding gives each teacher
token that equals a student token to the rank that holds the student token, at the same local column.  Then the exact
rows of W are the identity on every rank, and only what the other rows send to other ranks has to travel.

Once laid out, a teacher token goes by its *owned id*: rank r holds the owned ids ``[r*rows, (r+1)*rows)``, so that a
:class:`~nemo_xtoken.parallel.vocabulary_shard.VocabularyShard` describes them as it does a student's.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

from nemo_xtoken.errors import InputError
from nemo_xtoken.parallel.vocabulary_shard import VocabularyShard, group_size
from nemo_xtoken.projection.matrix import ProjectionMatrix
from nemo_xtoken.run.layout import owned_rows

__all__ = ["Ownership", "reorder_rows", "spread_rows"]

#: Bytes of a weight that are in flight at a time while rows change ranks.
PIECE_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Ownership:
    """An order of the teacher's vocabulary over the ranks of a tensor-parallel group.

    Attributes:
        order: int64 ``[V_T]``, the teacher token of each owned id; a permutation.
        shard: the layout of the owned ids.
        tokens: of the teacher, where some of them are left out and are never predicted: then ``order`` has the others.
    """

    order: np.ndarray
    shard: VocabularyShard
    tokens: int | None = None

    def __post_init__(self) -> None:
        if self.order.shape != (self.shard.size,):
            raise InputError(
                f"an order of {self.order.size} tokens for a vocabulary of {self.shard.size}",
                "a permutation of the vocabulary",
                "make it with Ownership.co_sharded or Ownership.in_order",
            )

    @cached_property
    def owned(self) -> np.ndarray:
        """int64 ``[V_T]``, the owned id of each teacher token."""
        inverse = np.empty_like(self.order)
        inverse[self.order] = np.arange(self.order.size)
        return inverse

    @property
    def local_tokens(self) -> np.ndarray:
        """int64 ``[rows]``, the teacher token of each of this rank's rows; in padding numbers that no token has."""
        tokens = np.arange(self.shard.start, self.shard.start + self.shard.rows)
        tokens[: self.shard.valid_rows] = self.order[self.shard.start :][: self.shard.valid_rows]
        return tokens

    @classmethod
    def in_order(cls, shard: VocabularyShard, tokens: int | None = None) -> "Ownership":
        """Every token where Megatron's own layout has it.

        Args:
            tokens: of the teacher, where it has more than the layout: these are left out.
        """
        return cls(np.arange(shard.size), shard, tokens)

    @classmethod
    def even(cls, size: int, group: ProcessGroup | None) -> "Ownership":
        """Tokens in the order of their ids, the same number on each rank except the last."""
        ranks = group_size(group)
        return cls.in_order(VocabularyShard(size, owned_rows(size, ranks) * ranks, group))

    @classmethod
    def co_sharded(
        cls, matrix: ProjectionMatrix, student: VocabularyShard, beside: np.ndarray | None = None
    ) -> "Ownership":
        """Teacher tokens beside the student tokens that W maps to them.  Deterministic; the same on every rank.

        A token that is the only entry of a student token goes to that token's rank, and if there is such a column, to
        its column.  Then a token that other rows use goes to the rank of one of them.  Of several ranks the one with
        most rows of several entries has it, which sends most as it is; there, the smallest student id counts.  Then
        tokens go to the rank of the one that ``beside`` names.  The rest fill the gaps.

        Args:
            matrix: W, or the 0/1 matrix of the pairs that a loss compares.
            student: layout of the student's output layer.
            beside: int ``[V_T]``, for each teacher token one whose rank it would like, -1 for any.
        """
        ranks = student.ranks
        rows = owned_rows(matrix.teacher_size, ranks)
        shard = dataclasses.replace(student, size=matrix.teacher_size, padded=rows * ranks)
        slots = np.full(shard.size, -1, np.int64)  # owned id -> teacher token
        placed = np.zeros(shard.size, dtype=bool)
        room = np.clip(shard.size - rows * np.arange(ranks), 0, rows)
        entries = (matrix.ids >= 0).sum(axis=1)
        several = np.bincount(np.flatnonzero(entries > 1) // student.rows, minlength=ranks)

        def busiest(students: np.ndarray, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            """Each token once, with the student token of these that lies on the rank with most rows of several."""
            order = np.lexsort((students, -several[students // student.rows], tokens))
            distinct, first = np.unique(tokens[order], return_index=True)
            return distinct, students[order][first]

        single = np.flatnonzero(entries == 1)
        tokens, partners = busiest(single, matrix.ids[single].max(axis=1, initial=-1))
        rank, column = partners // student.rows, partners % student.rows
        fits = column < room[rank]
        slots[rank[fits] * rows + column[fits]] = tokens[fits]
        placed[tokens[fits]] = True
        _fill(slots, placed, tokens[~fits], rank[~fits], rows, room)
        users, slot = np.nonzero(matrix.ids >= 0)
        used = matrix.ids[users, slot].astype(np.int64)
        tokens, partners = busiest(users[~placed[used]], used[~placed[used]])
        _fill(slots, placed, tokens, partners // student.rows, rows, room)
        if beside is not None:
            owned = np.full(shard.size, -1, np.int64)
            owned[slots[slots >= 0]] = np.flatnonzero(slots >= 0)
            tokens = np.flatnonzero(~placed & (beside >= 0))
            tokens = tokens[owned[beside[tokens]] >= 0]
            _fill(slots, placed, tokens, owned[beside[tokens]] // rows, rows, room)
        slots[slots < 0] = np.flatnonzero(~placed)
        return cls(slots, shard)


def _fill(
    slots: np.ndarray, placed: np.ndarray, tokens: np.ndarray, rank: np.ndarray, rows: int, room: np.ndarray
) -> None:
    """Puts tokens on free columns of their ranks, in the order of their ids, as long as there are any."""
    for r in np.unique(rank):
        free = r * rows + np.flatnonzero(slots[r * rows : r * rows + room[r]] < 0)
        mine = np.sort(tokens[rank == r])[: len(free)]
        slots[free[: len(mine)]] = mine
        placed[mine] = True


@torch.no_grad()
def reorder_rows(weight: Tensor, held: VocabularyShard, ownership: Ownership) -> Tensor:
    """This rank's rows of a teacher's output layer in their new order; padding rows are 0.

    Args:
        weight: ``[V_padded/tp, H]``, this rank's rows as the checkpoint's loading left them.
        held: which rows those are, over the group of ``ownership``.

    Returns:
        ``[ownership.shard.rows, H]``.  Collectives: see :func:`spread_rows`.

    Raises:
        InputError: vocabularies of different sizes.
    """
    wanted = ownership.shard.size if ownership.tokens is None else ownership.tokens
    if held.size != wanted:
        raise InputError(
            f"a teacher's output layer for {held.size} tokens, a loss for {wanted}",
            "equal sizes",
            "give the teacher the tokenizer it was trained with",
        )
    group = ownership.shard.group
    sources = [0] if group is None else dist.get_process_group_ranks(group)
    return spread_rows(weight, held.rows, sources, group, [ownership])[0]


@torch.no_grad()
def spread_rows(
    weight: Tensor, rows: int, sources: Sequence[int], group: ProcessGroup | None, ownerships: Sequence[Ownership]
) -> list[Tensor]:
    """This rank's rows in each of some orders, of a layer that other ranks may hold than those that want it.

    Args:
        weight: on a source ``[rows, H]``, its rows; elsewhere ``[0, H]``, for width, type and device.
        rows: of each source.
        sources: the global ranks that hold the layer, in the order of its rows.
        group: the ranks that take part, sources among them.
        ownerships: the orders this rank wants, over whatever groups; none: it only takes part.

    Returns:
        ``[ownership.shard.rows, H]`` for each; padding rows are 0.  Collectives: broadcasts that carry the whole layer
        once through the group, in pieces of 64 MiB.
    """
    shards = [ownership.shard for ownership in ownerships]
    wanted = [
        torch.from_numpy(ownership.order[shard.start : shard.start + shard.valid_rows]).to(weight.device)
        for ownership, shard in zip(ownerships, shards, strict=True)
    ]
    out = [weight.new_zeros((shard.rows, weight.shape[1])) for shard in shards]
    step = max(1, PIECE_BYTES // max(1, weight.shape[1] * weight.element_size()))
    me, ranks = dist.get_rank() if group_size(group) > 1 else sources[0], group_size(group)
    for number, source in enumerate(sources):
        for start in range(0, rows, step):
            stop = min(start + step, rows)
            piece = (
                weight[start:stop].contiguous() if source == me else weight.new_empty((stop - start, weight.shape[1]))
            )
            if ranks > 1:
                dist.broadcast(piece, src=source, group=group)
            for tokens, target in zip(wanted, out, strict=True):
                local = tokens - (number * rows + start)
                mine = torch.nonzero((local >= 0) & (local < stop - start)).squeeze(1)
                target[mine] = piece[local[mine]]
    return out

"""What can be said at a boundary of chunks: the classes all of whose tokens can follow what stands before it.

At a boundary that both sides have, the student has said a token and the teacher has, and some continuations are
impossible on either side, since they would have merged with that token: after ``.`` a line break where ``.\\n`` is one
token.  A student that agrees with its teacher on texts never says them; the teacher, whose tokens merge otherwise,
does.  A class is *open* if each of its tokens can follow on its own side.  Then no text that begins in the class is
impossible on either side, so that models which agree on texts give the open classes equal masses up to one factor a
side, and the two distributions over open classes are equal.
"""

from collections import OrderedDict
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from nemo_xtoken.losses.chunks import KnownRows
from nemo_xtoken.parallel.ownership import Ownership
from nemo_xtoken.projection.prefixes import PrefixClasses

__all__ = ["Boundaries", "Following", "unpacked"]

#: Tables that are kept for each side, those of the tokens that were met last.
KEPT = 8192


class Following(Protocol):
    """Which tokens can come next: `vocab.neighbours.Neighbours`."""

    def key(self, before: int | None, last: int) -> object:
        """Equal where :meth:`possible` is."""
        ...

    def possible(self, before: int | None, last: int) -> np.ndarray:
        """bool ``[V]``."""
        ...


class Closed(NamedTuple):
    """Of the chunks of a tile.

    Attributes:
        bits: uint8 ``[k, ceil(columns / 8)]``, this rank's columns that are closed, eight a byte, the lowest bit first.
        own: bool ``[k]``, whether a class of the chunk's own first tokens is.
    """

    bits: np.ndarray
    own: np.ndarray


class Boundaries:
    """The closed classes of boundaries; what follows a token is tabulated when it is first met.

    Args:
        classes: of the pair of tokenizers.
        following: the student's tokens and the teacher's.
        ownership: a class lies at the column of the teacher token that names it.
    """

    def __init__(self, classes: PrefixClasses, following: tuple[Following, Following], ownership: Ownership) -> None:
        self.classes, self.following = (classes.student.classes, classes.teacher.classes), following
        shard = ownership.shard
        self._owned, self._rows, self._rank = ownership.owned, shard.rows, shard.start // shard.rows
        self._shape = shard.padded // shard.rows, -(-shard.rows // 8)
        self._made: tuple[OrderedDict[object, np.ndarray], ...] = OrderedDict(), OrderedDict()

    def closed(self, tile: tuple[KnownRows, KnownRows]) -> Closed:
        """
        Args:
            tile: the student's and the teacher's rows; the first tokens of chunks are of some class.
        """
        rows = [self._rows_of(number, side.before) for number, side in enumerate(tile)]
        bits = rows[0] | rows[1]
        firsts = [side.labels[side.first] for side in tile]
        owned = [self._owned[classes[first]] for classes, first in zip(self.classes, firsts, strict=True)]
        places = [(rank, column // 8, column % 8) for rank, column in (divmod(x, self._rows) for x in owned)]
        chunk = np.arange(len(bits))
        own = np.zeros(len(bits), bool)
        for rank, byte, bit in places:
            own |= (bits[chunk, rank, byte] >> bit) & 1 > 0
        for rank, byte, bit in places:  # two classes that are compared as one
            bits[chunk, rank, byte] |= (own.astype(np.uint8) << bit).astype(np.uint8)
        return Closed(bits[:, self._rank], own)

    def _rows_of(self, side: int, before: np.ndarray) -> np.ndarray:
        """uint8 ``[k, ranks, bytes]``."""
        found, made = np.zeros((len(before), *self._shape), np.uint8), self._made[side]
        for number, (last, earlier) in enumerate(before.tolist()):
            if last < 0:
                continue
            key = last, self.following[side].key(None if earlier < 0 else earlier, last)
            row = made.get(key)
            if row is None:
                row = made[key] = self._make(side, None if earlier < 0 else earlier, last)
                if len(made) > KEPT:
                    made.popitem(last=False)
            else:
                made.move_to_end(key)
            found[number] = row
        return found

    def _make(self, side: int, earlier: int | None, last: int) -> np.ndarray:
        classes = self.classes[side][~self.following[side].possible(earlier, last)]
        closed = np.zeros((self._shape[0], self._shape[1] * 8), bool)
        rank, column = np.divmod(self._owned[classes[classes >= 0]], self._rows)
        closed[rank, column] = True
        return np.packbits(closed, axis=1, bitorder="little")


def unpacked(bits: Tensor, columns: int) -> Tensor:
    """bool ``[k, columns]``: the columns that are open."""
    shifts = torch.arange(8, dtype=torch.uint8, device=bits.device)
    return ((bits.unsqueeze(2) >> shifts) & 1).view(bits.shape[0], -1)[:, :columns] == 0

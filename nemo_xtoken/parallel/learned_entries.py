"""W as parameters: the entries of a row are a softmax of its logits, so that every row stays a distribution."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from nemo_xtoken.parallel.exchange import VocabularyExchange
from nemo_xtoken.parallel.vocabulary_shard import group_size
from nemo_xtoken.projection.matrix import ProjectionMatrix

__all__ = ["LearnedProjection"]


class LearnedProjection(torch.nn.Module):
    """This rank's rows of W, as logits that start at log W.

    ``logits`` has k places a row, as W has, and is sharded as W is: along the student vocabulary, the output layer's
    padding rows included.  A row with a single entry is that entry whatever its logit, and a place without an entry is
    never read: neither gets a gradient.  The entries that there are stay, and with them the teacher tokens that W
    reaches: a softmax is never 0.

    Args:
        exchange: W, ready for use on this rank; its module may be on any device.
        matrix: the whole W that ``exchange`` was made from.

    Attributes:
        logits: float32 ``[V_S/tp * k]``, row after row, whatever precision the model around it is cast to: the steps of
            a W that is nearly there are smaller than what bfloat16 can tell apart.
        matrix: W at the start.
    """

    rows: Tensor
    places: Tensor
    unused: Tensor

    def __init__(self, exchange: VocabularyExchange, matrix: ProjectionMatrix) -> None:
        super().__init__()
        self.matrix, self.student = matrix, exchange.student
        self.width = max(1, int((matrix.ids >= 0).sum(axis=1).max(initial=0)))
        part = exchange.entry_part.cpu()
        slots = torch.arange(part.numel()) - exchange.row_starts.cpu()[part]
        places = part * self.width + slots
        rows = exchange.rows.cpu()
        unused = torch.ones(rows.numel() * self.width, dtype=torch.bool).index_fill(0, places, False)
        start = torch.zeros(exchange.student.rows, self.width)
        start[rows[part], slots] = exchange.weights.cpu().log()
        self.logits = torch.nn.Parameter(start.flatten())
        self.register_buffer("rows", rows, persistent=False)  # student columns with entries
        self.register_buffer("places", places, persistent=False)  # of each entry in the logits of these rows
        self.register_buffer("unused", unused.view(-1, self.width), persistent=False)

    def forward(self) -> Tensor:
        """The entries ``[E]``, in the order of ``VocabularyExchange.weights``; differentiable with respect to the
        logits."""
        return self._entries(self.logits)

    def _entries(self, logits: Tensor) -> Tensor:
        of_rows = logits.view(-1, self.width).index_select(0, self.rows)
        return of_rows.masked_fill(self.unused, -torch.inf).softmax(1).flatten().index_select(0, self.places)

    @torch.no_grad()
    def whole(self) -> ProjectionMatrix:
        """W as it is now, on every rank.

        Collective: an all-gather of this rank's entries over the tensor-parallel group.
        """
        mine = self._entries(self.logits.double()).cpu().numpy()
        parts = [(self.student.start + self.rows.cpu().numpy(), mine)]
        if (ranks := group_size(self.student.group)) > 1:
            parts = parts * ranks
            dist.all_gather_object(parts, parts[self.student.rank], group=self.student.group)
        moved = np.zeros(self.matrix.student_size, dtype=bool)
        moved[np.concatenate([rows for rows, _ in parts])] = True
        weights = self.matrix.weights.copy()
        tiny = np.finfo(np.float32).tiny  # an entry that underflows is one still
        weights[moved[:, None] & (self.matrix.ids >= 0)] = np.concatenate([w for _, w in parts]).clip(tiny)
        return dataclasses.replace(self.matrix, weights=weights, raw=None)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "LearnedProjection":
        """Follows the model to its device, but not to its precision."""

        def move(x: Tensor) -> Tensor:
            moved = fn(x)
            return x.to(moved.device) if moved.dtype != x.dtype else moved

        result: Any = super()._apply(move, recurse)
        return result

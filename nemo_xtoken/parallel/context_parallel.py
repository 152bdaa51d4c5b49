"""Sequences over a context-parallel group: which rank holds which positions, and moving rows to where they are scored.

Megatron cuts a sequence into twice as many parts as there are ranks and gives rank r the parts r and 2*cp-1-r, because
under a causal mask late positions cost more than early ones.  A loss on chunks wants neither that order nor those
borders: the chunks of a student and of a teacher cross them in different places.  So the last hidden states change
ranks once: every rank gets the rows of whole chunks.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

from nemo_xtoken.errors import InputError
from nemo_xtoken.parallel.vocabulary_shard import group_rank, group_size

__all__ = ["ContextLayout", "move_rows"]


@dataclass(frozen=True)
class ContextLayout:
    """The positions of a micro-batch that each rank of a context-parallel group holds.

    Attributes:
        positions: int64 ``[cp, n]``, the position in the flattened ``[b*T]`` batch of each row of each rank, -1 where a
            row is padding; every position is there once.  The same on all ranks.
        group: the context-parallel group; None: a single process.
        bounds: int64 ``[documents + 1]``, where the documents begin in the padded sequence over all ranks; None where
            the layout knows nothing of documents.
    """

    positions: Tensor
    group: ProcessGroup | None = None
    bounds: Tensor | None = None

    @classmethod
    def zigzag(
        cls, samples: int, length: int, group: ProcessGroup | None, device: torch.device | None = None
    ) -> "ContextLayout":
        """Every sample by itself, as Megatron slices ``[b, T]``; a rank's rows go sample after sample.

        Raises:
            InputError: a length that twice the number of ranks does not divide.
        """
        ranks = group_size(group)
        if ranks > 1 and length % (2 * ranks):
            raise InputError(
                f"a sequence of {length} positions, context parallel over {ranks} ranks",
                f"a multiple of {2 * ranks}",
                "change the length of the sequences or context_parallel_size",
            )
        flat = torch.arange(samples * length, device=device)
        if ranks == 1:
            return cls(flat[None], group)
        parts = flat.view(samples, 2 * ranks, -1).unbind(1)
        held = [torch.stack([parts[r], parts[-1 - r]], dim=1).flatten() for r in range(ranks)]
        return cls(torch.stack(held), group)

    @classmethod
    def by_document(cls, starts: Tensor, total: int, group: ProcessGroup | None, multiple: int = 1) -> "ContextLayout":
        """Every document by itself, as Transformer Engine wants the ``thd`` layout: one sequence of all of them.

        A document is padded to a multiple of 2*cp positions, at its end, where a causal mask hides it.

        Args:
            starts: int64 ``[D]``, the flat position of each document's first token, increasing, the first 0; padding of
                the batch counts as a document.
            total: b*T.
            multiple: of the rows of a rank (the tensor-parallel size under sequence parallelism); the last document is
                padded for it.
        """
        ranks = group_size(group)
        parts = 2 * ranks if ranks > 1 else 1
        sizes = torch.diff(starts, append=starts.new_tensor([total]))
        padded = (sizes + parts - 1) // parts * parts
        padded[-1] += (-padded.sum()) % (parts * multiple)
        bounds = torch.nn.functional.pad(padded.cumsum(0), (1, 0))
        document = torch.repeat_interleave(torch.arange(sizes.numel(), device=starts.device), padded)
        offset = torch.arange(document.numel(), device=starts.device) - bounds[document]
        source = torch.where(offset < sizes[document], starts[document] + offset, -1)
        part = offset // (padded[document] // parts)
        order = torch.argsort(torch.minimum(part, parts - 1 - part), stable=True)
        return cls(source[order].view(ranks, -1), group, bounds)

    @property
    def local(self) -> Tensor:
        """int64 ``[n]``, the positions of this rank's rows."""
        return self.positions[group_rank(self.group)]

    def take(self, values: Tensor, fill: float = 0) -> Tensor:
        """This rank's rows ``[n, ..]`` of ``values [b*T, ..]``; ``fill`` in padding."""
        taken = values[self.local.clamp(min=0)]
        taken[self.local < 0] = fill
        return taken

    def rows(self) -> Tensor:
        """int64 ``[b*T]``, the row of each position when all ranks' rows are put one after the other."""
        flat = self.positions.reshape(-1)
        real = torch.nonzero(flat >= 0).squeeze(1)
        return torch.empty_like(real).index_copy_(0, flat[real], real)


def move_rows(hidden: Tensor, layout: ContextLayout, wanted: Sequence[Tensor]) -> Tensor:
    """The rows that this rank wants, from the ranks that hold them; differentiable.

    Args:
        hidden: ``[n, H]``, this rank's rows of ``layout``.
        wanted: for each rank of the group, int64, the flat positions it wants; the same on all ranks; no position is
            wanted twice.

    Returns:
        ``[len(wanted[rank]), H]``, in the order wanted.  Collectives: one all-to-all of the rows that change ranks,
        forward, and its transpose, backward, where ``hidden`` has a gradient; positions nobody wants get 0.
    """
    return _Move.apply(_Route.of(layout, wanted), hidden)


@dataclass(frozen=True)
class _Route:
    """What this rank sends (``rows`` of its own, by receiver) and where it puts what comes (``places``, by sender)."""

    rows: Tensor
    places: Tensor
    sent: list[int]
    received: list[int]
    group: ProcessGroup | None

    @classmethod
    def of(cls, layout: ContextLayout, wanted: Sequence[Tensor]) -> "_Route":
        ranks, me = group_size(layout.group), group_rank(layout.group)
        here, n = layout.rows(), layout.positions.shape[1]
        rows = here[torch.cat(list(wanted))]
        receiver = torch.cat([torch.full_like(w, rank) for rank, w in enumerate(wanted)])
        mine = rows // n == me
        senders = here[wanted[me]] // n
        counts = torch.stack(
            [torch.bincount(receiver[mine], minlength=ranks), torch.bincount(senders, minlength=ranks)]
        )
        sent, received = counts.tolist()  # one wait for the device
        return cls(rows[mine] - me * n, torch.argsort(senders, stable=True), sent, received, layout.group)

    def exchange(self, x: Tensor, sent: list[int], received: list[int]) -> Tensor:
        if group_size(self.group) == 1:
            return x
        out = x.new_empty((sum(received), *x.shape[1:]))
        dist.all_to_all_single(out, x.contiguous(), received, sent, group=self.group)
        return out


class _Move(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, route: _Route, hidden: Tensor) -> Tensor:
        ctx.route, ctx.shape = route, hidden.shape
        arrived = route.exchange(hidden.index_select(0, route.rows), route.sent, route.received)
        return torch.empty_like(arrived).index_copy_(0, route.places, arrived)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[None, Tensor]:
        route = ctx.route
        back = route.exchange(g.index_select(0, route.places), route.received, route.sent)
        return None, g.new_zeros(ctx.shape).index_copy_(0, route.rows, back)

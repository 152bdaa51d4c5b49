"""From a batch's chunks and labels to the rows of logits that are needed.

Position t of the logits predicts token t+1, so a chunk that holds tokens a..b is scored by rows a-1..b-1.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from nemo_xtoken.data.batch import IGNORED
from nemo_xtoken.errors import InputError
from nemo_xtoken.kernels.pair_kernels import TileLogits

__all__ = [
    "MERGES",
    "FromLogits",
    "KnownRows",
    "Picked",
    "Probabilities",
    "ScoredRows",
    "device_of",
    "known_rows",
    "scored_chunks",
    "to_device",
    "tokens_before",
]

MERGES = ("chain_rule", "mean", "first")


@dataclass(frozen=True)
class ScoredRows:
    """The rows of one model's logits that a micro-batch needs, in order, and the chunks as runs of them.

    Attributes:
        rows: int64 ``[n]``, position in the flattened ``[b*T]`` sequence.
        labels: int64 ``[n]``, the token each row predicts.
        first: int64 ``[K]``, index into ``rows`` of each chunk's first row.
        tokens: int64 ``[K]``, rows of each chunk (they follow each other).
        chunk: int64 ``[n]``, the chunk of each row, -1 for none.
        before: int64 ``[K, 2]``, the token before each chunk and the one before that, -1 where it is not known.
    """

    rows: Tensor
    labels: Tensor
    first: Tensor
    tokens: Tensor
    chunk: Tensor
    before: Tensor

    @classmethod
    def build(
        cls, labels: Tensor, first: Tensor, tokens: Tensor, only_chunks: bool, before: Tensor | None = None
    ) -> "ScoredRows":
        """Selects rows and numbers them.

        Args:
            labels: int64 ``[b*T]``, ``IGNORED`` where there is nothing to predict.
            first: int64 ``[K]``, flat position of each chunk's first row, increasing.
            tokens: int64 ``[K]``, rows of each chunk.
            only_chunks: select the chunks' rows alone (teacher), not every labelled one (student).
            before: see there; None: not known of any.

        Raises:
            InputError: a chunk has a row without label, or chunks overlap or are out of order.
        """
        covered = torch.zeros(labels.numel() + 1, dtype=torch.int64, device=labels.device)
        covered.index_add_(0, first, torch.ones_like(first))
        covered.index_add_(0, first + tokens, -torch.ones_like(first))
        inside = covered.cumsum(0)[:-1]
        labelled = labels != IGNORED
        wrong = (inside > 1).any() | ((inside > 0) & ~labelled).any() | (first[1:] <= first[:-1]).any()
        if bool(wrong):  # one wait for the device
            raise InputError(
                "chunks that overlap, are out of order or cover a position without a label",
                "chunks in order, each over positions that predict a token of the same document",
                "rebuild the batch with nemo_xtoken.data, or check the collate function",
            )
        rows = torch.nonzero(inside > 0 if only_chunks else labelled).squeeze(1)
        number = torch.full_like(labels, -1)
        number[rows] = torch.arange(rows.numel(), device=labels.device)
        owner = torch.zeros(labels.numel() + 1, dtype=torch.int64, device=labels.device)
        owner.index_add_(0, first, torch.ones_like(first))
        chunk = torch.where(inside > 0, owner.cumsum(0)[:-1] - 1, -1)
        if before is None:
            before = first.new_full((first.numel(), 2), -1)
        return cls(rows, labels[rows], number[first], tokens.contiguous(), chunk[rows], before)

    def part(self, rows: slice, chunks: slice) -> "ScoredRows":
        """A run of the rows with the chunks that lie in it, numbered from 0.  Row positions stay those of the batch."""
        chunk = self.chunk[rows]
        return ScoredRows(
            self.rows[rows],
            self.labels[rows],
            self.first[chunks] - rows.start,
            self.tokens[chunks],
            torch.where(chunk >= 0, chunk - chunks.start, -1),
            self.before[chunks],
        )


def tokens_before(tokens: Tensor, positions: Tensor, sample: Tensor, row: Tensor) -> Tensor:
    """``ScoredRows.before`` of chunks that begin at these rows.

    Args:
        tokens: int64 ``[b, T]``, of a side.
        positions: int64 ``[b, T]``, from 0 on in every document: nothing before it is known.
        sample, row: int64 ``[K]``.
    """
    earlier = tokens[sample, (row - 1).clamp_min(0)]
    return torch.stack([tokens[sample, row], earlier.where(positions[sample, row] > 0, -1)], dim=1)


def scored_chunks(
    selection: torch.nn.Module,
    student_labels: Tensor,
    teacher_labels: Tensor,
    chunks: Tensor,
    positions: Tensor | None = None,
) -> Tensor:
    """The chunks that a loss scores, as it takes them.

    Args:
        selection: of the loss, see ``ChunkDivergence.selection``.  To it each document is a sample of its own, so that
            it takes no chunks of two together.
        student_labels, teacher_labels, chunks: as in ``TeacherSignal``.
        positions: int64 ``[b, T_S]``, the student's, from 0 on in every document; None: each sample is a document.
    """
    if positions is None:
        found: Tensor = selection(student_labels, teacher_labels, chunks)
        return chunks[found] if found.dtype == torch.bool else found
    labels = [each.reshape(1, -1).expand(positions.numel() + 1, -1) for each in (student_labels, teacher_labels)]
    to_flat = chunks.new_tensor([0, student_labels.shape[1], 0, teacher_labels.shape[1], 0])
    flat = chunks + chunks[:, :1] * to_flat
    flat[:, 0] = (positions == 0).flatten().cumsum(0)[flat[:, 1]]
    found = selection(*labels, flat)
    if found.dtype == torch.bool:
        return chunks[found]
    sample = found[:, 1:2] // student_labels.shape[1]
    return torch.cat([sample, (found - sample * to_flat)[:, 1:]], dim=1)


class Picked(Protocol):
    """A tile's probabilities on this rank."""

    def __call__(self, rows: Tensor, columns: Tensor) -> Tensor:
        """``[e]``, those at rows ``[e]`` and this rank's columns ``[e]``."""
        ...

    def whole(self, rows: Tensor) -> Tensor:
        """``[r, V/tp]``, those of whole rows; a copy."""
        ...


class Probabilities(NamedTuple):
    """`Picked` of ``p [n, V/tp]``."""

    p: Tensor

    def __call__(self, rows: Tensor, columns: Tensor) -> Tensor:
        """See there."""
        return self.p[rows, columns]

    def whole(self, rows: Tensor) -> Tensor:
        """See there."""
        return self.p.index_select(0, rows)


class FromLogits(NamedTuple):
    """`Picked` of a side's logits at a temperature."""

    side: TileLogits
    temperature: float

    def __call__(self, rows: Tensor, columns: Tensor) -> Tensor:
        """See there."""
        return torch.exp(self.side.z[rows, columns] / self.temperature - self.side.norms[rows])

    def whole(self, rows: Tensor) -> Tensor:
        """See there."""
        z = self.side.z.index_select(0, rows)
        return z.div_(self.temperature).sub_(self.side.norms[rows].unsqueeze(1)).exp_()


class KnownRows(NamedTuple):
    """What is known of one side of a tile on the CPU; attributes as in `ScoredRows`."""

    first: np.ndarray
    tokens: np.ndarray
    labels: np.ndarray
    before: np.ndarray


def known_rows(tiles: Sequence[tuple[ScoredRows, ScoredRows] | None]) -> list[tuple[KnownRows, KnownRows] | None]:
    """Of the student and the teacher for each of a micro-batch's tiles; one wait for the device."""
    sides = [side for tile in tiles if tile is not None for side in tile]
    if not sides:
        return [None for _ in tiles]
    parts = [part for s in sides for part in (s.first, s.tokens, s.labels, s.before.view(-1))]
    sizes = [part.numel() for part in parts]
    found = iter(np.split(torch.cat(parts).cpu().numpy(), np.cumsum(sizes)[:-1]))

    def side() -> KnownRows:
        known = KnownRows(*(next(found) for _ in range(4)))
        return known._replace(before=known.before.reshape(-1, 2))

    return [None if tile is None else (side(), side()) for tile in tiles]


def to_device(made: Sequence[dict[str, Any] | None], device: torch.device) -> list[dict[str, Any] | None]:
    """Groups of numbers, arrays and groups, with all arrays as int64 tensors, in one copy to the device.

    Each begins at a multiple of 16 bytes: Triton compiles a kernel anew for pointers that do not.
    """
    groups = [group for group in made if group is not None]
    arrays = [x for group in groups for x in _arrays(group)]
    room = [len(x) + len(x) % 2 for x in arrays]
    flat = np.zeros(sum(room), np.int64)
    for x, end, taken in zip(arrays, np.cumsum(room), room, strict=True):
        flat[end - taken : end - taken + len(x)] = x
    whole = torch.from_numpy(flat)
    if device.type == "cuda":
        whole = whole.pin_memory()
    split = whole.to(device, non_blocking=True).split(room)
    parts = iter([part[: len(x)] for part, x in zip(split, arrays, strict=True)])
    return [None if group is None else _taken(group, parts) for group in made]


def _arrays(group: dict[str, Any]) -> Iterator[np.ndarray]:
    for value in group.values():
        if isinstance(value, dict):
            yield from _arrays(value)
        elif isinstance(value, np.ndarray):
            yield value


def _taken(group: dict[str, Any], parts: Iterator[Tensor]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in group.items():
        if isinstance(value, dict):
            found[name] = _taken(value, parts)
        else:
            found[name] = next(parts) if isinstance(value, np.ndarray) else value
    return found


def device_of(tiles: Sequence[tuple[ScoredRows, ScoredRows] | None]) -> torch.device:
    """Where the rows of these tiles are."""
    return next((tile[0].first.device for tile in tiles if tile is not None), torch.device("cpu"))

"""Which rank of a tensor-parallel group holds which rows of a vocabulary, as Megatron lays out its output layer."""

from dataclasses import dataclass

import torch.distributed as dist
from torch.distributed import ProcessGroup

from nemo_xtoken.errors import InputError

__all__ = ["VocabularyShard", "group_rank", "group_size"]


def group_size(group: ProcessGroup | None) -> int:
    """Ranks in ``group``; None stands for a single process."""
    return 1 if group is None else dist.get_world_size(group)


def group_rank(group: ProcessGroup | None) -> int:
    """This process's rank in ``group``; None stands for a single process."""
    return 0 if group is None else dist.get_rank(group)


@dataclass(frozen=True)
class VocabularyShard:
    """The rows ``[start, start + rows)`` of a padded vocabulary that this rank of the group holds.

    Attributes:
        size: tokens in the tokenizer's vocabulary (V); ids from here on are padding and never predicted.
        padded: rows of the output layer over all ranks, a multiple of the group's size, at least ``size``.
        group: the tensor-parallel group the rows are sharded over; None: one process has them all.
    """

    size: int
    padded: int
    group: ProcessGroup | None = None

    def __post_init__(self) -> None:
        ranks = self.ranks
        if self.padded < self.size:
            raise InputError(
                f"an output layer of {self.padded} rows for a vocabulary of {self.size} tokens",
                "at least one row for each token",
                "use the tokenizer the model was trained with, or a model with a larger output layer",
            )
        if self.padded % ranks:
            raise InputError(
                f"an output layer of {self.padded} rows over {ranks} tensor-parallel ranks",
                "a number of rows that the ranks divide",
                f"pad it to {-(-self.padded // ranks) * ranks} rows (make_vocab_size_divisible_by)",
            )

    @classmethod
    def of_local_rows(cls, size: int, rows: int, group: ProcessGroup | None) -> "VocabularyShard":
        """The shard of a layer whose part on this rank has ``rows`` rows."""
        return cls(size, rows * group_size(group), group)

    @property
    def ranks(self) -> int:
        """Ranks that the rows are sharded over."""
        return group_size(self.group)

    @property
    def rank(self) -> int:
        """This process's number among them."""
        return group_rank(self.group)

    @property
    def rows(self) -> int:
        """Rows on this rank."""
        return self.padded // self.ranks

    @property
    def start(self) -> int:
        """First id on this rank."""
        return self.rank * self.rows

    @property
    def valid_rows(self) -> int:
        """Rows on this rank that are tokens; the rest, always the last ones, are padding."""
        return max(0, min(self.rows, self.size - self.start))

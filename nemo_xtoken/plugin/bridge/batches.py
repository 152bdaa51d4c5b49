"""Micro-batches for Bridge's training loop, which takes any iterator (``dataloader_type="external"``)."""

from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from nemo_xtoken.data.batch import Batch, collate
from nemo_xtoken.data.workers import heed_parent_alone
from nemo_xtoken.training.micro_batch import MicroBatch, on_device

__all__ = ["HeldOutBatches", "MicroBatches", "StepBatches"]


class MicroBatches(torch.utils.data.Sampler[list[int]]):
    """Indices of a data-parallel rank's micro-batches, in Megatron's order: global batch after global batch.

    Args:
        total: samples of the data set.
        consumed: of them, that were trained on before.
        size: samples of a micro-batch.
        rank, ranks: data parallel.
    """

    def __init__(self, total: int, consumed: int, size: int, rank: int, ranks: int) -> None:
        self.total, self.consumed, self.size, self.rank, self.ranks = total, consumed, size, rank, ranks

    def __iter__(self) -> Iterator[list[int]]:
        unit = self.size * self.ranks
        for start in range(self.consumed, self.total - unit + 1, unit):
            first = start + self.rank * self.size
            yield list(range(first, first + self.size))

    def __len__(self) -> int:
        return max(0, self.total - self.consumed) // (self.size * self.ranks)


class StepBatches:
    """The training batches.  A step's are fetched and prepared at once, before its schedule asks for them.

    Args:
        samples: the data set, as long as the run.
        size: samples of a micro-batch.
        workers: processes that read samples; 0: this one.
    """

    def __init__(self, samples: Dataset[Batch], size: int, workers: int = 0) -> None:
        self.samples, self.size, self.workers = samples, size, workers
        self._loader: Iterator[Batch] = iter(())
        self._ready: Iterator[MicroBatch] = iter(())

    def start(self, consumed: int, rank: int, ranks: int) -> None:
        """Continues after the last sample that was trained on.

        Args:
            consumed: samples, over all ranks.
            rank, ranks: data parallel.
        """
        order = MicroBatches(len(self.samples), consumed, self.size, rank, ranks)  # type: ignore[arg-type]
        self._loader = iter(_loader(self.samples, order, self.workers))

    def fetch(self, count: int) -> list[Batch]:
        """The next micro-batches, on this rank's device."""
        return [on_device(next(self._loader)) for _ in range(count)]

    def hand_out(self, ready: Iterator[MicroBatch]) -> None:
        """What the schedule gets when it asks."""
        self._ready = ready

    def __iter__(self) -> "StepBatches":
        return self

    def __next__(self) -> MicroBatch:
        return next(self._ready)


class HeldOutBatches:
    """The held-out batches, over and over: an evaluation takes each once, a global batch at a time.

    Args:
        samples: of whole global batches.
        size: samples of a micro-batch.
        whole: samples of a global batch.
    """

    def __init__(self, samples: Dataset[Batch], size: int, whole: int) -> None:
        self.samples, self.size, self.whole = samples, size, whole
        self._order: MicroBatches | None = None
        self._loader: Iterator[Batch] = iter(())
        self._ready: Iterator[MicroBatch] = iter(())

    def start(self, rank: int, ranks: int) -> None:
        """Begins with the first.

        Args:
            rank, ranks: data parallel.
        """
        self._order = MicroBatches(len(self.samples), 0, self.size, rank, ranks)  # type: ignore[arg-type]
        self._loader = iter(())

    def __len__(self) -> int:
        """Micro-batches of an evaluation, on this rank."""
        assert self._order is not None, "start comes first"
        return len(self._order)

    @property
    def of_one(self) -> int:
        """Micro-batches of a global batch, on this rank."""
        assert self._order is not None, "start comes first"
        return self.whole // (self.size * self._order.ranks)

    def fetch(self) -> list[Batch]:
        """Those of the next global batch, on this rank's device."""
        return [on_device(self._next()) for _ in range(self.of_one)]

    def hand_out(self, ready: Iterator[MicroBatch]) -> None:
        """What the schedule gets when it asks."""
        self._ready = ready

    def __iter__(self) -> "HeldOutBatches":
        return self

    def __next__(self) -> MicroBatch:
        return next(self._ready)

    def _next(self) -> Batch:
        assert self._order is not None, "start comes first"
        batch = next(self._loader, None)
        if batch is None:
            self._loader = iter(_loader(self.samples, self._order, 0))
            batch = next(self._loader)
        return batch


def _loader(samples: Dataset[Batch], order: Any, workers: int) -> DataLoader[Batch]:
    return DataLoader(
        samples,
        batch_sampler=order,
        num_workers=workers,
        collate_fn=collate,
        worker_init_fn=heed_parent_alone,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),  # not the global generator, which belongs to the training
    )

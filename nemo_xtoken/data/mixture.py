"""Several data sets as one: mixed by weights for training, one after the other, in whole batches, for validation."""

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from nemo_xtoken.data.batch import IGNORED, Batch
from nemo_xtoken.data.dataset import DistillationDataset, checked_length
from nemo_xtoken.data.mixing import Schedule, shares_of

__all__ = ["JoinedDataset", "MixedDataset", "WholeBatches", "sources_of"]


class _Several(Dataset[Batch]):
    def __init__(self, sources: Mapping[str, DistillationDataset], *settings: Any) -> None:
        self.names, self.sources = tuple(sources), tuple(sources.values())
        described = repr((*((name, data.fingerprint) for name, data in sources.items()), *settings))
        #: see `DistillationDataset.fingerprint`
        self.fingerprint = hashlib.sha256(described.encode()).hexdigest()

    def locate(self, index: int) -> tuple[int, int]:
        """Number of the source, and the index in it."""
        raise NotImplementedError

    def __len__(self) -> int:
        raise NotImplementedError

    def __getitem__(self, index: int) -> Batch:
        """The source's sample, numbered by ``index``."""
        source, number = self._located(index)
        return self.sources[source][number].numbered(index)

    def describe(self, index: int) -> list[dict[str, Any]]:
        """Where a sample comes from, a dictionary per piece, with the name of its source."""
        source, number = self._located(index)
        return [{"source": self.names[source]} | piece for piece in self.sources[source].describe(number)]

    def _located(self, index: int) -> tuple[int, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        return self.locate(int(index))


class MixedDataset(_Several):
    """Samples of several sources by turns, as often as their weights say.  Each goes through epochs of its own.

    Sample i depends on the sources, their weights, the seed and i alone, so that the index is all that a resumed run
    needs to know, whatever its layout.

    Args:
        sources: by name.
        weights: of each.
        num_samples: what ``len`` says; default as many as it takes to have all of every source.

    Raises:
        InputError: a weight that is not positive, or ``num_samples`` below 1.
    """

    def __init__(
        self, sources: Mapping[str, DistillationDataset], weights: Mapping[str, float], num_samples: int | None = None
    ) -> None:
        schedule = Schedule(shares_of(weights))
        if num_samples is None:
            num_samples = 1 + max(schedule.index_of(k, d.epoch_length - 1) for k, d in enumerate(sources.values()))
        counts = schedule.counts(checked_length(num_samples))
        super().__init__(
            {name: data.resized(max(1, n)) for (name, data), n in zip(sources.items(), counts, strict=True)},
            schedule.shares,
        )
        self.schedule, self._num_samples = schedule, num_samples

    def __len__(self) -> int:
        return self._num_samples

    def locate(self, index: int) -> tuple[int, int]:
        """See `Schedule`."""
        return self.schedule[index]

    def epochs(self, samples: int) -> dict[str, float]:
        """How often each source has been gone through after so many samples."""
        counts = self.schedule.counts(samples)
        return {n: c / d.epoch_length for n, c, d in zip(self.names, counts, self.sources, strict=True)}

    def __str__(self) -> str:
        epochs = self.epochs(len(self))
        return "\n".join(
            f"{name}: {share / self.schedule.length:.2%} of the samples, {epochs[name]:.2f} epochs of "
            f"{data.epoch_length:,} samples"
            for name, share, data in zip(self.names, self.schedule.shares, self.sources, strict=True)
        )


class JoinedDataset(_Several):
    """One epoch of each source, one after the other."""

    def __init__(self, sources: Mapping[str, DistillationDataset]) -> None:
        super().__init__(sources)
        self._ends = np.cumsum([data.epoch_length for data in self.sources])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def locate(self, index: int) -> tuple[int, int]:
        """In the order of the sources."""
        source = int(np.searchsorted(self._ends, index, "right"))
        return source, index - (int(self._ends[source - 1]) if source else 0)


class WholeBatches(Dataset[Batch]):
    """A data set filled up to a multiple of the batch by samples without labels, which count for nothing."""

    def __init__(self, samples: DistillationDataset | MixedDataset | JoinedDataset, batch: int) -> None:
        self.samples = samples
        self.length = -(-len(samples) // batch) * batch

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Batch:
        if index < len(self.samples):
            return self.samples[index]
        sample = self.samples[0].numbered(index)
        student = replace(sample.student, labels=torch.full_like(sample.student.labels, IGNORED))
        return Batch(
            student,
            tuple(
                replace(
                    side,
                    labels=torch.full_like(side.labels, IGNORED),
                    chunks=side.chunks[:0],
                    beginnings=side.beginnings[:0],
                )
                for side in sample.teachers
            ),
        )


def sources_of(samples: Dataset[Any] | None) -> tuple[DistillationDataset, ...]:
    """The sources of a run's training data or held-out text; none of what is something else."""
    if isinstance(samples, WholeBatches):
        samples = samples.samples
    several = samples.sources if isinstance(samples, _Several) else (samples,)
    return tuple(one for one in several if isinstance(one, DistillationDataset))

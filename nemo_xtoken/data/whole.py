"""Held-out samples for training loops that evaluate whole global batches."""

from dataclasses import replace

import torch
from torch.utils.data import Dataset

from nemo_xtoken.data.batch import IGNORED, Batch
from nemo_xtoken.data.dataset import DistillationDataset
from nemo_xtoken.data.mixture import JoinedDataset, MixedDataset

__all__ = ["WholeBatches"]


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
                replace(side, labels=torch.full_like(side.labels, IGNORED), chunks=side.chunks[:0])
                for side in sample.teachers
            ),
        )

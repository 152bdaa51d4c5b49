"""Held-out samples for training loops that evaluate whole global batches."""

from typing import Any

import numpy as np
from torch.utils.data import Dataset

from nemo_xtoken.data.dataset import IGNORE, DistillationDataset
from nemo_xtoken.data.mixture import JoinedDataset, MixedDataset

__all__ = ["WholeBatches"]


class WholeBatches(Dataset[Any]):
    """A data set filled up to a multiple of the batch by samples without labels, which count for nothing."""

    def __init__(self, samples: DistillationDataset | MixedDataset | JoinedDataset, batch: int) -> None:
        self.samples = samples
        self.length = -(-len(samples) // batch) * batch

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        if index < len(self.samples):
            return self.samples[index]
        empty = {name: value.copy() for name, value in self.samples[0].items()}
        for name, value in empty.items():
            if name.endswith("_labels"):
                value[:] = IGNORE
            elif name.endswith("_chunks"):
                empty[name] = value[:0]
        return empty | {"sample_id": np.array(index, np.int64)}

"""The data as Bridge's configuration holds it.  Imports Bridge."""

from dataclasses import dataclass
from typing import Any, Optional

from megatron.bridge.training.config import DatasetBuildContext, DatasetProvider

from nemo_xtoken.plugin.bridge.batches import HeldOutBatches, StepBatches

__all__ = ["AlignedText"]


@dataclass
class AlignedText(DatasetProvider):
    """Hands batches that are there already to Bridge's loop, which takes them as they are.

    What the batches are made of is no part of Bridge's configuration: `with_batches` gives them.
    """

    def with_batches(self, train: StepBatches, held_out: Optional[HeldOutBatches]) -> "AlignedText":
        """Sets the batches."""
        self._batches = train, held_out
        return self

    def build_datasets(self, context: DatasetBuildContext) -> tuple[Any, Any, Any]:
        """Training, held-out, and no test batches."""
        return *self._batches, None

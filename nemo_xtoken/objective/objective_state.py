"""What the objective of a run is at the step at hand: it changes from step to step, and the checkpoint keeps it."""

from collections.abc import Mapping
from typing import Any

import torch

from nemo_xtoken.kernels.choice import kernels_for
from nemo_xtoken.objective.scale import DynamicScale, ObjectiveConfig, StepCounts
from nemo_xtoken.objective.teacher_weights import TeacherWeights

__all__ = ["ObjectiveState"]


class ObjectiveState:
    """The factor on the distillation term, the teachers' weights, and the counts of the step's global batch.

    Attributes:
        counts: of the step at hand.
        kernels: what goes over the tiles, for the whole run.

    Args:
        config: how the terms add up.
        weights: name -> weight of each teacher, in the order of their sides in a batch; none for cross-entropy alone.

    Raises:
        InputError: a weight that is not a number above 0, or kernels that are unavailable on this machine.
    """

    def __init__(self, config: ObjectiveConfig, weights: Mapping[str, float]) -> None:
        self.config = config
        self.scale = DynamicScale(config)
        self.teacher_weights = TeacherWeights(config.teacher_weights, weights)
        self.counts = StepCounts(tokens=0)
        self.kernels = kernels_for(config.kernels, torch.cuda.is_available())

    @property
    def teacher_names(self) -> tuple[str, ...]:
        """In the order of their sides in a batch."""
        return tuple(self.teacher_weights.weights)

    def state_dict(self) -> dict[str, Any]:
        """The dynamic scale, and what the weights follow from."""
        return {"scale_ratio": self.scale.ratio, "teacher_weights": self.teacher_weights.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Puts them back."""
        self.scale.ratio = float(state["scale_ratio"])
        if "teacher_weights" in state:  # not in the checkpoints of runs from before there were several teachers
            self.teacher_weights.load_state_dict(state["teacher_weights"])

"""The objective of a step, ``CE + scale * KD``, put together so that it does not depend on the parallel layout."""

import math
from dataclasses import dataclass
from typing import Union

from torch import Tensor

from nemo_xtoken.errors import InputError
from nemo_xtoken.losses.base import LossSum

__all__ = ["DynamicScale", "ObjectiveConfig", "StepCounts", "combine"]

DYNAMIC = ("dynamic", "dynamic_per_microbatch")


@dataclass
class ObjectiveConfig:
    """How cross-entropy and distillation add up.

    Attributes:
        scale: the factor on the distillation term.  A number is fixed; 0 trains on cross-entropy alone and needs no
            teacher.  ``"dynamic"`` gives both terms the same size: the ratio of the previous step's global means (1 at
            the first step), which is the same in every layout.  ``"dynamic_per_microbatch"`` is the paper's form, the
            ratio within each micro-batch, which is not.
    """

    scale: Union[float, str] = "dynamic"  # noqa: UP007 (nemo_run's command line reads this)

    def __post_init__(self) -> None:
        good = self.scale in DYNAMIC
        if not isinstance(self.scale, str):
            good = math.isfinite(self.scale) and self.scale >= 0
        if not good:
            raise InputError(
                f"objective.scale={self.scale!r}",
                f"a number from 0 up, or one of {', '.join(DYNAMIC)}",
                "choose one of these; dynamic is the default",
            )

    @property
    def needs_teacher(self) -> bool:
        """False when the distillation term is switched off."""
        return self.scale != 0


@dataclass(frozen=True)
class StepCounts:
    """What a global batch holds over all micro-batches and data-parallel and context-parallel ranks."""

    tokens: int
    chunks: int


class DynamicScale:
    """The factor on the distillation term; its state is one number, kept in the checkpoint."""

    def __init__(self, config: ObjectiveConfig) -> None:
        self.config = config
        self.ratio = 1.0

    def factor(self, ce: LossSum, kd: LossSum) -> Tensor | float:
        """The factor for one micro-batch; carries no gradient."""
        if self.config.scale == "dynamic_per_microbatch":
            kd_mean = kd.total.detach() / max(kd.count, 1)
            ratio = ce.total.detach() / max(ce.count, 1) / kd_mean
            return ratio.where(kd_mean > 0, ratio.new_ones(()))
        return self._known

    def mean(self, ce_mean: float, kd_mean: float) -> float:
        """The factor of the step whose global means these are, for reports; before :meth:`update` takes them in."""
        if self.config.scale == "dynamic_per_microbatch":
            return ce_mean / kd_mean if kd_mean > 0 else 1.0
        return self._known

    @property
    def _known(self) -> float:
        """The factor where it is known before the step."""
        return self.ratio if self.config.scale == "dynamic" else float(self.config.scale)

    def update(self, ce_mean: float, kd_mean: float) -> None:
        """Takes in the global means of the step just done.  A step without distillation terms changes nothing."""
        if ce_mean > 0 and kd_mean > 0 and math.isfinite(ce_mean / kd_mean):
            self.ratio = ce_mean / kd_mean


def combine(ce: LossSum, kd: LossSum | None, scale: DynamicScale, counts: StepCounts) -> Tensor:
    """A micro-batch's share of the step's objective, times the global number of tokens.

    The caller divides by ``counts.tokens`` once, after summing over micro-batches and data-parallel ranks; then the
    result is ``CE mean + scale * KD mean`` over the global batch, whatever the layout.
    """
    if kd is None or counts.chunks == 0:
        return ce.total
    return ce.total + scale.factor(ce, kd) * kd.total * (counts.tokens / counts.chunks)

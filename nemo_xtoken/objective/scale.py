"""The objective of a step, ``CE + scale * sum_m alpha_m KD_m``, which does not depend on the layout."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Optional, Union

import torch
from torch import Tensor

from nemo_xtoken.errors import InputError
from nemo_xtoken.kernels.choice import check_kernels
from nemo_xtoken.losses.base import LossSum
from nemo_xtoken.objective.teacher_weights import STATIC, TeacherWeights

__all__ = ["DynamicScale", "ObjectiveConfig", "StepCounts", "kd_weights"]

DYNAMIC = ("dynamic", "dynamic_per_microbatch")


@dataclass
class ObjectiveConfig:
    """How cross-entropy and distillation add up.

    Attributes:
        scale: the factor on the distillation term.  A number is fixed; 0 trains on cross-entropy alone and needs no
            teacher.  ``"dynamic"`` gives both terms the same size: the ratio of the previous step's global means (1 at
            the first step), which is the same in every layout.  ``"dynamic_per_microbatch"`` is the paper's form, the
            ratio within each micro-batch, which is not, and makes every logit twice.  When 1 is better:
            docs/learning.md#defaults.
        teacher_weights: the weights alpha of several teachers.  ``"static"``: each teacher's own ``weight``.  Others:
            the paper's adaptive forms, a softmax over the teachers of how well they know the text, by the previous
            step's global means per student token: ``"cross_entropy"`` (minus the teacher's own on the text),
            ``"entropy"`` (minus that of its predictions), ``"confidence"`` (their largest probability).  Static beside
            confidence: docs/learning.md#defaults.
        tile_mib: memory that the loss may use on a rank for a tile of logits, in MiB; by default what suits the device.
            It decides how many positions are compared at a time, and nothing of the result.
        kernels: what goes over a tile: ``"torch"``, ``"triton"`` (NVIDIA GPUs; fewer passes over the memory), or
            ``"auto"``, Triton's where it can.  Triton's have not run on a GPU yet.
    """

    scale: Union[float, str] = "dynamic"
    teacher_weights: str = STATIC
    tile_mib: Optional[int] = None
    kernels: str = "torch"

    def __post_init__(self) -> None:
        if self.tile_mib is not None and self.tile_mib < 1:
            raise InputError(f"objective.tile_mib={self.tile_mib}", "at least 1 MiB", "leave it out for the default")
        check_kernels(self.kernels)
        TeacherWeights(self.teacher_weights, {})  # refuses a kind that there is not
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
    """What a global batch holds over all micro-batches and data-parallel and context-parallel ranks.

    Attributes:
        tokens: labelled student positions.
        chunks: of each teacher.
    """

    tokens: int
    chunks: tuple[int, ...] = ()


class DynamicScale:
    """The factor on the distillation term; its state is one number, kept in the checkpoint."""

    def __init__(self, config: ObjectiveConfig) -> None:
        self.config = config
        self.ratio = 1.0

    @property
    def known(self) -> float | None:
        """The factor of the next step; None where each micro-batch has its own."""
        if self.config.scale == "dynamic_per_microbatch":
            return None
        return self.ratio if self.config.scale == "dynamic" else float(self.config.scale)

    @staticmethod
    def within(ce: LossSum, kd: Sequence[LossSum], alphas: Sequence[float]) -> Tensor:
        """The factor that makes both terms of a micro-batch equal; 1 where there is nothing to divide by."""
        kd_mean = torch.stack([a * k.total / max(k.count, 1) for a, k in zip(alphas, kd, strict=True)]).sum()
        ratio = ce.total / max(ce.count, 1) / kd_mean
        return ratio.where(kd_mean > 0, ratio.new_ones(()))

    def mean(self, ce_mean: float, kd_mean: float) -> float:
        """The factor of the step whose global means these are, for reports; before :meth:`update` takes them in.

        Args:
            kd_mean: ``sum_m alpha_m KD_m``.
        """
        if self.known is None:
            return ce_mean / kd_mean if kd_mean > 0 else 1.0
        return self.known

    def update(self, ce_mean: float, kd_mean: float) -> None:
        """Takes in the global means of the step just done.  A step without distillation terms changes nothing."""
        if ce_mean > 0 and kd_mean > 0 and math.isfinite(ce_mean / kd_mean):
            self.ratio = ce_mean / kd_mean


def kd_weights(factor: Tensor | float, alphas: Sequence[float], counts: StepCounts) -> list[Tensor | float]:
    """The coefficients of a micro-batch's distillation sums beside that of its cross-entropy sum, which is 1.

    The caller divides by ``counts.tokens`` once, after summing over micro-batches and data-parallel ranks; then the
    result is ``CE mean + scale * sum_m alpha_m KD_m mean`` over the global batch, whatever the layout.

    Args:
        factor: the scale.
        alphas: the weight of each teacher.
    """
    return [
        factor * (alpha * counts.tokens / chunks) if chunks else 0.0
        for alpha, chunks in zip(alphas, counts.chunks, strict=True)
    ]

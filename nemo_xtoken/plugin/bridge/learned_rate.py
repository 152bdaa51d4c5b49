"""The learning rate of learned W under Megatron-Bridge.  Imports Bridge 0.4 or newer."""

from dataclasses import dataclass
from typing import Any

from megatron.bridge.training.config import OptimizerConfigOverrideProvider
from megatron.core.optimizer.optimizer import param_group_identifier_keys
from megatron.core.optimizer.optimizer_config import ParamKey, ParamWithNamePredicate
from megatron.core.optimizer_param_scheduler import ParamGroupOverride

from nemo_xtoken.training.learned_parameters import ATTRIBUTE, is_logits

__all__ = ["LearnedRate"]


@dataclass
class LearnedRate(OptimizerConfigOverrideProvider):
    """Gives the logits of W a rate of their own, without weight decay, in Bridge's optimizer.

    Attributes:
        highest, lowest: between which their rate follows the student's schedule.
    """

    highest: float
    lowest: float

    def build_config_overrides(self, context: Any) -> Any:
        """Bridge's own exceptions, and this one."""
        of_logits = ParamKey(with_name_predicate=ParamWithNamePredicate(ATTRIBUTE, _is_logits))
        own = ParamGroupOverride(max_lr=self.highest, min_lr=self.lowest, wd_mult=0.0)
        if "max_lr" not in param_group_identifier_keys:
            # Before 0.19 a resumed run tells groups of parameters apart without their rates, and would take that of W
            # for the one without weight decay.  Nobody reads this number but that comparison.
            own["lr_mult"] = 2.0
        return {**(super().build_config_overrides(context) or {}), of_logits: own}


def _is_logits(_: Any, name: str) -> bool:
    return is_logits(name)

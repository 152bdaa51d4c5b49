"""When a run ends by itself before its last step: where held-out text has not got better for a while."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nemo_xtoken.errors import InputError, nearest

__all__ = ["StopConfig", "check_stop", "reason_to_stop", "stopped_at"]

CE, KD = "ce", "kd"


@dataclass
class StopConfig:
    """When to stop before ``trainer.max_steps``: ``stop.patience=3``.

    Attributes:
        patience: stop after so many evaluations on held-out text in a row (``trainer.val_check_interval``) that are no
            better than the best one before; 0: never.
        on: what is to get better there: ce, the cross-entropy; kd, the weighted distance from the teachers; kd/NAME,
            that from one of them.
        least: nats by which it must be better than the best.
    """

    patience: int = 0
    on: str = "ce"
    least: float = 0.0

    def __post_init__(self) -> None:
        if self.patience < 0:
            raise InputError(
                f"stop.patience={self.patience}", "0, or a number of evaluations", "set stop.patience=0 to never stop"
            )
        if not (math.isfinite(self.least) and self.least >= 0):
            raise InputError(f"stop.least={self.least}", "nats, from 0 up", "correct stop.least")

    @property
    def key(self) -> str:
        """In the record of an evaluation."""
        return f"held_out_{self.on}"


def check_stop(patience: int, on: str, teachers: Iterable[str]) -> None:
    """
    Args:
        patience, on: as in `StopConfig`.
        teachers: the names of those that teach.

    Raises:
        InputError: there is nothing of that name to get better.
    """
    names = [f"{KD}/{name}" for name in teachers]
    known = [CE, *([KD] if names else []), *names]
    if patience and on not in known:
        raise InputError(f"stop.on={on}{nearest(on, known)}", f"one of {', '.join(known)}", "correct stop.on")


def reason_to_stop(config: StopConfig, records: Sequence[Mapping[str, Any]]) -> str | None:
    """Why a run is to stop now; None: it goes on.

    Args:
        records: of the run so far; those of evaluations count.
    """
    found = [(record["step"], float(record[config.key])) for record in records if config.key in record]
    if not config.patience or not found:
        return None
    (best_step, best), waited = found[0], 0
    for step, value in found[1:]:
        if value < best - config.least:
            best_step, best, waited = step, value, 0
        else:
            waited += 1
    if waited < config.patience:
        return None
    named = {CE: "CE", KD: "KD"}.get(config.on, f"KD of {config.on.partition('/')[2]}")
    by = f" by {config.least:g}" if config.least else ""
    times = f"{waited} evaluation{'s' * (waited > 1)}"
    return f"no held-out {named} better{by} than {best:.3f}, after step {best_step:,}, in {times} (stop.patience)"


def stopped_at(config: StopConfig, records: Sequence[Mapping[str, Any]], step: int) -> str | None:
    """Why a run that has this step behind it, and a checkpoint of it, is not to go on; None: it is.

    Args:
        records: of the run.
    """
    before = [record for record in records if record["step"] <= step]
    evaluated = any(record["step"] == step and config.key in record for record in before)
    return reason_to_stop(config, before) if evaluated else None

"""Settings of single losses, as a recipe has them."""

from dataclasses import dataclass
from typing import Optional

from nemo_xtoken.errors import InputError
from nemo_xtoken.losses.directions import direction_named
from nemo_xtoken.losses.partial_kl import check_partial_kl
from nemo_xtoken.losses.sorted_l1 import DEFAULT_CAP

__all__ = ["DivergenceOptions"]


@dataclass
class DivergenceOptions:
    """Settings of single losses; one that a loss does not have must keep its default.

    Attributes:
        direction: ``"forward"``, ``"reverse"`` or ``"js"`` (p_kl, same_tokenizer).
        partial_kl: ``"rest"`` or ``"paper"`` (h_kl, gold); None is the loss's own, rest for h_kl (why:
            docs/learning.md#defaults) and paper for gold, as published.
        sorted_cap: values of a side that the sorted distance compares one by one (h_kl, gold, uld); None is 4096, with
            nrl_compat 8192.
        top_k: compare only the teacher's k most probable tokens, all others as one class (p_kl, same_tokenizer, and
            h_kl and gold with partial_kl=rest); None: all.  In strict_1to1 the student's, 16 by default; in p_kl with
            nrl_compat those of the micro-batch, 8192 by default.
        nrl_compat: the public NeMo-RL loss of that name instead (p_kl, gold, h_kl).  It has its own merge.
    """

    direction: str = "forward"
    partial_kl: Optional[str] = None  # noqa: UP045 (nemo_run's command line reads this)
    sorted_cap: Optional[int] = None  # noqa: UP045
    top_k: Optional[int] = None  # noqa: UP045
    nrl_compat: bool = False

    def __post_init__(self) -> None:
        direction_named(self.direction)
        if self.partial_kl is not None:
            check_partial_kl(self.partial_kl)
        for name, default in (("sorted_cap", f"{DEFAULT_CAP} is the default"), ("top_k", "leave it out for all")):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name}={value}", "at least 1", default)
        for name, value, only in (
            ("direction", self.direction, "forward"),
            ("partial_kl", self.partial_kl or "paper", "paper"),
        ):
            if self.nrl_compat and value != only:
                raise InputError(
                    f"{name}={value!r} with nrl_compat", f"{only!r}, as it is there", f"leave {name} or nrl_compat out"
                )

"""Settings of single losses, as a recipe has them; the loss where none is named, and the one that ``auto`` takes.

Free of torch, for those who look before it is installed.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Optional

from nemo_xtoken.errors import InputError

if TYPE_CHECKING:
    from nemo_xtoken.projection.audit import CoverageAudit

__all__ = [
    "DEFAULT_LOSS",
    "DIRECTION_CHOICES",
    "PARTIAL_KL_CHOICES",
    "RECOMMENDED",
    "DivergenceOptions",
    "Recommendation",
    "check_choice",
    "recommend",
]

#: It alone has a certificate for every kind of chunk: docs/learning.md#defaults.
DEFAULT_LOSS = "prefix_kl"
#: What ``direction`` (`losses.directions`) and ``partial_kl`` (`losses.partial_kl`) can be, with advice for error
#: messages.
DIRECTION_CHOICES = {"forward": "the paper's", "reverse": "keeps to what the teacher says most", "js": "bounded"}
PARTIAL_KL_CHOICES = {"rest": "never negative", "paper": "the published form"}


@dataclass
class DivergenceOptions:
    """Settings of single losses; one that a loss does not have must keep its default.

    Attributes:
        direction: ``"forward"``, ``"reverse"`` or ``"js"`` (p_kl, same_tokenizer); one of the first two (nrl_p_kl,
            nrl_gold, nrl_h_kl: their ``reverse_kl``).
        partial_kl: ``"rest"`` or ``"paper"`` (h_kl, gold); None is the loss's own, rest for h_kl (why:
            docs/learning.md#defaults) and paper for gold, as published.
        sorted_cap: values of a side that the sorted distance compares one by one (h_kl, gold, uld, nrl_gold, nrl_h_kl);
            None is the loss's own: 4096, and 8192 for the losses of NeMo-RL.
        top_k: compare only the teacher's k most probable tokens, all others as one class (p_kl, same_tokenizer, and
            h_kl and gold with partial_kl=rest); None: all.  In strict_1to1 the student's, 16 by default; in nrl_p_kl
            those of the micro-batch, 8192 by default.
        beta: weight of the chunks that are not of one token on either side (csd); None: 1.
        power: of likelihoods, which are raised to 1 / power (alm); None: 100.
        boundary: compare only what can follow on both sides where a chunk begins (prefix_kl; False by default).
        nrl_compat: of files written before nrl_p_kl, nrl_gold and nrl_h_kl were losses of their own, which it chooses.
    """

    direction: str = "forward"
    partial_kl: Optional[str] = None
    sorted_cap: Optional[int] = None
    top_k: Optional[int] = None
    beta: Optional[float] = None
    power: Optional[float] = None
    boundary: Optional[bool] = None
    nrl_compat: bool = False

    def __post_init__(self) -> None:
        check_choice("direction", self.direction, DIRECTION_CHOICES)
        if self.partial_kl is not None:
            check_choice("partial_kl", self.partial_kl, PARTIAL_KL_CHOICES)
        for name, fix in (("sorted_cap", "leave it out for the loss's own"), ("top_k", "leave it out for all")):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name}={value}", "at least 1", fix)
        for name, least in (("beta", 0.0), ("power", 1.0)):
            value = getattr(self, name)
            if value is not None and not least <= value <= 1e6:
                raise InputError(
                    f"{name}={value}", f"a number from {least:g} to 1e6", "leave it out for the loss's own"
                )


def check_choice(name: str, value: str, choices: dict[str, str]) -> None:
    """
    Args:
        choices: the values that there are, with advice.

    Raises:
        InputError: another value.
    """
    if value not in choices:
        advice = ", ".join(f"{choice} ({why})" for choice, why in choices.items())
        raise InputError(f"{name}={value!r}", f"one of {', '.join(choices)}", f"choose one: {advice}")


class Recommendation(NamedTuple):
    """
    Attributes:
        loss: its name.
        title: what reports call it.
        reason: why, a sentence.
    """

    loss: str
    title: str
    reason: str


#: By the audit's finding; the reason is the end of a sentence that begins with the finding.
RECOMMENDED = {
    "one tokenizer": Recommendation("same_tokenizer", "same-tokenizer KL", "their distributions can be compared"),
    "outside": Recommendation("p_kl", "P-KL", "H-KL would push the others down, P-KL compares them through W"),
    "inside": Recommendation("h_kl", "H-KL", "they can be compared token by token"),
}


def recommend(audit: "CoverageAudit") -> Recommendation:
    """What fits the pair of tokenizers."""
    found = RECOMMENDED[audit.finding]
    return found._replace(reason=f"{audit.reason}: {found.reason}.")

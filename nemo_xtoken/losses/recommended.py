"""The loss that ``auto`` takes after the coverage audit; free of torch, for those who look before it is installed."""

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from nemo_xtoken.projection.audit import CoverageAudit

__all__ = ["RECOMMENDED", "Recommendation", "recommend"]


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

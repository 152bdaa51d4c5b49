"""What the study of docs/learning.md claims, and the comparisons that decide it: written down before the students ran.

Each comparison is the difference of two arms in one measure, paired by seed.  A claim holds where all its comparisons
have the sign that it says and stay clear of 0 by Holm's correction over all comparisons of all claims, whether they
were made or not.

Planned: seeds 0 to 3; all that ran counts.  No arm gets a seed more than the others that it is compared with.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .statistics import Estimate, difference, holm

__all__ = ["CLAIMS", "Claim", "Comparison", "Found", "arms_of_claims", "judged"]


@dataclass(frozen=True)
class Comparison:
    """One difference.

    Attributes:
        measure: of `measures.measure`.
        arm, beside: names; the difference is the first one's value less the second one's.
        sign: 1 or -1: which sign the claim says.
    """

    measure: str
    arm: str
    beside: str
    sign: int


@dataclass(frozen=True)
class Claim:
    """A sentence, and what has to be so for it to hold."""

    text: str
    comparisons: tuple[Comparison, ...]


@dataclass(frozen=True)
class Found:
    """A comparison as it came out.

    Attributes:
        estimate: of the difference; None: it was not made.
        p: by Holm's correction over all comparisons of `CLAIMS`.
    """

    comparison: Comparison
    estimate: Estimate | None
    p: float

    @property
    def verdict(self) -> str:
        """In words."""
        if self.estimate is None:
            return "not run"
        if self.p >= LEVEL:
            return "not shown"
        return "holds" if self.estimate.mean * self.comparison.sign > 0 else "the opposite holds"


LEVEL = 0.05
CLAIMS = (
    Claim(
        "Under a teacher that splits numerals GOLD unlearns numerals, and with them arithmetic",
        (
            Comparison("numerals", "digits/gold", "ce", -1),
            Comparison("arithmetic_ce", "digits/gold", "ce", 1),
        ),
    ),
    Claim(
        "H-KL does as well",
        (
            Comparison("numerals", "digits/h_kl", "ce", -1),
            Comparison("arithmetic_ce", "digits/h_kl", "ce", 1),
        ),
    ),
    Claim(
        "prefix_kl and P-KL teach text beyond cross-entropy alone",
        (
            Comparison("text_ce", "digits/prefix_kl", "ce", -1),
            Comparison("text_ce", "digits/p_kl", "ce", -1),
        ),
    ),
    Claim(
        "P-KL costs nats of arithmetic that prefix_kl does not",
        (Comparison("arithmetic_ce", "digits/p_kl", "digits/prefix_kl", 1),),
    ),
    Claim(
        "With P-KL a scale of 1 costs fewer of them",
        (Comparison("arithmetic_ce", "digits/p_kl_fixed", "digits/p_kl", -1),),
    ),
    Claim(
        "Under a teacher with the student's numerals H-KL costs nats of arithmetic and of text beside prefix_kl",
        (
            Comparison("arithmetic_ce", "matching/h_kl", "matching/prefix_kl", 1),
            Comparison("text_ce", "matching/h_kl", "matching/prefix_kl", 1),
        ),
    ),
)


def arms_of_claims() -> list[str]:
    """What has to be trained for them, in the order of the claims."""
    every = [name for claim in CLAIMS for c in claim.comparisons for name in (c.beside, c.arm)]
    return list(dict.fromkeys(every))


def judged(summarized: Mapping[str, Any]) -> dict[Claim, list[Found]]:
    """Every comparison of every claim.

    Args:
        summarized: what `report.summary` returns.
    """
    comparisons = [c for claim in CLAIMS for c in claim.comparisons]
    estimates = [_estimate(c, summarized) for c in comparisons]
    corrected = holm([1.0 if e is None else e.p for e in estimates])
    each = iter(map(Found, comparisons, estimates, corrected))
    return {claim: [next(each) for _ in claim.comparisons] for claim in CLAIMS}


def _estimate(comparison: Comparison, summarized: Mapping[str, Any]) -> Estimate | None:
    if not {comparison.arm, comparison.beside} <= summarized.keys():
        return None
    a, b = (summarized[n]["measures"][comparison.measure]["by_seed"] for n in (comparison.arm, comparison.beside))
    return difference(a, b)

"""Means with confidence intervals over seeds, and the calibration of answers.  Student's t: the seeds are few."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Estimate", "calibration_error", "difference", "estimate", "holm"]

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean and half the width of its interval; infinite where there is one value alone."""

    mean: float
    half: float
    count: int

    @property
    def clear(self) -> bool:
        """The interval does not hold 0."""
        return abs(self.mean) > self.half

    @property
    def p(self) -> float:
        """Of a two-sided t-test against 0; 1 where there is one value alone."""
        from scipy.stats import t

        if not math.isfinite(self.half):
            return 1.0
        if not self.half:
            return float(self.mean == 0)
        freedom = self.count - 1
        score = abs(self.mean) * float(t.ppf((1 + CONFIDENCE) / 2, freedom)) / self.half
        return 2 * float(t.sf(score, freedom))

    def written(self, factor: float, digits: int, sign: bool = False) -> str:
        """For a table; with its sign, for what may be 0, and then **bold** where it is clear."""
        text = f"{factor * self.mean:{'+' if sign else ''}.{digits}f}"
        if math.isfinite(self.half):
            text += f" ± {factor * self.half:.{digits}f}"
        return f"**{text}**" if sign and self.clear else text


def estimate(values: Sequence[float], confidence: float = CONFIDENCE) -> Estimate:
    """Mean of independent values and its interval by Student's t distribution."""
    from scipy.stats import t

    n = len(values)
    mean = sum(values) / n
    if n == 1:
        return Estimate(mean, math.inf, 1)
    deviation = math.sqrt(sum((v - mean) ** 2 for v in values) / (n - 1))
    return Estimate(mean, float(t.ppf((1 + confidence) / 2, n - 1)) * deviation / math.sqrt(n), n)


def difference(values: dict[int, float], reference: dict[int, float]) -> Estimate | None:
    """Mean over the seeds that both have of what ``values`` is above ``reference``: seeds share start and data.

    Returns:
        None: they share no seed.
    """
    shared = sorted(values.keys() & reference.keys())
    return estimate([values[seed] - reference[seed] for seed in shared]) if shared else None


def holm(p: Sequence[float]) -> list[float]:
    """Holm's correction: p-values that may each be compared with a level that is then kept over all of them."""
    corrected, largest = [0.0] * len(p), 0.0
    for rank, at in enumerate(sorted(range(len(p)), key=p.__getitem__)):
        largest = max(largest, min((len(p) - rank) * p[at], 1.0))
        corrected[at] = largest
    return corrected


def calibration_error(confidences: Sequence[float], right: Sequence[bool], bins: int = 10) -> float:
    """Expected calibration error: how far a bin's mean confidence is from its share of right answers, by answers."""
    members: list[list[tuple[float, bool]]] = [[] for _ in range(bins)]
    for confidence, good in zip(confidences, right, strict=True):
        members[min(int(confidence * bins), bins - 1)].append((confidence, good))
    gaps = [abs(sum(c for c, _ in held) - sum(g for _, g in held)) for held in members if held]
    return sum(gaps) / len(confidences)

"""What the study is to find out, named before its runs: few claims, each about one number, with Holm's correction.

A claim's number is a difference of bits per byte, seed by seed; below 0 the claim holds.  With one seed there is no
test, and none is made.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .plan import SETTINGS

__all__ = ["CLAIMS", "Claim", "Verdict", "judged"]

LEVEL = 0.05
#: Of the bits that a swap loses on each kind of text, so much is to come back.
REGAINED = 0.8


@dataclass(frozen=True)
class Claim:
    """One arm is better than another.

    Attributes:
        better, worse: arms.
        kinds: ``trained``, the mean over the kinds of text that were trained on; ``others``, over those that were not;
            ``all``, of these the kind where the claim holds least.
        halfway: ``better`` after half of the tokens, beside ``worse`` at the end.
        regained: of what lies between ``worse``, untrained, and the teacher, ``better`` has at least `REGAINED`.
    """

    name: str
    setting: str
    text: str
    better: str
    worse: str
    kinds: str
    halfway: bool = False
    regained: bool = False


_BELOW = "`prefix_kl` ends below"
CLAIMS = (
    Claim(
        "C1", "compression", "`prefix_kl` after half of the tokens is at least where cross-entropy ends, on the kinds "
        "trained on", "prefix_kl", "ce", "trained", halfway=True,
    ),
    Claim("C2", "compression", f"{_BELOW} cross-entropy on kinds never trained on", "prefix_kl", "ce", "others"),
    Claim("C3", "compression", f"{_BELOW} GOLD on kinds never trained on", "prefix_kl", "gold", "others"),
    Claim(
        "C4", "swap", "`prefix_kl` regains 80% of the bits lost on every kind", "prefix_kl", "none", "all",
        regained=True,
    ),
    Claim("C5", "swap", f"{_BELOW} cross-entropy on kinds never trained on", "prefix_kl", "ce", "others"),
    Claim(
        "C6", "language", "`prefix_kl` after half of the tokens is at least where cross-entropy ends, on the languages "
        "learned", "prefix_kl", "ce", "trained", halfway=True,
    ),
    Claim("C7", "language", "`prefix_kl` forgets less than cross-entropy of what it knew", "prefix_kl", "ce", "others"),
    Claim(
        "C8", "compression", "`prefix_kl` trained for half of the steps, its learning rate's schedule with them, ends "
        "at or below where cross-entropy ends, on the kinds trained on", "prefix_kl_half", "ce", "trained",
    ),
    Claim(
        "C9", "swap", "`prefix_kl` on the embeddings alone regains 80% of the bits lost on every kind",
        "prefix_kl_embeddings", "none", "all", regained=True,
    ),
    Claim("C10", "compression", f"{_BELOW} CSD on kinds never trained on", "prefix_kl", "csd", "others"),
    Claim("C11", "compression", f"{_BELOW} BPM on kinds never trained on", "prefix_kl", "bpm", "others"),
)  # fmt: skip


@dataclass(frozen=True)
class Verdict:
    """What the data say of a claim.

    Attributes:
        values: its number by seed.
        p: of the one-sided t-test that the mean is 0 or above; None: fewer than two seeds.
        stands: p survives Holm's correction over all claims that were tested.
    """

    claim: Claim
    values: Mapping[int, float]
    p: float | None
    stands: bool

    @property
    def mean(self) -> float | None:
        """Over the seeds; None: there is none."""
        return sum(self.values.values()) / len(self.values) if self.values else None


def judged(results: Sequence[Mapping[str, Any]]) -> list[Verdict]:
    """All claims, by the runs of one length that are there."""
    found = [(claim, _values(claim, results)) for claim in CLAIMS]
    tested = sorted((p, claim.name) for claim, values in found if (p := _p(list(values.values()))) is not None)
    stand = set()
    for number, (p, name) in enumerate(tested):
        if p * (len(tested) - number) >= LEVEL:
            break
        stand.add(name)
    return [Verdict(claim, values, _p(list(values.values())), claim.name in stand) for claim, values in found]


def _values(claim: Claim, results: Sequence[Mapping[str, Any]]) -> dict[int, float]:
    runs = {(r["arm"], r["seed"]): r for r in results if r["setting"] == claim.setting}
    setting, values = SETTINGS[claim.setting], {}
    for arm, seed in runs:
        others = [(claim.worse, seed)] + ([("teacher", seed)] if claim.regained else [])
        if arm != claim.better or not all(key in runs for key in others):
            continue
        better, worse = runs[arm, seed], runs[claim.worse, seed]
        if claim.regained:
            taught, start, end = runs["teacher", seed]["bits"], worse["bits"], better["bits"]
            values[seed] = REGAINED - min((start[k] - end[k]) / (start[k] - taught[k]) for k in end)
        elif claim.halfway:
            at = {look["step"]: look["bits"] for look in better["looks"]}.get(better["steps"] // 2)
            if at is not None:
                values[seed] = _mean(at, setting.trained) - _mean(worse["looks"][-1]["bits"], setting.trained)
        else:
            kinds = setting.trained if claim.kinds == "trained" else setting.others
            values[seed] = _mean(better["bits"], kinds) - _mean(worse["bits"], kinds)
    return dict(sorted(values.items()))


def _mean(bits: Mapping[str, float], kinds: Sequence[str]) -> float:
    return sum(bits[kind] for kind in kinds) / len(kinds)


def _p(values: Sequence[float]) -> float | None:
    if len(values) < 2:
        return None
    from scipy.stats import ttest_1samp

    return float(ttest_1samp(values, 0.0, alternative="less").pvalue)

"""The certificates of a pair of tokenizers: every loss on every kind of chunk, with a verdict."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from nemo_xtoken.certify.cases import KINDS, Case
from nemo_xtoken.certify.certify_config import CertifyConfig
from nemo_xtoken.certify.measure import Descent, descend
from nemo_xtoken.certify.problem import Problem
from nemo_xtoken.certify.reduced import Pair
from nemo_xtoken.certify.side_by_side import side_by_side
from nemo_xtoken.certify.variants import Variant
from nemo_xtoken.projection.build import RULES, ProjectionRule, load_or_build
from nemo_xtoken.vocab.vocabulary import Vocabulary

__all__ = ["KEPT", "ZERO", "Certificates", "Finding", "certify", "falls_most"]

#: Values (nats) and gradients up to this are 0; the two sides agree up to a hundredth of it (`problem.LEAK`).
ZERO = 1e-7
#: What a student may lose of the right token's probability and still count as keeping it.
KEPT = 0.01


def falls_most(probability: np.ndarray) -> int:
    """The case ``K`` of probabilities ``[C, K]`` that loses most of it from the first look to the last."""
    return int(np.argmin(probability[-1] - probability[0]))


@dataclass(frozen=True)
class Finding:
    """What a loss does to the chunks of one kind, by the worst of them.

    Attributes:
        chunks: their number.
        scored: those that the loss compares at all.
        value: where both agree, the one farthest from 0.
        least: the smallest value there and along the descent.
        gradient: where both agree, the largest norm by the free logits.
        before, after: probability of the right tokens at the start and at the end, where it falls most.
        instead, instead_probability: the first token that the student finds most probable then, there.
    """

    chunks: int
    scored: int
    value: float
    least: float
    gradient: float
    before: float
    after: float
    instead: str
    instead_probability: float

    @classmethod
    def of(cls, descent: Descent, which: Sequence[int]) -> "Finding":
        """From the cases with these numbers."""
        values, p = descent.values[:, which], descent.probability[:, which]
        worst = falls_most(p)
        instead, its_probability = descent.instead[which[worst]]
        return cls(
            chunks=len(which),
            scored=int(descent.scored[which].sum()),
            value=float(values[0, np.abs(values[0]).argmax()]),
            least=float(values.min()),
            gradient=float(descent.gradient[which].max()),
            before=float(p[0, worst]),
            after=float(p[-1, worst]),
            instead=instead,
            instead_probability=its_probability,
        )

    @property
    def never_negative(self) -> bool:
        """(a) Whether the value is >= 0, where both agree and along the descent."""
        return self.least >= -ZERO

    @property
    def zero_there(self) -> bool:
        """(b) Whether it is 0 where both agree."""
        return abs(self.value) <= ZERO

    @property
    def still_there(self) -> bool:
        """(c) Whether the gradient vanishes there."""
        return self.gradient <= ZERO

    @property
    def keeps(self) -> bool:
        """(d) Whether the student still says the right tokens after the descent."""
        return self.after >= self.before - KEPT

    @property
    def verdict(self) -> str:
        """``certified`` where all four hold, else what becomes of the right tokens: kept, falling, or lost.

        ``not compared`` where the loss takes none of the chunks.
        """
        if not self.scored:
            return "not compared"
        if self.never_negative and self.zero_there and self.still_there and self.keeps:
            return "certified"
        return "kept" if self.keeps else "falling" if self.after >= self.before / 2 else "lost"

    def to_json(self) -> dict[str, Any]:
        """Figures, the four answers and the verdict."""
        answers = {name: getattr(self, name) for name in ("never_negative", "zero_there", "still_there", "keeps")}
        return {**asdict(self), **answers, "verdict": self.verdict}


@dataclass(frozen=True)
class Certificates:
    """Of one pair of tokenizers.

    Attributes:
        student, teacher: their names.
        config: how they were made.
        sizes: tokens of each side that took part.
        cases: the chunks.
        descents: one a variant.
    """

    student: str
    teacher: str
    config: CertifyConfig
    sizes: tuple[int, int]
    cases: tuple[Case, ...]
    descents: tuple[Descent, ...]

    @property
    def kinds(self) -> dict[str, list[int]]:
        """The numbers of the cases of each kind that there is."""
        numbers = {kind: [i for i, case in enumerate(self.cases) if case.kind == kind] for kind in KINDS}
        return {kind: which for kind, which in numbers.items() if which}

    def findings(self, descent: Descent) -> dict[str, Finding]:
        """By kind, and ``all``."""
        parts = self.kinds | {"all": list(range(len(self.cases)))}
        return {kind: Finding.of(descent, which) for kind, which in parts.items()}

    def to_json(self) -> dict[str, Any]:
        """Everything as plain values: settings, chunks, and for each loss its findings and its descent."""
        return {
            "student": self.student,
            "teacher": self.teacher,
            "settings": asdict(self.config),
            "tokens": {"student": self.sizes[0], "teacher": self.sizes[1]},
            "chunks": [
                {
                    "text": case.text,
                    "kind": case.kind,
                    "student": list(case.agreement.right.student),
                    "teacher": list(case.agreement.right.teacher),
                    "continuations": len(case.agreement.weights),
                }
                for case in self.cases
            ],
            "losses": [self._loss(descent) for descent in self.descents],
        }

    def _loss(self, descent: Descent) -> dict[str, Any]:
        variant = descent.variant
        return {
            "loss": variant.loss,
            "rule": variant.rule,
            "merge": variant.config.merge,
            "options": asdict(variant.options),
            "findings": {kind: finding.to_json() for kind, finding in self.findings(descent).items()},
            "steps": descent.steps.tolist(),
            "values": descent.values.tolist(),
            "probability": descent.probability.tolist(),
            "gradient": descent.gradient.tolist(),
            "scored": descent.scored.tolist(),
            "instead": [{"token": token, "probability": p} for token, p in descent.instead],
        }


def certify(
    student: Vocabulary,
    teacher: Vocabulary,
    cases: Sequence[Case],
    variants: Sequence[Variant],
    config: CertifyConfig | None = None,
    progress: Callable[[str, int, int], None] | None = None,
    workers: int = 0,
) -> Certificates:
    """Lets student and teacher agree on chunks of a text and measures what each loss makes of it.

    The losses are those of training, on a pair of vocabularies cut down to the tokens that are said and those that W
    or a common set binds to them (`reduced.reduce_pair`), in float64.

    Args:
        cases: what both say, from `build_cases`.
        progress: told the name of each variant before it is measured, how many are done, and how many there are.
        workers: processes that variants are measured in; 0 and 1: this one.  What is found does not depend on it.
    """
    config = config or CertifyConfig()
    matrices = {name: load_or_build(student, teacher, ProjectionRule.named(name)) for name in RULES}
    problem = Problem.reduced(cases, Pair.whole(student, teacher, matrices), workers)
    sizes = problem.pair.student.size, problem.pair.teacher.size

    def begun(number: int, done: int) -> None:
        if progress is not None:
            progress(variants[number].name, done, len(variants))

    found = dict(side_by_side(lambda number: descend(problem, variants[number], config), len(variants), workers, begun))
    descents = tuple(found[number] for number in range(len(variants)))
    return Certificates(student.name, teacher.name, config, sizes, tuple(cases), descents)

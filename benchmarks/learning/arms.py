"""The arms: what a student learns from, everything else being the same."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["ARMS", "START", "UNTAUGHT", "Arm", "Lesson", "Untaught", "arm_named"]

TOP_K = 32  # of a few hundred tokens of a teacher


@dataclass(frozen=True)
class Lesson:
    """A teacher and how the student is compared with it.

    Attributes:
        teacher: digits, matching or own.
        options, chunks, rule: arguments of ``DivergenceOptions``, ``ChunkLossConfig``, ``ProjectionRule``.
        learned: W is.
    """

    teacher: str
    loss: str
    options: Mapping[str, Any] = field(default_factory=dict)
    chunks: Mapping[str, Any] = field(default_factory=dict)
    rule: Mapping[str, Any] = field(default_factory=dict)
    learned: bool = False
    weight: float = 1.0


@dataclass(frozen=True)
class Arm:
    """One row of the table.

    Attributes:
        name: the teacher (or two) and the loss.
        lessons: none: cross-entropy alone.
        scale, teacher_weights: of ``ObjectiveConfig``.
        trained: False: the start itself.
    """

    name: str
    lessons: tuple[Lesson, ...] = ()
    scale: float | str = "dynamic"
    teacher_weights: str = "static"
    trained: bool = True


@dataclass(frozen=True)
class Untaught:
    """A model that is trained on text alone.

    Attributes:
        tokenizer: one of `texts.TOKENIZERS`.
        steps: the setting of a ``Length`` that has their number.
        large: of the teachers' size and length, not of the students'.
    """

    tokenizer: str
    steps: str
    large: bool = False
    seed: int = 0


#: What all students start from.
START = "start"
#: The teachers, and the start.
UNTAUGHT = {
    "digits": Untaught("digits", "digits_steps", large=True),
    "matching": Untaught("matching", "matching_steps", large=True),
    "own": Untaught("student", "weak_steps"),
    START: Untaught("student", "start_steps", seed=1000),
}

#: Losses under both teachers that have another tokenizer.
_BOTH: dict[str, dict[str, Any]] = {
    "uld": {"loss": "uld"},
    "gold": {"loss": "gold"},
    "strict_1to1": {"loss": "strict_1to1"},
    "h_kl": {"loss": "h_kl"},
    "h_kl_paper": {"loss": "h_kl", "options": {"partial_kl": "paper"}},
    "p_kl": {"loss": "p_kl"},
    "prefix_kl": {"loss": "prefix_kl"},
}
#: Forms of P-KL where they differ: under the digit-splitting teacher.
_DIGITS: dict[str, dict[str, Any]] = {
    "p_kl_mean": {"loss": "p_kl", "chunks": {"merge": "mean"}},
    "p_kl_first": {"loss": "p_kl", "chunks": {"merge": "first"}},
    "p_kl_nrl": {"loss": "nrl_p_kl"},
    "p_kl_learned": {"loss": "p_kl", "learned": True},
    "p_kl_top_k": {"loss": "p_kl", "options": {"top_k": TOP_K}},
    "p_kl_prefix_rule": {"loss": "p_kl", "rule": {"gamma": 0.0}},
    "p_kl_whole": {"loss": "p_kl", "rule": {"overflow": "empty"}},
}
#: Two teachers, each by its loss, and how they add up.
_TWO: dict[str, tuple[str, str, dict[str, Any]]] = {
    "prefix_kl": ("prefix_kl", "prefix_kl", {}),
    "prefix_kl_fixed": ("prefix_kl", "prefix_kl", {"scale": 1.0}),
    "prefix_kl_confidence": ("prefix_kl", "prefix_kl", {"teacher_weights": "confidence"}),
    "p_kl_h_kl": ("p_kl", "h_kl", {}),
}


def _arms() -> list[Arm]:
    arms = [Arm("none", scale=0.0, trained=False), Arm("ce", scale=0.0)]
    for name, settings in (_BOTH | _DIGITS).items():
        arms.append(Arm(f"digits/{name}", (Lesson("digits", **settings),)))
    for name in ("gold", "p_kl", "prefix_kl"):
        arms.append(Arm(f"digits/{name}_fixed", (Lesson("digits", **_BOTH[name]),), scale=1.0))
    for name, settings in _BOTH.items():
        arms.append(Arm(f"matching/{name}", (Lesson("matching", **settings),)))
    for name in ("h_kl", "p_kl", "prefix_kl"):
        arms.append(Arm(f"matching/{name}_fixed", (Lesson("matching", **_BOTH[name]),), scale=1.0))
    arms.append(Arm("own/same_tokenizer", (Lesson("own", "same_tokenizer"),)))
    for name, (first, second, settings) in _TWO.items():
        lessons = tuple(
            Lesson(teacher, loss, weight=0.5) for teacher, loss in (("digits", first), ("matching", second))
        )
        arms.append(Arm(f"two/{name}", lessons, **settings))
    return arms


ARMS: tuple[Arm, ...] = tuple(_arms())


def arm_named(name: str) -> Arm:
    """The arm of that name."""
    return next(arm for arm in ARMS if arm.name == name)

"""What the study trains: settings, arms, lengths, and the order of the runs."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

__all__ = [
    "ARMS",
    "BASELINES",
    "LENGTHS",
    "SETTINGS",
    "TUNING_SEED",
    "Arm",
    "Length",
    "Run",
    "Setting",
    "runs_of",
    "same_settings",
    "settings_of",
]

#: Order and fold of the runs that choose the rate: of no other run.
TUNING_SEED = 1000


@dataclass(frozen=True)
class Setting:
    """A student, its teacher and their texts.

    Attributes:
        student: the model that the student is made of, a folder of the assets.
        teacher: likewise; it reads every text with its own tokenizer.
        layers: of the student's, see ``xtoken prune``; None: all.
        tokenizer: what the student is given, see ``xtoken transplant``; None: it keeps its own.
        trained: kinds of text (`corpora.KINDS`) that are trained on, one piece of each in a step.
        others: kinds that are only measured on.
        piece: bytes of a piece at most, by kind of text trained on.
        prompts: what the students go on from, to read side by side.
        rates: learning rates that cross-entropy alone is tried with; all arms take the best of them.
    """

    name: str
    student: str
    teacher: str
    trained: tuple[str, ...]
    others: tuple[str, ...]
    layers: str | None = None
    tokenizer: str | None = None
    piece: Mapping[str, int] = field(default_factory=dict)
    prompts: tuple[str, ...] = ()
    rates: tuple[float, ...] = (2e-4, 6e-4, 2e-3)


_ENGLISH = (
    "The capital of France is",
    "def fibonacci(n):\n    ",
    "Question: Tom has 3 boxes with 4 pencils each. How many pencils does he have?\nAnswer:",
)
_SMOLLM2 = "models/smollm2-135m-instruct"
SETTINGS = {
    setting.name: setting
    for setting in (
        Setting(
            "compression", _SMOLLM2, _SMOLLM2, ("documentation", "speeches"),
            ("code", "mathematics", "prose", "handbook", "french"), layers="12", tokenizer="tokenizers/llama3",
            prompts=_ENGLISH,
        ),
        Setting(
            "swap", _SMOLLM2, _SMOLLM2, ("documentation", "speeches"),
            ("code", "mathematics", "prose", "handbook", "french"), tokenizer="tokenizers/llama3", prompts=_ENGLISH,
            rates=(2e-5, 6e-5, 2e-4, 6e-4, 2e-3),
        ),
        Setting(
            "language", _SMOLLM2, "models/gemma3-270m", ("french", "chinese"),
            ("italian", "japanese", "handbook", "code", "mathematics", "prose"), piece={"chinese": 700},
            prompts=("Debian est une distribution", "Debian 是一个", "The capital of France is"),
        ),
    )
}  # fmt: skip


@dataclass(frozen=True)
class Arm:
    """What a student learns from; everything else is equal.

    Attributes:
        loss: of the product's losses; None: cross-entropy alone.
        scale, ce_weight: of the objective ``ce_weight * CE + scale * KD``.
        boundary: of the loss's options.
        embeddings: only the embeddings are trained, and the output layer where it is not tied to them.
        rate_factor: what the setting's learning rate is multiplied by.
        steps_share: of the length's steps; the learning rate's schedule is as much shorter.
        same: the student keeps the teacher's tokenizer: a ceiling, where such a student is not the teacher itself.
        trained: False: only measured.
        original: the teacher itself, only measured.
    """

    name: str
    loss: str | None = None
    scale: float | str = "dynamic"
    ce_weight: float = 1.0
    boundary: bool = False
    embeddings: bool = False
    rate_factor: float = 1.0
    steps_share: float = 1.0
    same: bool = False
    trained: bool = True
    original: bool = False


_LOSSES = ("prefix_kl", "gold", "p_kl", "uld", "csd", "bpm", "alm")
ARMS = {
    arm.name: arm
    for arm in (
        Arm("teacher", trained=False, original=True),
        Arm("none", trained=False),
        Arm("ce"),
        *(Arm(loss, loss) for loss in _LOSSES),
        Arm("prefix_kl_boundary", "prefix_kl", boundary=True),
        Arm("prefix_kl_scale1", "prefix_kl", scale=1.0),
        Arm("prefix_kl_scale3", "prefix_kl", scale=3.0),
        Arm("prefix_kl_alone", "prefix_kl", scale=1.0, ce_weight=0.0),
        Arm("prefix_kl_half", "prefix_kl", steps_share=0.5),
        Arm("ce_embeddings", embeddings=True, rate_factor=10.0),
        Arm("prefix_kl_embeddings", "prefix_kl", scale=1.0, ce_weight=0.0, embeddings=True, rate_factor=10.0),
        Arm("same_ce", same=True),
        Arm("same_kl", "same_tokenizer", same=True),
    )
}
#: What is measured beside the students, once for each fold.
BASELINES = ("teacher", "none")
#: In a setting whose student with the teacher's tokens is the teacher itself, and where there is none.
_NO_CEILING = ("swap", "language")


@dataclass(frozen=True)
class Length:
    """How long the students train.

    Attributes:
        steps: optimizer steps, of one piece of each kind that is trained on.
        tuning_steps: of the runs that choose the learning rate.
        piece: bytes of a piece at most, where the setting does not say.
        held_out: bytes that are measured on of each kind, at the end.
        watched: likewise, of the kinds trained on, during the run.
        looks: how often.
    """

    name: str
    steps: int
    tuning_steps: int
    piece: int = 1200
    held_out: int = 8_000
    watched: int = 4_000
    looks: int = 4


LENGTHS = {
    length.name: length
    for length in (
        Length("smoke", 2, 1, piece=200, held_out=300, watched=300, looks=1),
        Length("first", 60, 12, held_out=4_000, watched=3_000),
        Length("medium", 360, 24, held_out=6_000, watched=3_000, looks=6),
        Length("full", 1800, 300, held_out=24_000, looks=12),
    )
}


@dataclass(frozen=True)
class Run:
    """One student.

    Attributes:
        rate: the learning rate; None: the one that was chosen.
    """

    setting: str
    arm: str
    seed: int = 0
    rate: float | None = None

    @property
    def stem(self) -> str:
        """Of its file."""
        return f"{self.arm}-{self.seed}" if self.rate is None else f"tuning-{self.rate:g}"

    def __str__(self) -> str:
        return f"{self.setting}/{self.stem}"


#: Of an arm: what files that were written before there was such a setting mean.
_LATER = {f.name: f.default for f in fields(Arm) if f.name in ("embeddings", "rate_factor", "steps_share")}


def same_settings(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    """Whether a run's file has these settings, as `settings_of` gives them."""
    arm = {"of_arm": _LATER | found.get("of_arm", {})}
    return all((found | arm).get(name) == value for name, value in wanted.items())


def settings_of(run: Run, length: Length) -> dict[str, Any]:
    """Everything that a run's result follows from, as its file has it."""
    parts = {"length": length, "of_setting": SETTINGS[run.setting], "of_arm": ARMS[run.arm]}
    plain: dict[str, Any] = json.loads(json.dumps({name: asdict(part) for name, part in parts.items()}))
    return {"setting": run.setting, "arm": run.arm, "seed": run.seed} | plain


def runs_of(settings: Sequence[str], arms: Sequence[str], seeds: Sequence[int]) -> list[Run]:
    """Everything that is asked for, in the order in which it is done: tuning first, then seed by seed."""
    found = []
    for seed in seeds:
        for name in settings:
            if seed == seeds[0]:
                found += [Run(name, "ce", TUNING_SEED, rate) for rate in SETTINGS[name].rates]
            chosen = [*BASELINES, *(arm for arm in arms if arm not in BASELINES)]
            found += [Run(name, arm, seed) for arm in chosen if not (ARMS[arm].same and name in _NO_CEILING)]
    return found

"""The losses that a certificate looks at, with the settings that change what they do."""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields

from nemo_xtoken.errors import InputError
from nemo_xtoken.losses.base import ChunkLossConfig
from nemo_xtoken.losses.chunks import MERGES
from nemo_xtoken.losses.options import DivergenceOptions
from nemo_xtoken.losses.registry import LOSSES, check_loss
from nemo_xtoken.vocab.vocabulary import Vocabulary

__all__ = ["EVERY", "Variant", "variants_for"]

#: The name that stands for every loss of the registry that the pair of tokenizers allows.
EVERY = "all"


@dataclass(frozen=True)
class Variant:
    """One loss with its settings.

    Attributes:
        loss: its name in the registry.
        rule: of W, for the losses that take it.
        config: how a chunk becomes one term.
        options: its own settings.
    """

    loss: str
    rule: str | None = None
    config: ChunkLossConfig = field(default_factory=ChunkLossConfig)
    options: DivergenceOptions = field(default_factory=DivergenceOptions)

    @property
    def settings(self) -> str:
        """What is not its loss's default, and W's rule and the merge always."""
        words = ["nrl_compat"] if self.options.nrl_compat else []
        words += [] if self.rule is None else [f"W {self.rule}"]
        words += [
            f"{f.name}={getattr(self.options, f.name)}"
            for f in fields(self.options)
            if getattr(self.options, f.name) != f.default and f.name != "nrl_compat"
        ]
        own = self.options.nrl_compat or self.loss == "prefix_kl"
        return ", ".join([*words, "its own merge" if own else self.config.merge])

    @property
    def name(self) -> str:
        """The loss and its settings."""
        return f"{self.loss} ({self.settings})"


def _p_kl() -> tuple[Variant, ...]:
    merged = [Variant("p_kl", rule, ChunkLossConfig(merge)) for rule in ("paper", "prefix") for merge in MERGES]
    turned = [Variant("p_kl", "prefix", options=DivergenceOptions(direction=d)) for d in ("reverse", "js")]
    return (*merged, *turned)


#: What is shown of a loss; one that is not here is shown with its defaults.  Those with a public form as well.
SHOWN: dict[str, tuple[Variant, ...]] = {
    "p_kl": _p_kl(),
    "h_kl": tuple(Variant("h_kl", "paper", options=DivergenceOptions(partial_kl=form)) for form in ("rest", "paper")),
    "gold": tuple(Variant("gold", options=DivergenceOptions(partial_kl=form)) for form in ("paper", "rest")),
}


def variants_for(loss: str, student: Vocabulary, teacher: Vocabulary) -> tuple[Variant, ...]:
    """The variants of a loss, of several (``"p_kl,gold"``), of what the audit chooses (``"auto"``) or of ``"all"``.

    Raises:
        InputError: no such loss, or one that cannot compare these tokenizers.
    """
    if loss == EVERY:
        return tuple(v for name in LOSSES if _fits(name, student, teacher) for v in _shown(name))
    names = [check_loss(name.strip(), student, teacher, DivergenceOptions()) for name in loss.split(",")]
    return tuple(v for name in dict.fromkeys(names) for v in _shown(name))


def _fits(name: str, student: Vocabulary, teacher: Vocabulary) -> bool:
    try:
        check_loss(name, student, teacher, DivergenceOptions())
    except InputError:
        return False
    return True


def _shown(name: str) -> Sequence[Variant]:
    kind = LOSSES[name]
    shown = SHOWN.get(name) or (Variant(name, "paper" if kind.needs_matrix else None),)
    if "nrl_compat" in kind.options:
        return *shown, Variant(name, "paper", options=DivergenceOptions(nrl_compat=True))
    return shown

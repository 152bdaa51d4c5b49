"""The losses that a certificate looks at, with the settings that change what they do."""

from dataclasses import dataclass, field, fields

from nemo_xtoken.errors import InputError
from nemo_xtoken.losses.base import ChunkLossConfig, LossForm
from nemo_xtoken.losses.choosing import check_loss
from nemo_xtoken.losses.options import DivergenceOptions
from nemo_xtoken.losses.registry import LOSSES, loss_named
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
        words = [] if self.rule is None else [f"W {self.rule}"]
        words += [
            f"{f.name}={getattr(self.options, f.name)}"
            for f in fields(self.options)
            if getattr(self.options, f.name) != f.default
        ]
        own = loss_named(self.loss).merges is not None
        return ", ".join([*words, "its own merge" if own else self.config.merge])

    @property
    def name(self) -> str:
        """The loss and its settings."""
        return f"{self.loss} ({self.settings})"


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


def _shown(name: str) -> tuple[Variant, ...]:
    loss = loss_named(name)
    forms = loss.forms or (LossForm("paper" if loss.needs_matrix else None),)
    return tuple(Variant(name, form.rule, form.config, form.options) for form in forms)

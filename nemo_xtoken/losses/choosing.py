"""The loss of a run: its name where ``auto`` leaves the choice to the audit, and whether it fits the pair."""

import logging

from nemo_xtoken.errors import InputError
from nemo_xtoken.losses.options import DEFAULT_LOSS, DivergenceOptions, recommend
from nemo_xtoken.losses.pair import VocabularyPair
from nemo_xtoken.losses.registry import AUTO, check_options, loss_named
from nemo_xtoken.losses.text_coverage import ENOUGH, least_scored_sample
from nemo_xtoken.projection.audit import audit_coverage
from nemo_xtoken.vocab.vocabulary import Vocabulary

__all__ = ["check_loss", "resolve_loss"]

logger = logging.getLogger(__name__)


def resolve_loss(name: str, student: Vocabulary, teacher: Vocabulary) -> str:
    """The name of a loss; for ``"auto"`` the one that the coverage audit recommends.

    The log has its reason, and a warning where it compares only a part of what the default compares in full.

    Raises:
        InputError: there is no such loss.
    """
    if name == AUTO:
        name, _, reason = recommend(audit_coverage(student, teacher))
        logger.info("loss=auto is %s. %s", name, reason)
        if not loss_named(name).every_position:
            kind, scored = least_scored_sample(VocabularyPair(student, teacher), name)
            if (full := scored.share("full")) < ENOUGH:
                logger.warning(
                    "loss=auto is %s, which compares distributions at %.0f%% of the student's tokens of sample %s; "
                    "loss=%s does so at all",
                    name, 100 * full, kind, DEFAULT_LOSS,
                )  # fmt: skip
    loss_named(name)
    return name


def check_loss(
    name: str,
    student: Vocabulary,
    teacher: Vocabulary,
    options: DivergenceOptions,
    merge: str | None = None,
    context: int = 1,
) -> str:
    """`resolve_loss`, and whether the loss has these options, can compare these tokenizers, and fits the layout.

    Args:
        merge: of the chunks; None: not known yet.
        context: context-parallel size of the student.

    Raises:
        InputError: there is no such loss, an option that it does not have, or it cannot compare these tokenizers or be
            divided over so many ranks.
    """
    name = resolve_loss(name, student, teacher)
    loss, values = loss_named(name), check_options(name, options, merge)
    if context > 1 and not loss.context_parallel:
        raise InputError(
            f"loss={name} with trainer.strategy.context_parallel_size={context}",
            "1: this loss looks at all positions of a micro-batch, which no rank has",
            "choose another loss: the others are the same in every layout",
        )
    loss.check(VocabularyPair(student, teacher), values)
    return name

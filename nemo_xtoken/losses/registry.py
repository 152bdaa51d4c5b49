"""The losses by their names, and what each needs."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Optional

from nemo_xtoken.errors import InputError
from nemo_xtoken.losses.base import ChunkDivergence
from nemo_xtoken.losses.common import CommonSet
from nemo_xtoken.losses.directions import direction_named
from nemo_xtoken.losses.gold import Gold
from nemo_xtoken.losses.h_kl import HybridKL
from nemo_xtoken.losses.p_kl import ProjectedKL
from nemo_xtoken.losses.partial_kl import check_partial_kl
from nemo_xtoken.losses.same_tokenizer import SameTokenizerKL
from nemo_xtoken.losses.sorted_l1 import DEFAULT_CAP
from nemo_xtoken.losses.uld import UniversalLogitDistance
from nemo_xtoken.parallel.exchange import VocabularyExchange
from nemo_xtoken.parallel.layout import VocabularyShard
from nemo_xtoken.projection.audit import audit_coverage
from nemo_xtoken.projection.matrix import ProjectionMatrix
from nemo_xtoken.vocab.vocabulary import Vocabulary

__all__ = ["AUTO", "LOSSES", "DivergenceOptions", "LossKind", "check_loss", "make_divergence", "resolve_loss"]

logger = logging.getLogger(__name__)

#: The name that leaves the choice to the coverage audit.
AUTO = "auto"


@dataclass
class DivergenceOptions:
    """Settings of single losses; one that a loss does not have must keep its default.

    Attributes:
        direction: ``"forward"``, ``"reverse"`` or ``"js"`` (p_kl, same_tokenizer).
        partial_kl: ``"rest"`` or ``"paper"`` (h_kl, gold); None is the loss's own, rest for h_kl and paper for gold.
        sorted_cap: values of a side that the sorted distance compares one by one (h_kl, gold, uld).
    """

    direction: str = "forward"
    partial_kl: Optional[str] = None  # noqa: UP045 (nemo_run's command line reads this)
    sorted_cap: int = DEFAULT_CAP

    def __post_init__(self) -> None:
        direction_named(self.direction)
        if self.partial_kl is not None:
            check_partial_kl(self.partial_kl)
        if self.sorted_cap < 1:
            raise InputError(f"sorted_cap={self.sorted_cap}", "at least 1", f"{DEFAULT_CAP} is the default")


@dataclass(frozen=True)
class _Pair:
    student: Vocabulary
    teacher: Vocabulary
    shard: VocabularyShard
    matrix: ProjectionMatrix | None

    @property
    def w(self) -> ProjectionMatrix:
        assert self.matrix is not None
        return self.matrix

    def strict(self) -> CommonSet:
        return CommonSet.strict(self.student, self.teacher)


def _p_kl(pair: _Pair, options: DivergenceOptions) -> ChunkDivergence:
    return ProjectedKL(VocabularyExchange.co_sharded(pair.w, pair.shard), options.direction)


def _h_kl(pair: _Pair, options: DivergenceOptions) -> ChunkDivergence:
    return HybridKL(pair.strict(), pair.w, pair.shard, options.partial_kl or "rest", options.sorted_cap)


def _gold(pair: _Pair, options: DivergenceOptions) -> ChunkDivergence:
    return Gold(pair.strict(), pair.shard, options.partial_kl or "paper", options.sorted_cap)


def _uld(pair: _Pair, options: DivergenceOptions) -> ChunkDivergence:
    return UniversalLogitDistance(pair.shard, pair.teacher.size, options.sorted_cap)


def _same_tokenizer(pair: _Pair, options: DivergenceOptions) -> ChunkDivergence:
    return SameTokenizerKL(pair.shard, pair.teacher.size, options.direction)


@dataclass(frozen=True)
class LossKind:
    """A loss as the registry has it.

    Attributes:
        make: builds it for a pair of models.
        needs_matrix: whether it takes W.
        options: the names of the `DivergenceOptions` that it has.
    """

    make: Callable[[_Pair, DivergenceOptions], ChunkDivergence]
    needs_matrix: bool
    options: tuple[str, ...]


LOSSES: dict[str, LossKind] = {
    "p_kl": LossKind(_p_kl, True, ("direction",)),
    "h_kl": LossKind(_h_kl, True, ("partial_kl", "sorted_cap")),
    "gold": LossKind(_gold, False, ("partial_kl", "sorted_cap")),
    "uld": LossKind(_uld, False, ("sorted_cap",)),
    "same_tokenizer": LossKind(_same_tokenizer, False, ("direction",)),
}


def resolve_loss(name: str, student: Vocabulary, teacher: Vocabulary, matrix: ProjectionMatrix | None = None) -> str:
    """The name of a loss; for ``"auto"`` the one that the coverage audit recommends, with its reason in the log.

    Args:
        matrix: their W; built for the audit by the paper's rule when not given.

    Raises:
        InputError: no such loss.
    """
    if name == AUTO:
        audit = audit_coverage(student, teacher, matrix)
        logger.info("loss=auto is %s. %s", audit.loss, audit.reason)
        return audit.loss
    if name not in LOSSES:
        raise InputError(f"loss={name!r}", f"{AUTO}, or one of {', '.join(LOSSES)}", "choose one of these")
    return name


def check_loss(
    name: str,
    student: Vocabulary,
    teacher: Vocabulary,
    options: DivergenceOptions,
    matrix: ProjectionMatrix | None = None,
) -> str:
    """`resolve_loss`, and whether the loss has these options and can compare these tokenizers.

    Raises:
        InputError: it cannot.
    """
    name = resolve_loss(name, student, teacher, matrix)
    for option in fields(DivergenceOptions):
        value = getattr(options, option.name)
        if option.name not in LOSSES[name].options and value != option.default:
            raise InputError(
                f"{option.name}={value!r} with loss={name}",
                f"a loss that has it ({', '.join(n for n, k in LOSSES.items() if option.name in k.options)})",
                f"leave {option.name} out or change the loss",
            )
    if name == "same_tokenizer" and student.token_bytes != teacher.token_bytes:
        raise InputError(
            f"loss same_tokenizer for the tokenizers {student.name} and {teacher.name}, whose tokens differ",
            "one tokenizer",
            "use loss=auto, or one of the losses across tokenizers",
        )
    return name


def make_divergence(
    name: str,
    matrix: ProjectionMatrix | None,
    student_vocabulary: Vocabulary,
    teacher_vocabulary: Vocabulary,
    student_shard: VocabularyShard,
    options: DivergenceOptions | None = None,
) -> ChunkDivergence:
    """The loss of that name between a student and a teacher; it says how the teacher's output layer is to be laid out.

    Args:
        name: one of `LOSSES`, or ``"auto"``.
        matrix: W; needed by those with ``needs_matrix``, else not looked at but by ``"auto"``.
        student_shard: layout of the student's output layer.

    Returns:
        a module on the CPU, without parameters; move it to the device of the models.  Its ``ownership`` is the order
        that the teacher's output layer must have (``parallel.ownership.reorder_rows``).

    Raises:
        InputError: no such loss, an option that it does not have, no W where it needs one, or vocabularies that are
            not those of the output layers.
    """
    options = options or DivergenceOptions()
    name = check_loss(name, student_vocabulary, teacher_vocabulary, options, matrix)
    kind = LOSSES[name]
    if student_vocabulary.size != student_shard.size:
        raise InputError(
            f"a student tokenizer of {student_vocabulary.size} tokens ({student_vocabulary.name}), a model of "
            f"{student_shard.size}",
            "equal sizes",
            "give the model the tokenizer it was trained with",
        )
    if kind.needs_matrix and matrix is None:
        raise InputError(f"loss={name} without W", "a projection matrix", "build it with `xtoken build`")
    pair = _Pair(student_vocabulary, teacher_vocabulary, student_shard, matrix)
    return kind.make(pair, options)

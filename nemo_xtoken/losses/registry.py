"""The losses by their names, and what each needs."""

import functools
import logging
from collections.abc import Callable
from dataclasses import dataclass, fields

import torch

from nemo_xtoken.errors import InputError
from nemo_xtoken.losses.base import ChunkDivergence, ChunkLossConfig
from nemo_xtoken.losses.gold import Gold
from nemo_xtoken.losses.h_kl import HybridKL
from nemo_xtoken.losses.nrl import NRL_TOP_K, NrlGold, NrlProjectedKL, nrl_relaxed_pairs
from nemo_xtoken.losses.options import DivergenceOptions
from nemo_xtoken.losses.p_kl import ProjectedKL
from nemo_xtoken.losses.partial_kl import check_partial_kl
from nemo_xtoken.losses.prefix_kl import PrefixKL, SameClass
from nemo_xtoken.losses.same_tokenizer import SameTokenizerKL
from nemo_xtoken.losses.sorted_l1 import DEFAULT_CAP
from nemo_xtoken.losses.strict_1to1 import DEFAULT_TOP_K, ExactPairs, StrictOneToOne
from nemo_xtoken.losses.uld import UniversalLogitDistance
from nemo_xtoken.parallel.common_set import CommonSet
from nemo_xtoken.parallel.exchange import VocabularyExchange
from nemo_xtoken.parallel.vocabulary_shard import VocabularyShard
from nemo_xtoken.projection.audit import audit_coverage
from nemo_xtoken.projection.matrix import ProjectionMatrix
from nemo_xtoken.projection.prefixes import PrefixClasses
from nemo_xtoken.vocab.vocabulary import Vocabulary

__all__ = [
    "AUTO",
    "LOSSES",
    "DivergenceOptions",
    "LossKind",
    "check_loss",
    "chunk_selection",
    "make_divergence",
    "resolve_loss",
]

logger = logging.getLogger(__name__)

#: The name that leaves the choice to the coverage audit.
AUTO = "auto"
#: The form of the partial KL that a loss has by default.
PARTIAL = {"h_kl": "rest", "gold": "paper"}


@dataclass(frozen=True)
class _Pair:
    student: Vocabulary
    teacher: Vocabulary
    shard: VocabularyShard
    matrix: ProjectionMatrix | None
    classes: PrefixClasses | None = None

    @property
    def w(self) -> ProjectionMatrix:
        assert self.matrix is not None
        return self.matrix

    def strict(self) -> CommonSet:
        return CommonSet.strict(self.student, self.teacher)


def _p_kl(pair: _Pair, options: DivergenceOptions) -> ChunkDivergence:
    exchange = VocabularyExchange.co_sharded(pair.w, pair.shard)
    if options.nrl_compat:
        return NrlProjectedKL(exchange, options.top_k or NRL_TOP_K)
    return ProjectedKL(exchange, options.direction, options.top_k)


def _prefix_kl(pair: _Pair, options: DivergenceOptions) -> ChunkDivergence:
    return PrefixKL(pair.classes or _prefix_classes(pair.student, pair.teacher), pair.shard)


@functools.lru_cache(maxsize=4)  # a run asks twice for each teacher
def _prefix_classes(student: Vocabulary, teacher: Vocabulary) -> PrefixClasses:
    return PrefixClasses.of(student, teacher)


def _h_kl(pair: _Pair, options: DivergenceOptions) -> ChunkDivergence:
    if options.nrl_compat:
        return NrlGold(nrl_relaxed_pairs(pair.w), pair.shard, options.sorted_cap or NRL_TOP_K)
    cap = options.sorted_cap or DEFAULT_CAP
    return HybridKL(pair.strict(), pair.w, pair.shard, options.partial_kl or PARTIAL["h_kl"], cap, options.top_k)


def _gold(pair: _Pair, options: DivergenceOptions) -> ChunkDivergence:
    if options.nrl_compat:  # there the pairs are read from W
        return NrlGold(CommonSet.of_exact_rows(pair.w), pair.shard, options.sorted_cap or NRL_TOP_K)
    cap = options.sorted_cap or DEFAULT_CAP
    return Gold(pair.strict(), pair.shard, options.partial_kl or PARTIAL["gold"], cap, options.top_k)


def _uld(pair: _Pair, options: DivergenceOptions) -> ChunkDivergence:
    return UniversalLogitDistance(pair.shard, pair.teacher.size, options.sorted_cap or DEFAULT_CAP)


def _strict_1to1(pair: _Pair, options: DivergenceOptions) -> ChunkDivergence:
    return StrictOneToOne(pair.strict(), pair.shard, options.top_k or DEFAULT_TOP_K)


def _same_tokenizer(pair: _Pair, options: DivergenceOptions) -> ChunkDivergence:
    return SameTokenizerKL(pair.shard, pair.teacher.size, options.direction, options.top_k)


@dataclass(frozen=True)
class LossKind:
    """A loss as the registry has it.

    Attributes:
        make: builds it for a pair of models.
        needs_matrix: whether it takes W.
        options: the names of the `DivergenceOptions` that it has.
        selection: which chunks it scores, from the student's and the teacher's vocabulary; None: all.
    """

    make: Callable[[_Pair, DivergenceOptions], ChunkDivergence]
    needs_matrix: bool
    options: tuple[str, ...]
    selection: Callable[[Vocabulary, Vocabulary], torch.nn.Module] | None = None


LOSSES: dict[str, LossKind] = {
    "p_kl": LossKind(_p_kl, True, ("direction", "top_k", "nrl_compat")),
    "prefix_kl": LossKind(_prefix_kl, False, (), lambda s, t: SameClass(_prefix_classes(s, t))),
    "h_kl": LossKind(_h_kl, True, ("partial_kl", "sorted_cap", "top_k", "nrl_compat")),
    "gold": LossKind(_gold, False, ("partial_kl", "sorted_cap", "top_k", "nrl_compat")),
    "uld": LossKind(_uld, False, ("sorted_cap",)),
    "strict_1to1": LossKind(_strict_1to1, False, ("top_k",), lambda s, t: ExactPairs(CommonSet.strict(s, t))),
    "same_tokenizer": LossKind(_same_tokenizer, False, ("direction", "top_k")),
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
    merge: str | None = None,
) -> str:
    """`resolve_loss`, and whether the loss has these options and can compare these tokenizers.

    Args:
        merge: of the chunks; None: not known yet.

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
    if options.nrl_compat and merge not in (None, ChunkLossConfig().merge):
        raise InputError(f"merge={merge!r} with nrl_compat", "its own merge", "leave chunks.merge or nrl_compat out")
    if options.nrl_compat and options.top_k is not None and name != "p_kl":
        raise InputError(
            f"top_k={options.top_k} with nrl_compat and loss={name}", "no top_k: there is none there", "leave it out"
        )
    if name in PARTIAL and not options.nrl_compat:
        check_partial_kl(options.partial_kl or PARTIAL[name], options.top_k)
    if name == "same_tokenizer" and student.token_bytes != teacher.token_bytes:
        raise InputError(
            f"loss same_tokenizer for the tokenizers {student.name} and {teacher.name}, whose tokens differ",
            "one tokenizer",
            "use loss=auto, or one of the losses across tokenizers",
        )
    return name


def chunk_selection(name: str, student: Vocabulary, teacher: Vocabulary) -> torch.nn.Module | None:
    """Which chunks a loss scores, for those who count them; None: all.

    Args:
        name: one of `LOSSES`, or ``"auto"``, which is never one that leaves chunks out.

    Returns:
        ``(student labels, teacher labels, chunks) -> bool [K]``, the divergence's ``selects`` without its output layer;
        on the CPU: move it to the device of the labels.
    """
    selection = None if name == AUTO else LOSSES[name].selection
    return None if selection is None else selection(student, teacher)


def make_divergence(
    name: str,
    matrix: ProjectionMatrix | None,
    student_vocabulary: Vocabulary,
    teacher_vocabulary: Vocabulary,
    student_shard: VocabularyShard,
    options: DivergenceOptions | None = None,
    classes: PrefixClasses | None = None,
) -> ChunkDivergence:
    """The loss of that name between a student and a teacher; it says how the teacher's output layer is to be laid out.

    Args:
        name: one of `LOSSES`, or ``"auto"``.
        matrix: W; needed by those with ``needs_matrix``, else not looked at but by ``"auto"``.
        student_shard: layout of the student's output layer.
        classes: of the vocabularies, for prefix_kl; made here when not given.

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
    if (kind.needs_matrix or options.nrl_compat) and matrix is None:
        raise InputError(f"loss={name} without W", "a projection matrix", "build it with `xtoken build`")
    pair = _Pair(student_vocabulary, teacher_vocabulary, student_shard, matrix, classes)
    return kind.make(pair, options)

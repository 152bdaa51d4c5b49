"""What goes into a loss and what comes out: model outputs as hidden states, results as sums and counts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from nemo_xtoken.errors import InputError
from nemo_xtoken.kernels.pair_kernels import TileLogits
from nemo_xtoken.kernels.tile_kernels import RowGradient, TileKernels
from nemo_xtoken.limits import TEMPERATURES
from nemo_xtoken.losses.chunks import MERGES, FromLogits, Picked, ScoredRows, scored_chunks, tokens_before
from nemo_xtoken.losses.options import DivergenceOptions
from nemo_xtoken.losses.pair import VocabularyPair
from nemo_xtoken.parallel.column_pairs import ColumnPairs
from nemo_xtoken.parallel.common_set import CommonSet
from nemo_xtoken.parallel.head import OutputHead
from nemo_xtoken.parallel.ownership import Ownership
from nemo_xtoken.parallel.vocabulary_shard import VocabularyShard

__all__ = [
    "ChunkDivergence",
    "ChunkLossConfig",
    "Comparison",
    "LaterTerms",
    "LossForm",
    "LossSum",
    "LossTerms",
    "ModelOutput",
    "TeacherSignal",
]


class LaterTerms(NamedTuple):
    """What the later rows of chunks add to a divergence.

    Attributes:
        values: ``[k]``, equal on all ranks.
        entries: (student rows ``[e]``, this rank's columns ``[e]``, the derivative with respect to their
            log-probabilities as if all were free ``[e]``), times the chunk's coefficient.
        inner: (student rows ``[r]``, the sum of these derivatives over a row and all ranks ``[r]``); a row may come
            more than once.  None: all rows, in order.
        metrics: ``[m, k]``, the last rows of ``metric_names``.
        rows: the derivative with respect to whole rows of probabilities, times the coefficients; None: there is none.
    """

    values: Tensor
    entries: tuple[Tensor, Tensor, Tensor]
    inner: tuple[Tensor | None, Tensor]
    metrics: Tensor
    rows: RowGradient | None = None


@dataclass(frozen=True)
class ModelOutput:
    """The last hidden states of a model and the output layer that makes logits of them, tile by tile.

    Attributes:
        hidden: ``[b*T, H]``, sample after sample; replicated over the tensor-parallel group.
        head: the output layer, sharded along the vocabulary over that group.
    """

    hidden: Tensor
    head: OutputHead


class Comparison(NamedTuple):
    """What a divergence says about k chunks.

    Attributes:
        values: ``[1 + metrics, k]``: the divergence first, then ``metric_names``; equal on all ranks.
        gradient: ``[k, V_S/tp]``, the derivative with respect to each student probability as if all were free, times
            the chunk's coefficient; None when not asked for.
        by_entry: ``[E]``, the derivative with respect to the entries of W that this rank holds, times the coefficients
            and summed over the chunks; None when not asked for, and for divergences without W.
    """

    values: Tensor
    gradient: Tensor | None = None
    by_entry: Tensor | None = None


@dataclass(frozen=True)
class ChunkLossConfig:
    """Settings that the losses on chunks share.

    Attributes:
        merge: how a chunk of several tokens becomes one term: ``chain_rule`` (the distribution at its first position
            times the continuation's probability), ``mean`` (of the distributions at its positions), ``first``.  A
            divergence with its own ``merges`` does not ask.  Why chain_rule: docs/learning.md#defaults.
        temperature: tau; distillation terms carry ``tau**2``.
    """

    merge: str = "chain_rule"
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if self.merge not in MERGES:
            raise InputError(f"merge={self.merge!r}", f"one of {', '.join(MERGES)}", "choose one of these")
        least, most = TEMPERATURES
        if not least <= self.temperature <= most:
            raise InputError(
                f"temperature={self.temperature}", f"a number from {least:g} to {most:g}", "1.0 is the paper's"
            )


@dataclass(frozen=True)
class LossForm:
    """One way to set a loss, of those that a certificate shows.

    Attributes:
        rule: of W, for the losses that take it.
        config: how a chunk becomes one term.
        options: the loss's own settings.
    """

    rule: str | None = None
    config: ChunkLossConfig = field(default_factory=ChunkLossConfig)
    options: DivergenceOptions = field(default_factory=DivergenceOptions)


class ChunkDivergence(torch.nn.Module):
    """A divergence between the student's and the teacher's distribution of one chunk, on sharded vocabularies.

    A loss is a subclass in a file of its own and a row of `losses.registry.LOSSES`.  Checks, preflight, the coverage
    audit, certificates and training read the attributes of the class and name no loss.

    Attributes of the class:
        options: the settings of `DivergenceOptions` that it has, each with its value where none is given.
        needs_matrix: it takes W.
        learns_matrix: W can be trained with the student; then there is an attribute ``exchange``, made from W.
        context_parallel: it is the same under context parallelism; False for one that looks at all positions of a
            micro-batch, which no rank has.
        suits: the findings of the coverage audit (``projection.audit.FINDINGS``) under which it makes sense.
        forms: what a certificate shows of it; empty: its defaults.
        every_position: it compares the distributions at each position of a chunk, not at one of them alone.
        leaves_chunks_out: it scores some kinds of chunks alone, by its ``selection``.
        takes_beginnings: it scores what is left of a chunk that holds the first token of a text on a side, without
            that token; see ``beginnings`` of `data.batch.TeacherSide`.
        merges: how it wants the rows of a chunk merged, the student's and the teacher's (see ``merge``); None: as
            ``ChunkLossConfig.merge`` says.
        metric_names: of the rows of ``Comparison.values`` after the first, and of those of ``LaterTerms.metrics``.

    Attributes:
        ownership: the order in which it wants the teacher's columns.
    """

    options: ClassVar[Mapping[str, Any]] = {}
    needs_matrix: ClassVar[bool] = False
    learns_matrix: ClassVar[bool] = False
    context_parallel: ClassVar[bool] = True
    suits: ClassVar[frozenset[str]] = frozenset({"inside", "outside"})
    forms: ClassVar[tuple[LossForm, ...]] = ()
    every_position: ClassVar[bool] = False
    takes_beginnings: ClassVar[bool] = False
    leaves_chunks_out: ClassVar[bool] = False
    merges: tuple[str, str] | None = None
    metric_names: tuple[str, ...] = ()
    ownership: Ownership

    @classmethod
    def of(
        cls, pair: VocabularyPair, student: VocabularyShard, options: Mapping[str, Any], kernels: TileKernels
    ) -> "ChunkDivergence":
        """The divergence for a pair of models, as a module on the CPU, without parameters.

        Args:
            student: layout of its output layer.
            options: a value for each of the class's ``options``.
            kernels: what goes over the tiles.
        """
        raise NotImplementedError

    @classmethod
    def check(cls, pair: VocabularyPair, options: Mapping[str, Any]) -> None:
        """Whether these settings go together, and whether it can compare these tokenizers; makes nothing of the pair.

        Args:
            options: as in :meth:`of`.

        Raises:
            InputError: the settings do not, or it cannot.
        """

    @classmethod
    def linear_in_teacher(cls, options: Mapping[str, Any]) -> bool:
        """Whether the gradient is linear in the teacher's probabilities at each position by itself, whatever the merge.

        Then an unbiased estimate of them gives an unbiased gradient; their exact values at the observed tokens may be
        used in any way.

        Args:
            options: as in :meth:`of`.
        """
        return False

    @classmethod
    def selection(cls, pair: VocabularyPair) -> torch.nn.Module | None:
        """Which chunks it scores; None: all.

        Returns:
            ``(student labels, teacher labels, chunks) -> bool [K]``, or ``-> chunks`` of a loss that takes some of them
            together; arguments as in :class:`TeacherSignal`, each document a sample of its own; on the CPU: move it to
            the device of the labels.
        """
        return None

    @classmethod
    def common_sets(cls, pair: VocabularyPair) -> tuple[CommonSet, ...]:
        """Pairs of tokens that it compares one by one: a certificate, which cuts vocabularies down, keeps them."""
        return ()

    def start(self, p_student: Tensor, entry_weights: Tensor | None = None) -> Any:
        """Begins with the student's side alone; what has to travel does so while the teacher's logits are made.

        Args:
            p_student: ``[k, V_S/tp]`` probabilities, this rank's columns.
            entry_weights: ``[E]``, of W, where it is learned.
        """
        raise NotImplementedError

    def finish(self, started: Any, p_teacher: Tensor, coefficients: Tensor | None) -> Comparison:
        """
        Args:
            started: what :meth:`start` returned.
            p_teacher: ``[k, V_T/tp]`` probabilities, this rank's columns in the order of ``ownership``; may be
                overwritten.
            coefficients: ``[k]``, of the chunks in the objective; None: no gradient is wanted.
        """
        raise NotImplementedError

    def later_terms(
        self,
        p_student: Tensor,
        student: ScoredRows,
        p_teacher: Tensor,
        teacher: ScoredRows,
        coefficients: Tensor | None,
    ) -> LaterTerms | None:
        """What the rows of chunks add that ``merges`` leaves out; None: nothing.

        Args:
            p_student, p_teacher: ``[n, V/tp]`` probabilities of all rows of either side, as ``finish`` has them.
            student, teacher: the rows, their labels and chunks.
            coefficients: as in :meth:`finish`.
        """
        return None

    def plans(self, tiles: Sequence[tuple[ScoredRows, ScoredRows] | None]) -> Sequence[Any]:
        """What it has to know of each tile's labels, made once a micro-batch so that no tile waits for the device.

        Args:
            tiles: the student's and the teacher's rows, their labels and chunks; None: without a chunk.

        Returns:
            one a tile; where it is not None, :meth:`planned_terms` takes it and is asked in place of
            :meth:`later_terms`.
        """
        return [None] * len(tiles)

    def planned_terms(self, plan: Any, picked: tuple[Picked, Picked], coefficients: Tensor | None) -> LaterTerms:
        """:meth:`later_terms` of a tile with a plan.

        Args:
            plan: one of :meth:`plans`.
            picked: the student's and the teacher's probabilities.
            coefficients: as in :meth:`finish`.
        """
        raise NotImplementedError

    def paired_terms(
        self, plan: Any, sides: tuple[TileLogits, TileLogits], temperature: float, coefficients: Tensor | None
    ) -> LaterTerms:
        """:meth:`planned_terms` of a divergence with :meth:`column_pairs`, from both sides' logits."""
        picked = FromLogits(sides[0], temperature), FromLogits(sides[1], temperature)
        return self.planned_terms(plan, picked, coefficients)

    def column_pairs(self) -> ColumnPairs | None:
        """The same column by column, for kernels that take it from both sides' logits; None: there are none.

        Then its metrics are the teacher's and the student's mass in REST, the bytes a rank sends and those of
        :meth:`planned_terms`, or none.  What is more than columns adds to them: see ``slots.ComparesSlots`` and
        ``top_k.ComparesLargest``.
        """
        return None

    def planned_finish(self, plan: Any, started: Any, p_teacher: Tensor, coefficients: Tensor | None) -> Comparison:
        """:meth:`finish` of a tile with a plan, for divergences that compare its chunks otherwise then."""
        return self.finish(started, p_teacher, coefficients)

    def for_batch(self, teacher: ModelOutput) -> "ChunkDivergence":
        """What compares this micro-batch's chunks: one that has to see the whole of it first does so here."""
        return self

    def teacher_rows(self, p: Tensor) -> Tensor:
        """What is made of the teacher's positions, ``[m, V_T/tp]`` probabilities, before they are merged."""
        return p


@dataclass(frozen=True)
class TeacherSignal:
    """What one teacher says about a micro-batch of b samples, and how the student is compared with it.

    Attributes:
        output: hidden ``[b*T_T, H_T]`` and the output layer in the order of ``divergence.ownership``.
        labels: int64 ``[b, T_T]``, the next token (its own id, not its owned one), -100 where there is none.
        chunks: int64 ``[K, 5]``: sample, first student row, student rows, first teacher row, teacher rows; in order.
            Those that the loss scores, see :meth:`selected`.
        divergence: how the distributions of a chunk are compared.
        config: how a chunk becomes one term.
        entry_weights: ``[E]``, this rank's entries of W where it is learned; they get a gradient.
        before: int64 ``[2, K, 2]``, of the student and the teacher, see ``ScoredRows.before``; None: what the labels
            say, where each sample is one document.
        statistic: what to add up over the teacher's positions in chunks, one of ``teacher_weights.STATISTICS``; None:
            nothing.
    """

    output: ModelOutput
    labels: Tensor
    chunks: Tensor
    divergence: ChunkDivergence
    config: ChunkLossConfig = field(default_factory=ChunkLossConfig)
    entry_weights: Tensor | None = None
    statistic: str | None = None
    before: Tensor | None = None

    @property
    def merges(self) -> tuple[str, str]:
        """How the student's and the teacher's rows of a chunk are merged."""
        return self.divergence.merges or (self.config.merge, self.config.merge)

    def selected(self, selection: torch.nn.Module | None, student_labels: Tensor) -> "TeacherSignal":
        """The same with the chunks alone that a loss scores.

        Args:
            selection: of the loss, see ``ChunkDivergence.selection``; None: all.
            student_labels: int64 ``[b, T_S]``.
        """
        if selection is None:
            return self
        assert self.before is None, "chunks are selected before they are shared out"
        return replace(self, chunks=scored_chunks(selection, student_labels, self.labels, self.chunks))

    def after(self, *sides: tuple[Tensor, Tensor]) -> "TeacherSignal":
        """The same with what stands before its chunks.

        Args:
            sides: of the student and the teacher ``(tokens, positions)``, see ``chunks.tokens_before``.
        """
        places = self.chunks[:, :2].T, self.chunks[:, 0:4:3].T
        return replace(self, before=torch.stack([tokens_before(*s, *at) for s, at in zip(sides, places, strict=True)]))


@dataclass(frozen=True)
class LossSum:
    """A loss as a sum over its items.  Nobody divides but the one place that knows the counts of all ranks.

    Attributes:
        total: scalar, the sum over this micro-batch, detached, equal on all ranks of the tensor-parallel group.
        count: number of items in the sum.
        metrics: name -> sum over the same items, detached.
    """

    total: Tensor
    count: int
    metrics: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class LossTerms:
    """The losses of a micro-batch.

    Attributes:
        objective: scalar, the weighted sum of the totals below; differentiable with respect to the student's hidden
            states and output weight, and to entries of W that are learned.
        ce: cross-entropy over the labelled student positions.
        kd: of each teacher, the distillation loss over its chunks.
    """

    objective: torch.Tensor
    ce: LossSum
    kd: tuple[LossSum, ...] = ()

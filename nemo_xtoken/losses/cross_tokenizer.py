"""The cross-tokenizer loss of one micro-batch: cross-entropy and distillation terms from one pass over the tiles."""

from dataclasses import dataclass

import torch
from torch import Tensor

from nemo_xtoken.errors import InputError
from nemo_xtoken.losses.base import ChunkDivergence, LossSum, ModelOutput
from nemo_xtoken.losses.chunks import IGNORED, MERGES, ScoredRows, sum_later_tokens
from nemo_xtoken.losses.tiles import Terms, tiled_terms

__all__ = ["AlignedLabels", "ChunkLossConfig", "bernoulli_kl", "cross_tokenizer_loss"]


@dataclass(frozen=True)
class ChunkLossConfig:
    """Settings that the losses on chunks share.

    Attributes:
        merge: how a chunk of several tokens becomes one term: ``chain_rule`` (the distribution at its first position
            times the continuation's probability), ``mean`` (of the distributions at its positions), ``first``.
        temperature: tau; distillation terms carry ``tau**2``.
        tile_rows: student positions in a tile; memory grows with it, speed hardly beyond a few hundred.
    """

    merge: str = "chain_rule"
    temperature: float = 1.0
    tile_rows: int = 256

    def __post_init__(self) -> None:
        if self.merge not in MERGES:
            raise InputError(f"merge={self.merge!r}", f"one of {', '.join(MERGES)}", "choose one of these")
        if not self.temperature > 0:
            raise InputError(f"temperature={self.temperature}", "a number above 0", "1.0 is the paper's")
        if self.tile_rows < 1:
            raise InputError(f"tile_rows={self.tile_rows}", "at least 1", "256 is the default")


@dataclass(frozen=True)
class AlignedLabels:
    """Labels and chunks of a micro-batch of b samples.

    Attributes:
        student_labels: int64 ``[b, T_S]``, the next token, -100 where there is none.
        teacher_labels: int64 ``[b, T_T]`` likewise.
        chunks: int64 ``[K, 5]``: sample, first student row, student rows, first teacher row, teacher rows; in order.
    """

    student_labels: Tensor
    teacher_labels: Tensor
    chunks: Tensor

    def student_rows(self) -> ScoredRows:
        """Every labelled student position, with the chunks."""
        first = self.chunks[:, 0] * self.student_labels.shape[1] + self.chunks[:, 1]
        return ScoredRows.build(self.student_labels.reshape(-1), first, self.chunks[:, 2], only_chunks=False)

    def teacher_rows(self) -> ScoredRows:
        """The teacher positions that chunks cover."""
        first = self.chunks[:, 0] * self.teacher_labels.shape[1] + self.chunks[:, 3]
        return ScoredRows.build(self.teacher_labels.reshape(-1), first, self.chunks[:, 4], only_chunks=True)

    @property
    def tokens(self) -> int:
        """Student labels, the items of the cross-entropy."""
        return int((self.student_labels != IGNORED).sum())


def bernoulli_kl(log_m_teacher: Tensor, log_m_student: Tensor) -> Tensor:
    """``KL(Bernoulli(m_T) || Bernoulli(m_S))`` from the logarithms of m; differentiable by the student's.

    A probability nearer to 1 than float32 can tell is taken as the nearest that it can, so that 1 - m is never 0.
    """
    log_m_student = _below_zero(log_m_student)
    log_m_teacher = _below_zero(log_m_teacher)
    m, other = log_m_teacher.exp(), -torch.expm1(log_m_teacher)
    return m * (log_m_teacher - log_m_student) + other * (other.log() - torch.log(-torch.expm1(log_m_student)))


def _below_zero(log_m: Tensor) -> Tensor:
    return log_m + (log_m.clamp_max(-(2.0**-24)) - log_m).detach()  # moves the value, passes the gradient


def _merge_chain_rule(terms: Terms, student: ScoredRows, teacher: ScoredRows) -> Tensor:
    """``m_T * KL + C``, ``[K]``: C is the Bernoulli KL of the continuations, 0 where the student has none.

    Where only the student has later tokens m_T is 1 and C is ``-log m_S``.
    """
    assert terms.divergence is not None
    assert terms.teacher_log_p_tau is not None
    log_m_student = sum_later_tokens(terms.log_p_tau, student)
    log_m_teacher = sum_later_tokens(terms.teacher_log_p_tau, teacher)
    continuation = torch.where(teacher.tokens > 1, bernoulli_kl(log_m_teacher, log_m_student), -log_m_student)
    return log_m_teacher.exp() * terms.divergence + torch.where(student.tokens > 1, continuation, 0)


def cross_tokenizer_loss(
    student: ModelOutput,
    labels: AlignedLabels,
    teacher: ModelOutput | None = None,
    divergence: ChunkDivergence | None = None,
    config: ChunkLossConfig | None = None,
) -> tuple[LossSum, LossSum | None]:
    """Cross-entropy of the student and, with a teacher, the distillation loss over the chunks.

    Args:
        student: hidden ``[b*T_S, H_S]``, replicated over the tensor-parallel group; weight sharded over it.
        labels: of the micro-batch, on the same device.
        teacher: hidden ``[b*T_T, H_T]`` likewise; needs ``divergence``.

    Returns:
        ``(cross-entropy over the labelled student positions, distillation over the chunks or None)``, as sums.
    """
    config = config or ChunkLossConfig()
    rows = labels.student_rows()
    if teacher is None:
        terms = tiled_terms(student, rows, tile_rows=config.tile_rows)
        return _cross_entropy(terms, rows), None
    teacher_rows = labels.teacher_rows()
    terms = tiled_terms(
        student, rows, teacher, teacher_rows, divergence, config.merge, config.temperature, config.tile_rows
    )
    assert terms.divergence is not None
    assert terms.metrics is not None
    assert divergence is not None
    per_chunk = terms.divergence
    if config.merge == "chain_rule":
        per_chunk = _merge_chain_rule(terms, rows, teacher_rows)
    metrics = dict(zip(divergence.metric_names, terms.metrics.sum(1), strict=True))
    total = config.temperature**2 * per_chunk.sum()
    return _cross_entropy(terms, rows), LossSum(total, int(labels.chunks.shape[0]), metrics)


def _cross_entropy(terms: Terms, rows: ScoredRows) -> LossSum:
    return LossSum(-terms.log_p.sum(), rows.rows.numel())

"""The loss between two models in a training loop of your own: vocabularies and tensors in, nothing of NeMo.

    loss = PairLoss(student_vocabulary, teacher_vocabulary, student_weight, teacher_weight, "p_kl")
    batch = TextBatch.of(texts, student_vocabulary, teacher_vocabulary)
    terms = loss(batch, student_hidden, student_weight, teacher_hidden)
    terms.objective.backward()

It is what a training step of the plugin does: the same divergences, the same pass over tiles.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from nemo_xtoken.alignment.aligner import Aligner
from nemo_xtoken.data.batch import IGNORED
from nemo_xtoken.data.workers import document_ids
from nemo_xtoken.kernels.reference import TORCH
from nemo_xtoken.kernels.tile_kernels import TileKernels
from nemo_xtoken.losses.base import ChunkLossConfig, LossTerms, ModelOutput, TeacherSignal
from nemo_xtoken.losses.options import DEFAULT_LOSS, DivergenceOptions
from nemo_xtoken.losses.pair import VocabularyPair
from nemo_xtoken.losses.registry import check_loss, chunk_selection, make_divergence
from nemo_xtoken.objective.terms import cross_tokenizer_loss
from nemo_xtoken.objective.tiles import rows_within
from nemo_xtoken.parallel.head import OutputHead
from nemo_xtoken.parallel.ownership import reorder_rows
from nemo_xtoken.parallel.vocabulary_shard import VocabularyShard
from nemo_xtoken.projection.build import load_or_build
from nemo_xtoken.projection.matrix import ProjectionMatrix
from nemo_xtoken.vocab.vocabulary import Vocabulary

__all__ = ["PairLoss", "TextBatch"]


@dataclass(frozen=True)
class TextBatch:
    """b texts in both tokenizations, padded at their ends, and their chunks.

    Attributes:
        student_tokens, teacher_tokens: int64 ``[b, T_S]``, ``[b, T_T]``, what the models read.
        student_labels, teacher_labels: the next token at each position, -100 on padding.
        chunks: int64 ``[K, 5]``: sample, first student row, student rows, first teacher row, teacher rows; those whose
            first tokens both have a predictor.
    """

    student_tokens: Tensor
    student_labels: Tensor
    teacher_tokens: Tensor
    teacher_labels: Tensor
    chunks: Tensor

    @classmethod
    def of(cls, texts: Sequence[str], student: Vocabulary, teacher: Vocabulary) -> "TextBatch":
        """Encodes and aligns the texts, each as a document of its own: with BOS where the tokenizer has it, and EOS."""
        aligner = Aligner(student, teacher)
        sides = [_documents(texts, vocabulary) for vocabulary in (student, teacher)]
        chunks = []
        for sample, (s, t) in enumerate(zip(*sides, strict=True)):
            found = aligner.align(s, t).astype(np.int64)
            found = found[(found[:, 0] > 0) & (found[:, 2] > 0)]  # position a - 1 predicts token a
            sizes = found[:, 1] - found[:, 0], found[:, 3] - found[:, 2]
            columns = np.full(len(found), sample), found[:, 0] - 1, sizes[0], found[:, 2] - 1, sizes[1]
            chunks.append(np.stack(columns, axis=1))
        tensors = [_padded(side) for side in sides]
        return cls(*tensors[0], *tensors[1], torch.from_numpy(np.concatenate(chunks)))

    def to(self, device: torch.device | str) -> "TextBatch":
        """The same on a device."""
        return TextBatch(*(getattr(self, field.name).to(device) for field in fields(self)))


def _documents(texts: Sequence[str], vocabulary: Vocabulary) -> list[np.ndarray]:
    return [document_ids(vocabulary, ids).astype(np.int64) for ids in vocabulary.encode_batch(texts)]


def _padded(documents: Sequence[np.ndarray]) -> tuple[Tensor, Tensor]:
    """``(tokens, labels)``, each ``[b, T]``."""
    length = max(len(ids) for ids in documents) - 1
    tokens = torch.zeros(len(documents), length, dtype=torch.int64)
    labels = torch.full_like(tokens, IGNORED)
    for row, ids in enumerate(map(torch.from_numpy, documents)):
        tokens[row, : len(ids) - 1], labels[row, : len(ids) - 1] = ids[:-1], ids[1:]
    return tokens, labels


class PairLoss:
    """``CE + scale * KD`` between a student and a frozen teacher, each with its own tokenizer.

    Args:
        student, teacher: the vocabularies (``vocab.load_vocabulary``).
        student_weight: ``[V_padded, H_S]``, the student's output layer, for its shape.
        teacher_weight: ``[V_padded, H_T]``, the teacher's; a copy in the loss's own order is kept.
        loss: one of ``losses.registry.LOSSES``, ``"auto"``, or ``package.module:Class``.
        options: settings of that loss.
        config: how a chunk of several tokens becomes one term, and the temperature.
        matrix: W; by default it is built by the paper's rule, where the loss needs it.
        kernels: what goes over the tiles.
        group: the tensor-parallel group over which the rows of both weights are sharded; None: one process.

    Raises:
        InputError: there is no such loss, it cannot compare these tokenizers, or a vocabulary and a weight do not
            belong together.
    """

    def __init__(
        self,
        student: Vocabulary,
        teacher: Vocabulary,
        student_weight: Tensor,
        teacher_weight: Tensor,
        loss: str = DEFAULT_LOSS,
        *,
        options: DivergenceOptions | None = None,
        config: ChunkLossConfig | None = None,
        matrix: ProjectionMatrix | None = None,
        kernels: TileKernels = TORCH,
        group: ProcessGroup | None = None,
    ) -> None:
        options, self.config, self.kernels = options or DivergenceOptions(), config or ChunkLossConfig(), kernels
        self.name = check_loss(loss, student, teacher, options, self.config.merge)
        pair = VocabularyPair(student, teacher, matrix or (lambda: load_or_build(student, teacher)))
        device = student_weight.device
        self.shard = VocabularyShard.of_local_rows(student.size, student_weight.shape[0], group)
        self.divergence = make_divergence(self.name, pair, self.shard, options, kernels).to(device)
        selection = chunk_selection(self.name, pair)
        self.selection = None if selection is None else selection.to(device)
        own = self.divergence.ownership
        held = VocabularyShard.of_local_rows(teacher.size, teacher_weight.shape[0], group)
        columns = torch.from_numpy(own.owned).to(device)
        self.teacher_head = OutputHead(reorder_rows(teacher_weight.detach(), held, own), own.shard, columns)

    def __call__(
        self,
        batch: TextBatch,
        student_hidden: Tensor,
        student_weight: Tensor,
        teacher_hidden: Tensor,
        scale: float = 1.0,
    ) -> LossTerms:
        """The loss of a batch.

        Args:
            student_hidden: ``[b, T_S, H_S]``, the last hidden states, after the final norm.
            student_weight: its output layer, as given to the constructor.
            teacher_hidden: ``[b, T_T, H_T]``, the teacher's.
            scale: the factor on the distillation term.

        Returns:
            the objective, ``mean CE over tokens + scale * mean KD over chunks``, differentiable with respect to
            ``student_hidden`` and ``student_weight``; and the sums.  Collectives: those of ``cross_tokenizer_loss``.
        """
        student = ModelOutput(student_hidden.flatten(0, 1), OutputHead(student_weight, self.shard))
        teacher = ModelOutput(teacher_hidden.detach().flatten(0, 1), self.teacher_head)
        signal = TeacherSignal(teacher, batch.teacher_labels, batch.chunks, self.divergence, self.config)
        signal = signal.selected(self.selection, batch.student_labels)
        tokens, chunks = int((batch.student_labels != IGNORED).sum()), signal.chunks.shape[0]
        return cross_tokenizer_loss(
            student,
            batch.student_labels,
            [signal],
            1 / max(tokens, 1),
            [scale / max(chunks, 1)],
            rows_within(None, student.head, [self.teacher_head]),
            self.kernels,
        )

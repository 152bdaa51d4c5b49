"""A micro-batch between two models of random weights, and the losses on it."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from nemo_xtoken.errors import InputError
from nemo_xtoken.kernels.tile_kernels import TileKernels
from nemo_xtoken.losses.pair import VocabularyPair
from nemo_xtoken.losses.registry import LOSSES
from nemo_xtoken.objective import CrossTokenizerLoss, TextBatch
from nemo_xtoken.projection.build import build_projection
from nemo_xtoken.vocab.vocabulary import Vocabulary

from .made_pair import made_text

__all__ = ["Found", "MicroBatch", "pair_of"]


def pair_of(student: Vocabulary, teacher: Vocabulary) -> VocabularyPair:
    """With W by the paper's rule, made when a loss first takes it."""
    return VocabularyPair(student, teacher, lambda: build_projection(student, teacher))


@dataclass(frozen=True)
class Found:
    """
    Attributes:
        value: the objective.
        hidden, weight: its gradients.
    """

    value: Tensor
    hidden: Tensor
    weight: Tensor


class MicroBatch:
    """Hidden states and output layers, drawn on the CPU in float32 and rounded to a type once.

    Args:
        pair: the vocabularies.
        positions: of the student.
        hidden: sizes of the student's and the teacher's hidden states.
        dtype: that all of them are rounded to.
    """

    def __init__(
        self,
        pair: VocabularyPair,
        positions: int,
        hidden: Sequence[int],
        dtype: torch.dtype,
        device: str,
    ) -> None:
        self.pair, self.hidden_sizes = pair, hidden
        batch = TextBatch.of([made_text(2 * positions, pair.student.size)], pair.student, pair.teacher)
        self.batch = _cut(batch, positions).to(device)
        random = torch.Generator().manual_seed(0)
        draw = lambda *shape: torch.randn(*shape, generator=random).to(dtype).to(device)  # noqa: E731
        self.h_s = draw(*self.batch.student_tokens.shape, hidden[0])
        self.h_t = draw(*self.batch.teacher_tokens.shape, hidden[1])
        # logits of a spread that language models have: a few tokens hold most of the mass
        self.w_s, self.w_t = (
            draw(vocabulary.size, size) * (3 / size**0.5)
            for vocabulary, size in zip((pair.student, pair.teacher), hidden, strict=True)
        )

    def losses(self) -> Iterator[str]:
        """Those that can compare these tokenizers."""
        for name, loss in LOSSES.items():
            try:
                loss.check(self.pair, dict(loss.options))
            except InputError:
                continue
            yield name

    def loss(
        self, name: str, kernels: TileKernels, dtype: torch.dtype | None = None, device: str | None = None
    ) -> Callable[[], Found]:
        """What computes a loss and its gradients; what is made once for a run is made here.

        Args:
            dtype, device: to have the same numbers in another type and elsewhere.
        """
        h_s, h_t, w_s, w_t = (
            x.to(device or x.device, dtype or x.dtype) for x in (self.h_s, self.h_t, self.w_s, self.w_t)
        )
        vocabularies = self.pair.student, self.pair.teacher
        made = CrossTokenizerLoss(*vocabularies, name, scale=1.0, pair=self.pair, kernels=kernels)
        batch = self.batch.to(device or self.h_s.device)

        def run() -> Found:
            h, w = h_s.detach().requires_grad_(), w_s.detach().requires_grad_()
            objective = made(batch, h, h_t, w, w_t)
            objective.backward()
            assert h.grad is not None
            assert w.grad is not None
            return Found(objective.detach(), h.grad, w.grad)

        return run

    @property
    def rows(self) -> tuple[int, int]:
        """Positions of either side that are compared or learned from."""
        return int((self.batch.student_labels >= 0).sum()), int(self.batch.chunks[:, 4].sum())


def _cut(batch: TextBatch, positions: int) -> TextBatch:
    """The first positions of the student, and the teacher's of the same text."""
    table = batch.chunk_table
    table = table.where((table[..., :1] + table[..., 1:2] <= positions), -1)
    last = int((table[..., 2] + table[..., 3]).max())
    student, teacher = (slice(None), slice(positions)), (slice(None), slice(last))
    return replace(
        batch,
        student_tokens=batch.student_tokens[student],
        student_labels=batch.student_labels[student],
        teacher_tokens=batch.teacher_tokens[teacher],
        teacher_labels=batch.teacher_labels[teacher],
        chunk_table=table,
    )

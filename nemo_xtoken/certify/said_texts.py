"""Two models that agree on texts: one distribution over a finite set of them, each written by both real tokenizers.

Nothing is constructed from the losses' own relations: next-token distributions are found by brute force over the texts'
token sequences, of which those count that begin as the sequence of the right text does.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from nemo_xtoken.alignment.aligner import Aligner
from nemo_xtoken.losses.base import ChunkDivergence, ChunkLossConfig, ModelOutput, TeacherSignal
from nemo_xtoken.objective.terms import cross_tokenizer_loss
from nemo_xtoken.parallel.head import FreeLogits
from nemo_xtoken.parallel.vocabulary_shard import VocabularyShard
from nemo_xtoken.vocab.vocabulary import Vocabulary

__all__ = ["SaidTexts"]

#: A logarithm for tokens that no text has; their mass is 0 to any precision.
NEVER = -400.0


class SaidTexts:
    """The texts ``context + continuation``, of which the first is the right one.

    Args:
        student, teacher: the vocabularies; both have an end of text.
        context: what all texts begin with.
        said: continuations and their probabilities, up to a factor.

    Attributes:
        ids: of the right text, on each side.
        z: for each side float64 ``[T, V]``, log-probabilities at each of its positions; row t is of token t.
        rows: of each chunk behind the context its first token and number of tokens, the student's and the teacher's.
    """

    def __init__(self, student: Vocabulary, teacher: Vocabulary, context: str, said: Mapping[str, float]) -> None:
        self.student, self.teacher = student, teacher
        weights = np.array(list(said.values())) / sum(said.values())
        texts = [context + continuation for continuation in said]
        self.ids: list[tuple[int, ...]] = []
        self.z: list[Tensor] = []
        for vocabulary in (student, teacher):
            end = -1 if vocabulary.eos_id is None else vocabulary.eos_id
            paths = [(*ids.tolist(), end) for ids in vocabulary.encode_batch(texts)]
            self.ids.append(paths[0][:-1])
            self.z.append(_logits(paths, weights, vocabulary.size))
        chunks = Aligner(student, teacher).align(*(np.array(ids) for ids in self.ids))
        start = len(context.encode())
        begins = np.cumsum([0, *(len(student.token_bytes[i] or b"") for i in self.ids[0])])
        self.rows = [(s0, s1 - s0, t0, t1 - t0) for s0, s1, t0, t1 in chunks.tolist() if begins[s0] >= start]

    @property
    def texts(self) -> list[str]:
        """Of the chunks."""
        return [
            self.student.decode_bytes(self.ids[0][s : s + n]).decode("utf-8", "replace") for s, n, _, _ in self.rows
        ]

    def shape(self, number: int) -> tuple[int, int]:
        """Student and teacher tokens of a chunk."""
        return self.rows[number][1], self.rows[number][3]

    def measure(
        self,
        make: Callable[[VocabularyShard], ChunkDivergence],
        selection: torch.nn.Module | None = None,
        student: Tensor | None = None,
        config: ChunkLossConfig | None = None,
    ) -> tuple[Tensor, Tensor]:
        """``(values [k], gradient [T, V_S] of their sum)`` of the chunks, as the loss takes them.

        Args:
            make: of a divergence, from the student's shard.
            selection: the loss's.
            student: other logits of the student than those that agree.
            config: how a chunk becomes one term; by default by its first position.
        """
        shard = VocabularyShard(self.student.size, self.student.size)
        divergence = make(shard)
        order = divergence.ownership
        logits = torch.full((len(self.z[1]), order.shard.padded), -torch.inf, dtype=torch.float64)
        logits[:, : order.shard.size] = self.z[1][:, torch.from_numpy(order.order)]
        output = ModelOutput(logits, FreeLogits(order.shard, torch.from_numpy(order.owned)))
        z = (self.z[0] if student is None else student).clone().requires_grad_()
        model = ModelOutput(z, FreeLogits(shard))
        labels = [torch.tensor([ids]) for ids in self.ids]
        chunks = torch.tensor([[0, *row] for row in self.rows])
        config = config or ChunkLossConfig("first")
        whole = TeacherSignal(output, labels[1], chunks, divergence, config).selected(selection, labels[0])
        terms = cross_tokenizer_loss(model, labels[0], [whole], ce_weight=0.0)
        (gradient,) = torch.autograd.grad(terms.objective, z)
        parts = [TeacherSignal(output, labels[1], part, divergence, config) for part in whole.chunks.split(1)]
        each = cross_tokenizer_loss(model, labels[0], parts, ce_weight=0.0).kd if len(whole.chunks) else ()
        return torch.stack([kd.total for kd in each]) if each else z.new_zeros(0), gradient


def _logits(paths: Sequence[tuple[int, ...]], weights: np.ndarray, size: int) -> Tensor:
    """Log-probabilities ``[T, V]`` at each position of the first path."""
    z = torch.full((len(paths[0]) - 1, size), NEVER, dtype=torch.float64)
    for t in range(len(paths[0]) - 1):
        mass: dict[int, float] = {}
        for path, weight in zip(paths, weights.tolist(), strict=True):
            if path[:t] == paths[0][:t] and len(path) > t:
                mass[path[t]] = mass.get(path[t], 0.0) + weight
        total = sum(mass.values())
        for token, x in mass.items():
            z[t, token] = float(np.log(x / total))
    return z

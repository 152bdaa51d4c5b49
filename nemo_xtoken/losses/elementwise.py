"""A base for losses of your own: one function of two probabilities, its gradient by autograd.

    class Hellinger(ElementwiseDivergence):
        def terms(self, p_student, p_teacher):
            return (p_student.sqrt() - p_teacher.sqrt()).square() / 2

Named as ``teacher.loss=package.module:Hellinger`` it is a loss like any other, under every layout.  It keeps a few more
tensors of a tile's size than the losses of this package, whose derivatives are written out.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from nemo_xtoken.kernels.tile_kernels import TileKernels, smallest
from nemo_xtoken.losses.base import ChunkDivergence, Comparison
from nemo_xtoken.losses.pair import VocabularyPair
from nemo_xtoken.parallel.exchange import Projection, VocabularyExchange
from nemo_xtoken.parallel.softmax import all_reduce_sum
from nemo_xtoken.parallel.vocabulary_shard import VocabularyShard

__all__ = ["ElementwiseDivergence"]


class ElementwiseDivergence(ChunkDivergence):
    """``sum_t f(q_t, p_t)`` over the teacher's tokens and REST, with ``q = W^T p_S`` and the teacher's p.

    The classes are those of P-KL: the teacher tokens that W reaches, and one class REST, which has the student's mass
    on empty rows of W and the teacher's on tokens that W does not reach.  Between two models of one tokenizer W is the
    identity.  One side may have no mass on REST, so that a divergence that is not bounded is large there.

    Args:
        exchange: W.
    """

    needs_matrix = True
    metric_names: tuple[str, ...] = ("teacher_unreached", "student_empty", "exchange_bytes")

    def __init__(self, exchange: VocabularyExchange) -> None:
        super().__init__()
        self.exchange, self.ownership = exchange, exchange.ownership

    @classmethod
    def of(
        cls, pair: VocabularyPair, student: VocabularyShard, options: Mapping[str, Any], kernels: TileKernels
    ) -> "ElementwiseDivergence":
        """Over the pair's W."""
        return cls(VocabularyExchange.co_sharded(pair.matrix, student, kernels))

    def terms(self, p_student: Tensor, p_teacher: Tensor) -> Tensor:
        """What each class adds to the divergence: the one method that a loss has to have.

        Each class by itself, since the classes of a chunk lie on several ranks: nothing may be summed over columns.

        Args:
            p_student, p_teacher: ``[k, C]``, float32 or float64, above 0; the student's gets the gradient.

        Returns:
            ``[k, C]``, finite.
        """
        raise NotImplementedError

    def start(self, p_student: Tensor, entry_weights: Tensor | None = None) -> Projection:
        """``W^T p_S`` under way; see ``VocabularyExchange.start``."""
        return self.exchange.start(p_student, entry_weights)

    def finish(self, started: Projection, p_teacher: Tensor, coefficients: Tensor | None) -> Comparison:
        """The divergence, the teacher's unreached mass, the student's mass on empty rows, the bytes a rank sends.

        Args:
            p_teacher: ``[k, V_T/tp]``, this rank's columns.

        Collectives: one all-reduce of k values and one of k; with a gradient those of ``Projection.pull``.
        """
        q, q_rest = started.finish()
        group, reached = self.exchange.group, self.exchange.reached
        p_rest = all_reduce_sum(torch.where(reached, 0, p_teacher).sum(1), group)
        bound = smallest(q)
        p, rest = p_teacher.clamp_min(bound), p_rest.clamp_min(bound).unsqueeze(1)
        with torch.enable_grad():
            q = q.clamp_min_(bound).requires_grad_(coefficients is not None)
            q_of_rest = q_rest.clamp_min(bound).unsqueeze(1).requires_grad_(coefficients is not None)
            here = torch.where(reached, self.terms(q, p), 0).sum(1)
            beside = self.terms(q_of_rest, rest).sum(1)
            slopes = None
            if coefficients is not None:
                total = (coefficients * (here + beside)).sum()
                slopes = torch.autograd.grad(total, (q, q_of_rest), materialize_grads=True)
        value = all_reduce_sum(here.detach().clone(), group) + beside.detach()
        sent = torch.full_like(q_rest, self.exchange.bytes_a_chunk(q_rest.itemsize))
        values = torch.stack([value, p_rest, q_rest, sent])
        if slopes is None:
            return Comparison(values)
        return Comparison(values, *started.pull(slopes[0], slopes[1].squeeze(1)))

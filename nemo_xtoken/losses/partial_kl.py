"""The KL over the common set C, in its published form and closed by a REST class.

Both divergences take the exchange of a :class:`~nemo_xtoken.parallel.common_set.CommonSet`, whose ``W^T p`` is
``q[t] = p_S[s]`` for the pair (s, t).  Softmaxes are over the full vocabularies and nothing is renormalised.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from nemo_xtoken.errors import InputError
from nemo_xtoken.losses.base import ChunkDivergence, Comparison
from nemo_xtoken.losses.directions import DIRECTIONS
from nemo_xtoken.losses.options import PARTIAL_KL_CHOICES, check_choice
from nemo_xtoken.losses.p_kl import ProjectedKL
from nemo_xtoken.parallel.column_pairs import ColumnPairs
from nemo_xtoken.parallel.exchange import Projection, VocabularyExchange
from nemo_xtoken.parallel.softmax import all_reduce_sum

__all__ = ["PARTIAL_KLS", "PublishedPartialKL", "check_partial_kl", "make_partial_kl"]


class PublishedPartialKL(ChunkDivergence):
    """``sum_C p_T[t] (log p_T[t] - log p_S[s])``, as GOLD and X-Token publish it.

    The two sides' masses on C differ, so this is not a divergence: it is negative where the student has more mass on C
    than the teacher.  Its derivative with respect to ``p_S[s]`` is ``-p_T[t] / p_S[s]`` in C and 0 outside, so that a
    student logit j outside C has the gradient ``p_S[j] * M``, M being the teacher's mass on C, and is pushed down
    wherever the teacher is (X-Token, arXiv 2605.21699, Proposition 1).
    """

    metric_names: tuple[str, ...] = ("teacher_uncommon", "student_uncommon", "exchange_bytes")

    def __init__(self, exchange: VocabularyExchange, direction: str = "forward") -> None:
        """
        Args:
            exchange: of the pairs.
            direction: ``"reverse"`` sums ``p_S[s] (log p_S[s] - log p_T[t])`` instead, as NeMo-RL can.
        """
        super().__init__()
        self.exchange, self.direction = exchange, DIRECTIONS[direction]
        self.ownership = exchange.ownership
        pairs = exchange.kernels.pairs
        self._pairs = None if pairs is None else ColumnPairs(direction, "open", pairs, exchange)

    def column_pairs(self) -> ColumnPairs | None:
        """The pairs of C."""
        return self._pairs

    def start(self, p_student: Tensor, entry_weights: Tensor | None = None) -> Projection:
        """The pairs' probabilities on their way; see ``VocabularyExchange.start``."""
        return self.exchange.start(p_student, entry_weights)

    def finish(self, started: Projection, p_teacher: Tensor, coefficients: Tensor | None) -> Comparison:
        """The partial KL, the teacher's and the student's mass outside C, the bytes a rank sends.

        Args:
            p_teacher: ``[k, V_T/tp]``, this rank's columns; overwritten.

        Collectives: one all-reduce of 2k values; with a gradient those of ``Projection.pull``.
        """
        q, rest = started.finish()
        compare, reached = self.exchange.kernels.compare, self.exchange.reached
        total, unreached, slope = compare(self.direction, p_teacher, q, reached, coefficients)
        assert unreached is not None
        local = torch.stack([total, unreached])
        sent = torch.full_like(rest, self.exchange.bytes_a_chunk(rest.itemsize))
        values = torch.stack([*all_reduce_sum(local, self.exchange.group), rest, sent])
        if slope is None:
            return Comparison(values)
        return Comparison(values, *started.pull(slope, torch.zeros_like(rest)))


#: The forms by their names.  "rest" is P-KL over the 0/1 matrix of the pairs: what lies outside C is one class a side.
PARTIAL_KLS: dict[str, Callable[[VocabularyExchange], ChunkDivergence]] = {
    "rest": ProjectedKL,
    "paper": PublishedPartialKL,
}


def check_partial_kl(form: str, top_k: int | None = None) -> None:
    """
    Raises:
        InputError: no such form, or a top-k of one without REST.
    """
    check_choice("partial_kl", form, PARTIAL_KL_CHOICES)
    if top_k is not None and form != "rest":
        raise InputError(
            f"top_k={top_k} with partial_kl={form}",
            "partial_kl=rest, whose class REST takes the tokens that are left out",
            "set partial_kl=rest, or leave top_k out",
        )


def make_partial_kl(form: str, exchange: VocabularyExchange, top_k: int | None = None) -> ChunkDivergence:
    """The KL over C in that form; its metrics are the teacher's and the student's mass outside C.

    Args:
        top_k: tokens of C that stay classes of their own, see ``ProjectedKL``; only of the form with REST.

    Raises:
        InputError: no such form, or a top-k of one without REST.
    """
    check_partial_kl(form, top_k)
    return PARTIAL_KLS[form](exchange) if top_k is None else ProjectedKL(exchange, top_k=top_k)

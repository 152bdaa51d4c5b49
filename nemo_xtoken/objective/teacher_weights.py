"""The weights alpha of several teachers in ``sum_m alpha_m KD_m``: fixed, or a softmax over how sure the teachers are.

The adaptive forms are X-Token's (arXiv 2605.21699): the softmax over the teachers of minus a teacher's cross-entropy on
the text, of minus its entropy, or of its largest probability.  Two things are settled here so that they mean the same
with any tokenizers and in any layout:

- Per student token.  A token of one teacher is not a token of another, so what a teacher's positions add up to in its
  chunks is divided by the student's tokens in the same chunks.  By the chain rule that is the teacher's cross-entropy
  (and entropy) of the text that an average student token spells.  The largest probability is treated in the same way:
  the geometric mean, of the products over a chunk's positions.
  A loss that scores some chunks alone (exactly matching tokens, say) is judged on those.
- From the step before.  A step's global means are known only after its last micro-batch, so the weights follow from
  the global means of the previous step, as the dynamic scale does.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from nemo_xtoken.errors import InputError
from nemo_xtoken.parallel.softmax import all_reduce_sum
from nemo_xtoken.parallel.vocabulary_shard import VocabularyShard, group_size

__all__ = ["STATIC", "STATISTICS", "TeacherWeights", "sum_statistic"]

STATIC = "static"
STATISTICS = ("cross_entropy", "entropy", "confidence")


class TeacherWeights:
    """The weights of the teachers in a run; its state is a number a teacher, kept in the checkpoint.

    Args:
        kind: ``"static"``, or one of `STATISTICS`.
        weights: name -> weight of each teacher, in their order.  Static weights are taken as they are and need not sum
            to 1.  The adaptive ones sum to 1, and a teacher's weight is its factor in the softmax.

    Raises:
        InputError: no such kind, or a weight that is not a number above 0.
    """

    def __init__(self, kind: str, weights: Mapping[str, float]) -> None:
        if kind not in (STATIC, *STATISTICS):
            raise InputError(
                f"objective.teacher_weights={kind!r}", f"one of {', '.join((STATIC, *STATISTICS))}", "choose one"
            )
        for name, weight in weights.items():
            if not (math.isfinite(weight) and weight > 0):
                raise InputError(
                    f"weight={weight} for the teacher {name!r}",
                    "a number above 0",
                    "change it, or leave that teacher out",
                )
        self.kind, self.weights = kind, dict(weights)
        self.scores: dict[str, float] = {}

    @property
    def statistic(self) -> str | None:
        """What has to be summed over the teachers' positions; None for fixed weights."""
        return None if self.kind == STATIC else self.kind

    @property
    def alphas(self) -> tuple[float, ...]:
        """The weights of the next step, in the teachers' order; before there are scores, those given at the start."""
        if self.kind == STATIC:
            return tuple(self.weights.values())
        known = self.scores.keys() >= self.weights.keys()
        highest = max(self.scores.values()) if known else 0.0
        raw = [w * (math.exp(self.scores[name] - highest) if known else 1.0) for name, w in self.weights.items()]
        return tuple(x / sum(raw) for x in raw)

    def weighted(self, values: Mapping[str, float]) -> float:
        """``sum_m alpha_m values[m]`` over the teachers that have a value."""
        return sum(a * values[name] for name, a in zip(self.weights, self.alphas, strict=True) if name in values)

    def score(self, total: float, student_tokens: float) -> float:
        """What goes into the softmax.

        Args:
            total: global sum of the statistic over a teacher's positions, see :func:`sum_statistic`.
            student_tokens: global number of student tokens in its chunks.
        """
        mean = total / student_tokens
        return math.exp(mean) if self.kind == "confidence" else -mean

    def update(self, scores: Mapping[str, float]) -> None:
        """Takes in the scores of the step just done; a teacher without any keeps its last one."""
        self.scores |= scores

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"kind": self.kind, "scores": dict(self.scores)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Puts it back; scores of another kind or of other teachers say nothing here and are left out."""
        usable = state["kind"] == self.kind and state["scores"].keys() == self.weights.keys()
        self.scores = dict(state["scores"]) if usable else {}


def sum_statistic(name: str, p: Tensor, log_p: Tensor, shard: VocabularyShard) -> Tensor:
    """The sum of a statistic of `STATISTICS` over the rows of a teacher's tile.

    Minus the log-probability of the label, the entropy, or the logarithm of the largest probability.

    Args:
        p: ``[n, V_T/tp]`` probabilities at temperature 1, this rank's columns.
        log_p: ``[n]``, log-probabilities of the labels.

    Returns:
        scalar, equal on all ranks.  Collectives: one all-reduce of n values; none for the cross-entropy.
    """
    if name == "cross_entropy":
        return -log_p.sum()
    if name == "entropy":
        return all_reduce_sum(torch.special.entr(p).sum(1), shard.group).sum()
    largest = p.amax(1)
    if group_size(shard.group) > 1:
        dist.all_reduce(largest, op=dist.ReduceOp.MAX, group=shard.group)
    return largest.log().sum()

"""Two models that agree perfectly: one distribution over strings, each string in both tokenizations.

A *continuation* is a string as the student writes it and as the teacher does.  Both models draw a continuation from the
same distribution, write it token by token and end the text.  A model's next-token distribution after some tokens is
what that makes it: the mass of the continuations that go on with each token, over the mass of those that begin so.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

__all__ = ["Agreement", "Continuation"]


class Continuation(NamedTuple):
    """One string, as token ids of each side; equal bytes."""

    student: tuple[int, ...]
    teacher: tuple[int, ...]


@dataclass(frozen=True)
class Agreement:
    """What is said after some common context.

    Attributes:
        right: the continuation that is most probable, a chunk of a text.
        weights: the probability of each; they sum to 1.
        ends: the student's and the teacher's token after which nothing comes.
    """

    right: Continuation
    weights: Mapping[Continuation, float]
    ends: tuple[int, int]

    def next_token(self, side: int, prefix: tuple[int, ...] = ()) -> dict[int, float]:
        """The distribution of the next token, by id; tokens that are missing have probability 0.

        Args:
            side: 0 for the student, 1 for the teacher.
            prefix: what it has written of the continuation; something that it can.
        """
        out: dict[int, float] = {}
        n = len(prefix)
        for continuation, weight in self.weights.items():
            path = (*continuation[side], self.ends[side])
            if path[:n] == prefix and len(path) > n:
                out[path[n]] = out.get(path[n], 0.0) + weight
        total = sum(out.values())
        return {token: weight / total for token, weight in out.items()}

    def at_right(self, side: int) -> list[dict[int, float]]:
        """`next_token` at each position of the right continuation: one for each of its tokens."""
        path = self.right[side]
        return [self.next_token(side, path[:i]) for i in range(len(path))]

"""How each side's tokens are written by the other, and which of them come close to a given string."""

import contextlib
from collections.abc import Iterable

import numpy as np

from nemo_xtoken.certify.agreement import Continuation
from nemo_xtoken.projection.build import ProjectionRule, load_or_build, spell_tokens
from nemo_xtoken.projection.contexts import encoded_inside
from nemo_xtoken.projection.token_classes import CLASSES, class_of_bytes, classify
from nemo_xtoken.vocab.vocabulary import Vocabulary

__all__ = ["Spellings"]


class Spellings:
    """The tokens of two vocabularies as continuations.

    Args:
        student, teacher: the two; side 0 and side 1.

    Attributes:
        first: for each side int32 ``[V]``, the first token of each token's spelling on the other side, -1 for none
            (the entries of W by the rule ``prefix``, in both directions).
        exact: for each side bool ``[V]``, tokens with an equal on the other side; of several equals the one that the
            tokenizer produces.
    """

    def __init__(self, student: Vocabulary, teacher: Vocabulary) -> None:
        self.sides = (student, teacher)
        rule = ProjectionRule.named("prefix")
        self.first = tuple(
            load_or_build(a, b, rule).ids.max(axis=1, initial=-1) for a, b in ((student, teacher), (teacher, student))
        )
        self.exact = tuple(
            np.array([bool(d) and d in b.id_of_bytes and a.id_of_bytes[d] == i for i, d in enumerate(a.token_bytes)])
            for a, b in ((student, teacher), (teacher, student))
        )
        self._classes = (classify(student), classify(teacher))

    def usable(self, side: int) -> np.ndarray:
        """bool ``[V]``: tokens with bytes that the other side can write."""
        return (self.sides[side].byte_length > 0) & (self.first[side] >= 0)

    def continuations(self, side: int, tokens: Iterable[int]) -> list[Continuation]:
        """Each of these tokens of one side as a continuation; without those that a side writes differently.

        A tokenizer that normalises may spell a token by other bytes: then the two do not say the same.  Some tokens are
        written so where a text ends and not where it goes on, as several blanks before a word: no text has them.
        """
        mine, other = self.sides[side], self.sides[1 - side]
        tokens = list(tokens)
        paths: dict[int, tuple[int, ...]] = {}
        rest = []
        for token in tokens:
            data = mine.token_bytes[token]
            if data in other.id_of_bytes:
                paths[token] = (other.id_of_bytes[data],)
            elif data:
                rest.append(token)
        paths |= {token: tuple(pieces) for token, pieces in spell_tokens(mine, other, rest)}
        written = [((token,), paths[token]) for token in tokens if token in paths]
        pairs = written if side == 0 else [(theirs, own) for own, theirs in written]
        agreed = [c for s, t in pairs if self.agree(c := Continuation(s, t))]
        return [c for c, occurs in zip(agreed, self._occur(agreed), strict=True) if occurs]

    def _occur(self, continuations: list[Continuation]) -> list[bool]:
        """Whether both sides write each of these so before a word; True for what is no text by itself."""
        found = [True] * len(continuations)
        texts: dict[int, str] = {}
        for number, continuation in enumerate(continuations):
            with contextlib.suppress(UnicodeDecodeError):
                texts[number] = self.sides[0].decode_bytes(continuation.student).decode("utf-8") + " a"
        for side, vocabulary in enumerate(self.sides):
            for number, ids in zip(texts, encoded_inside(vocabulary, list(texts.values())), strict=True):
                path = continuations[number][side]
                found[number] &= tuple(ids[: len(path)]) == path
        return found

    def agree(self, continuation: Continuation) -> bool:
        """Whether both sides write the same bytes, and some."""
        data = self.sides[0].decode_bytes(continuation.student)
        return bool(data) and data == self.sides[1].decode_bytes(continuation.teacher)

    def near(self, side: int, right: bytes, tokens: np.ndarray, alike: np.ndarray, number: int) -> list[int]:
        """Tokens that could stand in the place of others: up to ``number`` alike and as many of the right one's class.

        Args:
            right: the string that they compete with.
            tokens: bool ``[V]``, those to choose from.
            alike: bool ``[V]``, those that begin as the right one does; the longest common beginning comes first.
        """
        mine = self.sides[side]

        def distance(token: int) -> tuple[int, int, int]:
            data = mine.token_bytes[token] or b""
            common = next((i for i, (a, b) in enumerate(zip(data, right, strict=False)) if a != b), None)
            shared = min(len(data), len(right)) if common is None else common
            return -shared, abs(len(data) - len(right)), token

        beginning = sorted(np.flatnonzero(tokens & alike).tolist(), key=distance)[:number]
        number_of_class = [c.name for c in CLASSES].index(class_of_bytes(right))
        same = tokens & ~alike & (self._classes[side] == number_of_class)
        like_long = same & (mine.byte_length == len(right))
        return beginning + spread(like_long if like_long.any() else same, number)

    def begins_with(self, side: int, byte: int) -> np.ndarray:
        """bool ``[V]``: tokens whose first byte is this."""
        return np.array([(data or b"")[:1] == bytes([byte]) for data in self.sides[side].token_bytes])


def spread(tokens: np.ndarray, number: int) -> list[int]:
    """Up to ``number`` of the tokens of a mask, evenly over their ids."""
    ids = np.flatnonzero(tokens)
    at = np.linspace(0, len(ids) - 1, min(number, len(ids))).round().astype(np.int64)
    return ids[at].tolist()

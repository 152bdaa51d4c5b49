"""Prefix classes: groups of tokens with equal mass in two models that agree, and how each side spells the other's.

A student token that the teacher writes in several pieces belongs with the first of them, a teacher token that the
student writes in pieces with the first of those, and equal tokens belong together.  The classes of this relation each
have one pair of equal tokens and all that begin with it on either side.  Two models that say the same strings with the
same probabilities give each class the same mass, whichever of them has the longer tokens: the token that one writes
next and the token that the other writes next are of one class.  No finer partition has that property.

Inside a class, tokens are told apart by the sequence of their pieces on the other side.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nemo_xtoken.errors import InputError
from nemo_xtoken.projection.build import spell_tokens
from nemo_xtoken.vocab.vocabulary import Vocabulary

__all__ = ["MAX_PIECES", "PrefixClasses", "SpelledTokens"]

#: The number of pieces of a token that are used; few tokens have more.
MAX_PIECES = 8


@dataclass(frozen=True)
class SpelledTokens:
    """The tokens of one side as the other side writes them.

    Attributes:
        classes: int32 ``[V]``, the class of each token, numbered by the teacher token of its pair; -1 for those in no
            class: roles that the other side lacks, bytes that it cannot write.
        pieces: int32 ``[V, MAX_PIECES]``, tokens of the other side, -1 after the last; one piece for a token that both
            sides have.
    """

    classes: np.ndarray
    pieces: np.ndarray

    def cut(self, ids: np.ndarray, class_numbers: np.ndarray, piece_numbers: np.ndarray) -> "SpelledTokens":
        """These tokens alone, renumbered: ``numbers[old]`` of the teacher's tokens, and of the other side's."""
        return SpelledTokens(
            _renumbered(self.classes[ids], class_numbers), _renumbered(self.pieces[ids], piece_numbers)
        )


@dataclass(frozen=True)
class PrefixClasses:
    """The classes of a pair of vocabularies.

    Attributes:
        student, teacher: the two sides.
    """

    student: SpelledTokens
    teacher: SpelledTokens

    @classmethod
    def of(cls, student: Vocabulary, teacher: Vocabulary) -> "PrefixClasses":
        """Spells every token that has no equal with the other tokenizer; some seconds for two full vocabularies.

        Raises:
            InputError: the tokenizers have no token in common.
        """
        pieces = _pieces(student, teacher), _pieces(teacher, student)
        firsts = [p[:, 0].astype(np.int64) for p in pieces]
        equal = [
            (first >= 0) & (p[:, 1] < 0) & _equal(own, other, first)
            for own, other, first, p in zip((student, teacher), (teacher, student), firsts, pieces, strict=True)
        ]
        if not equal[0].any():
            raise InputError(
                f"no token that {student.name} and {teacher.name} both have",
                "tokenizers that share at least single bytes or characters",
                "use another loss (uld needs no common token)",
            )
        classes = [np.full(v.size, -1, np.int64) for v in (student, teacher)]
        classes[0][equal[0]] = firsts[0][equal[0]]
        classes[1][equal[1]] = classes[0][firsts[1][equal[1]]]
        changed = True
        while changed:  # a piece is shorter than its token: a few rounds
            changed = False
            for side in (0, 1):
                open_ = np.flatnonzero((classes[side] < 0) & (firsts[side] >= 0))
                found = classes[1 - side][firsts[side][open_]]
                classes[side][open_] = found
                changed |= bool((found >= 0).any())
        sides = [SpelledTokens(c.astype(np.int32), p) for c, p in zip(classes, pieces, strict=True)]
        return cls(*sides)


def _pieces(own: Vocabulary, other: Vocabulary) -> np.ndarray:
    """int32 ``[V, MAX_PIECES]``; only pieces whose bytes are the token's, one after the other, and shorter than it."""
    out = np.full((own.size, MAX_PIECES), -1, np.int32)
    rest: list[int] = []
    for token, data in enumerate(own.token_bytes):
        if data is None:
            role = own.roles.get(token)
            match = other.id_of_role.get(role) if role is not None else None
        else:
            match = other.id_of_bytes.get(data)
        if match is not None:
            out[token, 0] = match
        elif data:
            rest.append(token)
    for token, pieces in spell_tokens(own, other, rest):
        kept = _that_spell(own.token_bytes[token] or b"", pieces, other)[:MAX_PIECES]
        out[token, : len(kept)] = kept
    return out


def _that_spell(data: bytes, pieces: Sequence[int], vocabulary: Vocabulary) -> Sequence[int]:
    """The leading pieces that ``data`` begins with, short of all of it in one."""
    at = 0
    for number, piece in enumerate(pieces):
        part = vocabulary.token_bytes[piece] or b""
        if not part or part == data or data[at : at + len(part)] != part:
            return pieces[:number]
        at += len(part)
    return pieces


def _equal(own: Vocabulary, other: Vocabulary, partner: np.ndarray) -> np.ndarray:
    """bool ``[V]``: the token has its partner's bytes or role."""
    return np.array(
        [
            p >= 0 and (other.token_bytes[p] == data if data is not None else other.token_bytes[p] is None)
            for data, p in zip(own.token_bytes, partner.tolist(), strict=True)
        ],
        dtype=bool,
    )


def _renumbered(ids: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    renumbered: np.ndarray = np.where(ids >= 0, numbers[ids], -1).astype(np.int32)
    return renumbered

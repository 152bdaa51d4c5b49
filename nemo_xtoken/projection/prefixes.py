"""Prefix classes: groups of tokens with equal mass in two models that agree, and how each side spells the other's.

Two tokens that the two sides say first in writing one text belong together: a token's class has every token that the
other side may write in its place.  So a token is joined with the first piece of its spelling by the other side, alone
or as it stands in texts (:mod:`nemo_xtoken.projection.contexts`).  The classes are the components of this relation:
most have one pair of equal tokens and all that begin with it on either side.  Two models that say the same texts with
the same probabilities give each class the same mass, whichever of them has the longer tokens.

Inside a class, tokens are told apart by the sequence of their pieces on the other side.
"""

from dataclasses import dataclass

import numpy as np

from nemo_xtoken.errors import InputError
from nemo_xtoken.projection.build import spell_tokens
from nemo_xtoken.projection.components import components
from nemo_xtoken.projection.contexts import depends_on_context, spellings_in_context
from nemo_xtoken.projection.overlaps import Overlaps
from nemo_xtoken.vocab.vocabulary import Vocabulary

__all__ = ["MAX_PIECES", "PrefixClasses", "SpelledTokens"]

#: The number of pieces of a token that are used; few tokens have more.
MAX_PIECES = 8


@dataclass(frozen=True)
class SpelledTokens:
    """The tokens of one side as the other side writes them.

    Attributes:
        classes: int32 ``[V]``, the class of each token, numbered by a teacher token in it, of its pair of equal tokens
            where there is one; -1 for those in no class: roles that the other side lacks, bytes that it cannot write.
        tokens: int32 ``[r]``, the token of each spelling, increasing; most have one, those in no class have none.
        pieces: int32 ``[r, MAX_PIECES]``, tokens of the other side, -1 after the last, which may be longer than what
            the token has left for it.
    """

    classes: np.ndarray
    tokens: np.ndarray
    pieces: np.ndarray

    def cut(
        self, ids: np.ndarray, own_numbers: np.ndarray, class_numbers: np.ndarray, piece_numbers: np.ndarray
    ) -> "SpelledTokens":
        """These tokens alone, renumbered: ``numbers[old]`` of its own, of the teacher's and of the other side's."""
        kept = np.isin(self.tokens, ids)
        return SpelledTokens(
            _renumbered(self.classes[ids], class_numbers),
            _renumbered(self.tokens[kept], own_numbers),
            _renumbered(self.pieces[kept], piece_numbers),
        )


@dataclass(frozen=True)
class PrefixClasses:
    """The classes of a pair of vocabularies.

    Attributes:
        student, teacher: the two sides.
        overlaps: what the two say next where they end some blanks apart; None: not known, and not told apart.
    """

    student: SpelledTokens
    teacher: SpelledTokens
    overlaps: Overlaps | None = None

    @classmethod
    def of(cls, student: Vocabulary, teacher: Vocabulary) -> "PrefixClasses":
        """Spells every token with the other tokenizer; some seconds for two full vocabularies.

        Raises:
            InputError: the tokenizers have no token in common.
        """
        sides = _spelled(student, teacher), _spelled(teacher, student)
        firsts = [np.stack([tokens, pieces[:, 0]], axis=1).astype(np.int64) for tokens, pieces in sides]
        edges = np.concatenate([firsts[0], firsts[1][:, ::-1]])
        equal = _equal(student, teacher)
        if not len(equal):
            raise InputError(
                f"no token that {student.name} and {teacher.name} both have",
                "tokenizers that share at least single bytes or characters",
                "use another loss (uld needs no common token)",
            )
        names = components(edges, student.size, teacher.size)
        # the pair of the shortest equal tokens names a class; one without a pair is named by its shortest token
        number = np.full(len(edges), -1, np.int64)
        for teachers in (np.unique(edges[:, 1]), equal[:, 1]):
            order = np.lexsort((-teachers, -teacher.byte_length[teachers]))
            named = names[1][teachers[order]]
            number[named[named >= 0]] = teachers[order][named >= 0]
        classes = [np.where(name >= 0, number[name], -1).astype(np.int32) for name in names]
        of_sides = [SpelledTokens(c, *side) for c, side in zip(classes, sides, strict=True)]
        return cls(of_sides[0], of_sides[1], Overlaps(student, teacher))


def _spelled(own: Vocabulary, other: Vocabulary) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and pieces as `SpelledTokens` has them."""
    texts = {token: text for token, data in enumerate(own.token_bytes) if (text := depends_on_context(data))}
    rows = [(token, s) for token, spellings in spellings_in_context(own, other, texts) for s in spellings]
    done = {token for token, _ in rows}
    rest: list[int] = []
    for token, data in enumerate(own.token_bytes):
        if token in done:
            continue
        if data is None:
            role = own.roles.get(token)
            match = other.id_of_role.get(role) if role is not None else None
        else:
            match = other.id_of_bytes.get(data)
        if match is not None:
            rows.append((token, [match]))
        elif data:
            rest.append(token)
    for token, spelling in spell_tokens(own, other, rest):
        kept = _that_spell(own.token_bytes[token] or b"", spelling, other)
        if kept:
            rows.append((token, kept))
    rows.sort(key=lambda row: row[0])
    pieces = np.full((len(rows), MAX_PIECES), -1, np.int32)
    for row, (_, spelling) in zip(pieces, rows, strict=True):
        row[: len(spelling)] = spelling[:MAX_PIECES]
    return np.array([token for token, _ in rows], np.int32), pieces


def _that_spell(data: bytes, pieces: list[int], vocabulary: Vocabulary) -> list[int]:
    """The leading pieces that ``data`` begins with, short of all of it in one."""
    at = 0
    for number, piece in enumerate(pieces):
        part = vocabulary.token_bytes[piece] or b""
        if not part or part == data or data[at : at + len(part)] != part:
            return pieces[:number]
        at += len(part)
    return pieces


def _equal(student: Vocabulary, teacher: Vocabulary) -> np.ndarray:
    """int64 ``[e, 2]``: the pairs of tokens of equal bytes or roles."""
    pairs = [(s, teacher.id_of_bytes.get(data)) for data, s in student.id_of_bytes.items()]
    pairs += [(s, teacher.id_of_role.get(role)) for role, s in student.id_of_role.items()]
    return np.array([pair for pair in pairs if pair[1] is not None], np.int64).reshape(-1, 2)


def _renumbered(ids: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    renumbered: np.ndarray = np.where(ids >= 0, numbers[ids], -1).astype(np.int32)
    return renumbered

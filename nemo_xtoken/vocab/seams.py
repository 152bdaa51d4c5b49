"""Where a long text may be cut so that its pieces, encoded one by one, have exactly the ids of the whole.

A tokenizer's memory grows with its text, by some 200 bytes a character, and what it makes of a text is local: a seam is
a place that no token can reach across, and that says all about what stands behind it that the text in front can know.

- *No token reaches across*: a seam is the place between a line break and a letter or a digit, or between a letter
  and a space with a letter behind it.  It is used only if no token of the vocabulary has such a pair inside, so that
  neither merges nor a search for the best pieces can join the two sides.
- *The cut into words is the same*: tokenizers cut by regular expressions that go from left to right and know of what is
  in front of a match nothing, and of what is behind it its kind.  So each piece is encoded with a letter (and the line
  break or the space) on either side, whose ids are taken off again; what a tokenizer puts in front of a text, such as a
  space, falls to them.  Around every seam it is tried out: the text from ``REACH`` characters before it to as many
  behind it, encoded as a whole and as two pieces, must give the same ids; and the ``NEAR`` bytes on either side must
  be the same for all tokenizers, so that an alignment knows where the seam is on each side.

A place where this fails is passed over; a text without any seam is encoded as a whole.
"""

import itertools
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from nemo_xtoken.vocab.vocabulary import Vocabulary

__all__ = ["Piece", "Seams", "encode_pieces"]

REACH = 48  # characters on either side of a seam
NEAR = 24  # bytes
_TRIES = 16  # places looked at in a stretch of text
_LETTER = "[^\\W\\d_]"
#: Kind of seam: how to find it, and the text that stands for what is on its other side: before it, behind it.
_KINDS: dict[str, tuple[re.Pattern[str], str, str]] = {
    "line": (re.compile(f"(?<=\\n)(?={_LETTER})"), "a\n", "a"),
    "row": (re.compile("(?<=\\n)(?=[0-9])"), "a\n", "1"),
    "word": (re.compile(f"(?<={_LETTER})(?= {_LETTER})"), "a", " a"),
}
_PART_OF_LETTER = f"(?:{_LETTER}|[\udc80-\udcff])"  # a byte that is no character alone may be one of a letter
_ACROSS = {
    "line": re.compile(f"\n{_PART_OF_LETTER}"),
    "row": re.compile("\n[0-9]"),
    "word": re.compile(f"{_PART_OF_LETTER} "),
}


def _reaches_across(vocabulary: Vocabulary) -> set[str]:
    """The kinds of seam that some token reaches across."""
    tokens = b"\0".join(token for token in vocabulary.token_bytes if token).decode(errors="surrogateescape")
    return {kind for kind, pattern in _ACROSS.items() if pattern.search(tokens)}


class Piece(NamedTuple):
    """A stretch of a text.

    Attributes:
        text: its characters.
        before, after: the kinds of the seams at its ends; "" at the ends of the text.
    """

    text: str
    before: str = ""
    after: str = ""

    @property
    def first(self) -> bool:
        """Whether the text begins here."""
        return not self.before

    @property
    def last(self) -> bool:
        """Whether the text ends here."""
        return not self.after


def _ids_of_context(vocabulary: Vocabulary, kind: str) -> tuple[np.ndarray, np.ndarray] | None:
    """The ids that the text on the other side of a seam has: of a piece behind it, of a piece before it; None where
    they cannot be told apart."""
    _, front, back = _KINDS[kind]
    both, alone = vocabulary.encode_batch([front + back, front])
    if len(alone) >= len(both) or not np.array_equal(both[: len(alone)], alone):
        return None
    return alone, both[len(alone) :]


def encode_pieces(vocabulary: Vocabulary, pieces: Sequence[Piece]) -> list[np.ndarray]:
    """The ids of each piece; those of a text's pieces one after the other are its own.

    Raises:
        ValueError: a piece does not begin or end at a seam of this vocabulary.
    """
    if all(piece.first and piece.last for piece in pieces):
        return vocabulary.encode_batch([piece.text for piece in pieces])
    contexts: dict[str, tuple[np.ndarray, np.ndarray] | None] = {}
    for piece in pieces:
        for kind in (piece.before, piece.after):
            if kind and kind not in contexts:
                contexts[kind] = _ids_of_context(vocabulary, kind)
    texts = [
        (_KINDS[p.before][1] if p.before else "") + p.text + (_KINDS[p.after][2] if p.after else "") for p in pieces
    ]
    out = []
    for piece, ids in zip(pieces, vocabulary.encode_batch(texts), strict=True):
        start, end = 0, len(ids)
        for kind, at in ((piece.before, 0), (piece.after, 1)):
            if not kind:
                continue
            context = contexts[kind]
            if context is None:
                raise ValueError(f"{vocabulary.name} has no seams of kind {kind!r}")
            n = len(context[at])
            if not np.array_equal(ids[:n] if at == 0 else ids[len(ids) - n :], context[at]):
                raise ValueError(f"{vocabulary.name}: {piece.text[:20]!r}.. is not between seams")
            start, end = (n, end) if at == 0 else (start, end - n)
        out.append(ids[start:end])
    return out


class Seams:
    """Finds seams that several vocabularies have in common.

    Args:
        vocabularies: all that are to encode the pieces.
    """

    def __init__(self, vocabularies: Sequence[Vocabulary]) -> None:
        self.vocabularies = list({v.digest: v for v in vocabularies}.values())
        across = {kind for v in self.vocabularies for kind in _reaches_across(v)}
        self.kinds = [
            kind
            for kind in _KINDS
            if kind not in across and all(_ids_of_context(v, kind) is not None for v in self.vocabularies)
        ]

    def pieces(self, text: str, size: int) -> Iterator[Piece]:
        """A text in pieces of about ``size`` characters, the last one of up to twice as many.

        A stretch of text without a seam makes a longer piece.
        """
        start, before, target = 0, "", size
        while len(text) - start > 2 * size and target < len(text) - size:
            found = self._seam(text, start, target, min(target + size, len(text)))
            if found is None:
                target += size
                continue
            at, kind = found
            yield Piece(text[start:at], before, kind)
            start, before, target = at, kind, at + size
        yield Piece(text[start:], before)

    def _seam(self, text: str, start: int, low: int, high: int) -> tuple[int, str] | None:
        """The first seam from ``low`` on, before ``high``; a line break is better than a space."""
        for kind in self.kinds:
            for match in itertools.islice(_KINDS[kind][0].finditer(text, low, high), _TRIES):
                if self._holds(text, match.start(), kind, start):
                    return match.start(), kind
        return None

    def _holds(self, text: str, at: int, kind: str, start: int) -> bool:
        left, right = text[max(start, at - REACH) : at], text[at : at + REACH]
        known: tuple[bytes, bytes] | None = None
        for vocabulary in self.vocabularies:
            whole = vocabulary.encode(left + right)
            try:
                parts = encode_pieces(vocabulary, [Piece(left, after=kind), Piece(right, before=kind)])
            except ValueError:
                return False
            if not np.array_equal(whole, np.concatenate(parts)) or not vocabulary.byte_length[whole].all():
                return False
            near = vocabulary.decode_bytes(parts[0])[-NEAR:], vocabulary.decode_bytes(parts[1])[:NEAR]
            if known not in (None, near):
                return False
            known = near
        return True

"""Where a pre-tokenizer cuts a text, for many pairs of tokens at once.

What it does between two tokens depends on the kinds of the characters beside the place.  So a token is known by its
*outline*: letters, digits and marks stand for all of their kind, and what comes often in a row for a few.
"""

import unicodedata
from collections.abc import Callable, Sequence
from itertools import groupby

import numpy as np

__all__ = ["Cuts"]

#: Characters on either side of a place that are looked at, and of a kind in a row.
LOOK, RUN = 4, 3
APOSTROPHES = frozenset("'\u2019")
#: Characters that stand for themselves alone.
KEPT = APOSTROPHES | {"/"}
#: What may come after blanks.
FOLLOWERS = ("", "a", "1", ".", " ", "\n")
#: Letters that English contractions begin with: after an apostrophe they count as themselves.
CONTRACTIONS = frozenset("sdmtlrveSDMTLRVE")


class Cuts:
    """
    Args:
        cuts_of: the places in a text, in characters, before which the pre-tokenizer cuts; 0 and the end do not count.
        tokens: the tokens' bytes; None for those without.
    """

    def __init__(self, cuts_of: Callable[[str], Sequence[int]], tokens: Sequence[bytes | None]) -> None:
        self._cuts_of, self._tokens = cuts_of, tokens
        self._outlines: dict[bool, tuple[list[str], np.ndarray]] = {}
        self._known: dict[tuple[str, str], tuple[np.ndarray, np.ndarray]] = {}

    def key(self, before: int | None, last: int) -> tuple[str, str]:
        """What decides of these two tokens: outlines of the end of the first and of the second."""
        end = _end(self._tokens[last] or b"")
        if not end or len(end) >= LOOK or before is None:
            return "", end
        beside = _end(self._tokens[before] or b"")
        return (beside[-RUN:] if beside.endswith("1") else beside[-1:]), end  # digits are counted from the first

    def after(self, key: tuple[str, str]) -> tuple[np.ndarray, np.ndarray]:
        """``(between [V], inside [V])``, bool: whether a cut can be between a token and each next one, and whether one
        is inside of either whatever follows.  Neither where a character lies across the place: it is not cut.
        """
        if not key[1]:
            nothing = np.zeros(len(self._tokens), bool)
            return nothing, nothing
        outlines, number = self._beginnings(key[1][-1] in APOSTROPHES)
        if key not in self._known:
            found = np.array([self._look(*key, outline) for outline in outlines], bool)
            self._known[key] = found[:, 0], found[:, 1]
        between, inside = self._known[key]
        return between[number], inside[number]

    def _look(self, before: str, end: str, beginning: str) -> tuple[bool, bool]:
        if not beginning:
            return False, False
        first, place = len(before), len(before) + len(end)
        between, inside = False, True
        for follower in FOLLOWERS if beginning[-1].isspace() else ("",):
            cuts = self._cuts_of(before + end + beginning + follower)
            across = any(first < cut < place + len(beginning) and cut != place for cut in cuts)
            between, inside = between or (place in cuts and not across), inside and across
        return between, inside

    def _beginnings(self, contractions: bool) -> tuple[list[str], np.ndarray]:
        """The different outlines of the tokens' beginnings, and the number of each token's."""
        if contractions not in self._outlines:
            numbers: dict[str, int] = {}
            outlines = (_beginning(data or b"", contractions) for data in self._tokens)
            of_token = [numbers.setdefault(outline, len(numbers)) for outline in outlines]
            self._outlines[contractions] = list(numbers), np.array(of_token)
        return self._outlines[contractions]


def _end(data: bytes) -> str:
    """ "" if a character goes on after the token."""
    for cut in range(4):
        try:
            return _outline(data[cut:].decode()[-4 * LOOK :], False)[-LOOK:]
        except UnicodeDecodeError:
            continue
    return ""


def _beginning(data: bytes, contractions: bool) -> str:
    """ "" if a character has begun before the token."""
    for cut in range(4):
        try:
            text = data[: len(data) - cut].decode()
        except UnicodeDecodeError:
            continue
        # what blanks are cut like depends on their end
        return _outline(text, contractions) if not text.strip() else _outline(text[: 4 * LOOK], contractions)[:LOOK]
    return ""


def _kind(character: str) -> str:
    """What stands for a character."""
    if character.isspace() or character in KEPT:
        return character
    return _REPRESENTATIVES.setdefault((unicodedata.category(character), _script(character)), character)


_REPRESENTATIVES: dict[tuple[str, str], str] = {
    ("Lu", ""): "A",
    ("Ll", ""): "a",
    ("Nd", ""): "1",
    **{(category, ""): "!" for category in ("Pc", "Pd", "Ps", "Pe", "Pi", "Pf", "Po")},
    **{(category, ""): "+" for category in ("Sm", "Sc", "Sk", "So")},
}


def _script(character: str) -> str:
    """Chinese and Japanese letters, which some pre-tokenizers take apart from others."""
    return "han" if "\u4e00" <= character <= "\u9fa5" else "kana" if "\u3040" <= character <= "\u30ff" else ""


def _outline(text: str, contractions: bool) -> str:
    """
    Args:
        contractions: the text may be the end of one.
    """
    kinds = []
    literal = 2 if contractions else 0  # letters from here on that count as themselves
    for character in text:
        kinds.append(character if literal > 0 and character in CONTRACTIONS else _kind(character))
        literal = 2 if character in APOSTROPHES else literal - 1
    return "".join("".join(list(run)[:RUN]) for _, run in groupby(kinds))

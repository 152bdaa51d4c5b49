"""How the two sides go on from a place in a text: after blanks, after a token that is cut otherwise, inside numerals.

What they say next where the tokens before end some blanks apart:

    student   "   "  " def"           teacher   "    "  "def"

The teacher is *ahead* by one blank: what it says next, the student says with this blank before it.  So the student's
tokens that begin with the blank and the teacher's tokens are joined where they write the same: ``" def"`` and
``"def"``, ``" undefined"`` and the first piece of ``undefined``.
"""

import contextlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from nemo_xtoken.projection.build import spell_strings
from nemo_xtoken.projection.components import components
from nemo_xtoken.projection.contexts import encoded_inside
from nemo_xtoken.vocab.vocabulary import Vocabulary

__all__ = ["LISTED", "Overlap", "Overlaps"]

#: Classes of a table: those of the tokens with the smallest ids, which byte-pair encodings found first.
LISTED = 2048
#: Beginnings for which it is kept how texts that go on are written.
KEPT = 4096


class Overlap(NamedTuple):
    """The classes of next tokens, numbered together; tokens of none are left out.

    Attributes:
        tokens: for the student and the teacher int64 ``[t]``.
        numbers: for each int64 ``[t]``, the class of each token.
    """

    tokens: tuple[np.ndarray, np.ndarray]
    numbers: tuple[np.ndarray, np.ndarray]


class Overlaps:
    """The tables of a pair of vocabularies; each is made when it is first asked for, in about a second, and kept.

    Args:
        student, teacher: the vocabularies.
    """

    def __init__(self, student: Vocabulary, teacher: Vocabulary) -> None:
        self.sides = (student, teacher)
        self._tables: dict[tuple[int, bytes], Overlap] = {}
        self._numerals: list[Any] = [None, None]
        self._written: dict[tuple[int, int, tuple[int, ...]], dict[int, tuple[int, ...]]] = {}

    def cut(self, ids: tuple[np.ndarray, np.ndarray]) -> "Overlaps":
        """The same for vocabularies that have these tokens alone, renumbered in this order."""
        return _CutOverlaps(self, ids)

    def written_before(
        self, side: int, token: int, path: tuple[int, ...], lasts: Sequence[int]
    ) -> list[tuple[int, ...]]:
        """How a side writes this token and behind it bytes of the other side's: of ``path`` and one of ``lasts``.

        Returns:
            one for each of ``lasts``; () where the side writes another token first.
        """
        if len(self._written) > KEPT:
            self._written.clear()
        known = self._written.setdefault((side, token, path), {})
        new = [last for last in lasts if last not in known]
        data = self.sides[side].token_bytes[token] or b""
        texts = [data + self.sides[1 - side].decode_bytes((*path, last)) for last in new]
        for last, ids in zip(new, self._written_as(side, texts), strict=True):
            known[last] = ids if ids[:1] == (token,) else ()
        return [known[last] for last in lasts]

    def written_as(self, side: int, path: tuple[int, ...]) -> tuple[int, ...]:
        """How a side writes the bytes of the other side's path; () for what is no text."""
        return self._written_as(side, [self.sides[1 - side].decode_bytes(path)])[0]

    def _written_as(self, side: int, strings: list[bytes]) -> list[tuple[int, ...]]:
        texts: dict[int, str] = {}
        for number, data in enumerate(strings):
            with contextlib.suppress(UnicodeDecodeError):
                texts[number] = data.decode("utf-8")
        found: list[tuple[int, ...]] = [()] * len(strings)
        for number, ids in zip(texts, encoded_inside(self.sides[side], list(texts.values())), strict=True):
            found[number] = tuple(ids)
        return found

    def longer(self, side: int, path: tuple[int, ...]) -> list[tuple[int, tuple[int, ...]]]:
        """Tokens that a side may have in place of the last of a path that ends in a digit, with more digits.

        Returns:
            each with the whole path with it as the other side writes it; those that a text has.
        """
        own, other = self.sides[side], self.sides[1 - side]
        if self._numerals[side] is None:
            table: dict[bytes, list[int]] = {}
            for token, data in enumerate(own.token_bytes):
                if data and own.id_of_bytes[data] == token:
                    end = len(data.rstrip(b"0123456789"))
                    for length in range(end + 1, len(data)):
                        table.setdefault(data[:length], []).append(token)
            self._numerals[side] = table
        tokens = self._numerals[side].get(own.token_bytes[path[-1]] or b"", [])
        try:
            texts = [own.decode_bytes((*path[:-1], token)).decode("utf-8") for token in tokens]
        except UnicodeDecodeError:
            return []
        written = zip(tokens, encoded_inside(own, texts), encoded_inside(other, texts), strict=True)
        return [(token, tuple(theirs)) for token, mine, theirs in written if tuple(mine) == (*path[:-1], token)]

    def after(self, student: tuple[int, ...], teacher: tuple[int, ...]) -> Overlap | None:
        """What may come next after these tokens of one text; None if they do not end some blanks apart."""
        texts = [v.decode_bytes(ids) for v, ids in zip(self.sides, (student, teacher), strict=True)]
        ahead = int(len(texts[1]) > len(texts[0]))
        between = texts[ahead][len(texts[1 - ahead]) :]
        if not between or between.strip() or not texts[ahead].startswith(texts[1 - ahead]):
            return None
        key = ahead, between
        if key not in self._tables:
            self._tables[key] = self._make(*key)
        return self._tables[key]

    def _make(self, ahead: int, between: bytes) -> Overlap:
        behind, before = self.sides[1 - ahead], self.sides[ahead]
        edges: list[tuple[int, int]] = []
        rest: dict[bytes, int] = {}
        for token, data in enumerate(behind.token_bytes):
            if data and len(data) > len(between) and data.startswith(between):
                mate = before.id_of_bytes.get(data[len(between) :])
                if mate is None:
                    rest[data[len(between) :]] = token
                else:
                    edges.append((token, mate))
        done = {mate for _, mate in edges}
        strings = list(rest)
        edges += [(rest[strings[i]], pieces[0]) for i, pieces in spell_strings(strings, before) if pieces]
        others = [t for t, data in enumerate(before.token_bytes) if data and t not in done]
        strings = [between + (before.token_bytes[t] or b"") for t in others]
        for i, pieces in spell_strings(strings, behind):
            if pieces and len(behind.token_bytes[pieces[0]] or b"") > len(between):
                edges.append((pieces[0], others[i]))
        numbers = components(np.array(edges, np.int64).reshape(-1, 2), behind.size, before.size)
        firsts = np.full(max(x.max(initial=-1) for x in numbers) + 1, behind.size)
        inside = np.flatnonzero(numbers[0] >= 0)
        np.minimum.at(firsts, numbers[0][inside], inside)
        rank = np.argsort(np.argsort(firsts))
        found = []
        for side in numbers:
            tokens = np.flatnonzero(side >= 0)
            kept = rank[side[tokens]] < LISTED
            found.append((tokens[kept], rank[side[tokens[kept]]]))
        if ahead == 0:
            found.reverse()
        return Overlap(*zip(*found, strict=True))


class _CutOverlaps(Overlaps):
    def __init__(self, whole: Overlaps, ids: tuple[np.ndarray, np.ndarray]) -> None:
        self.whole, self.ids = whole, ids

    def written_before(
        self, side: int, token: int, path: tuple[int, ...], lasts: Sequence[int]
    ) -> list[tuple[int, ...]]:
        theirs = self.ids[1 - side]
        before, wanted = tuple(theirs[list(path)].tolist()), theirs[list(lasts)].tolist()
        return [
            self._cut(side, ids) for ids in self.whole.written_before(side, int(self.ids[side][token]), before, wanted)
        ]

    def written_as(self, side: int, path: tuple[int, ...]) -> tuple[int, ...]:
        return self._cut(side, self.whole.written_as(side, tuple(self.ids[1 - side][list(path)].tolist())))

    def _cut(self, side: int, ids: tuple[int, ...]) -> tuple[int, ...]:
        """-1 for tokens that are not here."""
        at = np.searchsorted(self.ids[side], ids).clip(max=len(self.ids[side]) - 1)
        return tuple(np.where(self.ids[side][at] == ids, at, -1).tolist())

    def longer(self, side: int, path: tuple[int, ...]) -> list[tuple[int, tuple[int, ...]]]:
        found = self.whole.longer(side, tuple(self.ids[side][list(path)].tolist()))
        cut = [(self._cut(side, (token,))[0], self._cut(1 - side, theirs)) for token, theirs in found]
        return [(token, theirs) for token, theirs in cut if token >= 0]

    def after(self, student: tuple[int, ...], teacher: tuple[int, ...]) -> Overlap | None:
        paths = [tuple(ids[list(path)].tolist()) for ids, path in zip(self.ids, (student, teacher), strict=True)]
        found = self.whole.after(paths[0], paths[1])
        if found is None:
            return None
        kept = [np.isin(tokens, ids) for tokens, ids in zip(found.tokens, self.ids, strict=True)]
        tokens = [np.searchsorted(ids, t[k]) for ids, t, k in zip(self.ids, found.tokens, kept, strict=True)]
        numbers = [n[k] for n, k in zip(found.numbers, kept, strict=True)]
        return Overlap((tokens[0], tokens[1]), (numbers[0], numbers[1]))

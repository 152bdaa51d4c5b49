"""What the turns of two sides have in common where each writes it in a form of its own.

One template writes a call as ``<tool_call>{"name": "f", "arguments": {"city": "Paris"}}</tool_call>``, another as
``<parameter=city>\\nParis\\n</parameter>``.  Both models choose the tool, the arguments and their values; neither
chooses its template's words.  So compared are

- parts that both sides write (reasoning, answer, the tool's name, each value that is a text), in the order of both; of
  values that one of them writes as JSON does, what stands between characters that it spells otherwise;
- names of arguments, numbers, ``true``, ``false``, ``null``: where both write the same word between the same two parts;
- what both templates write in the same words behind a part (``", "``), and in front of one (``": {"``).  The latter
  not where one side alone has more in front of it: in ``{"name": "`` behind ``<tool_call>\\n`` nothing is decided any
  more, while another template's ``{"name": "`` at the beginning of a turn holds the decision that a tool is called.

A region ends where tokens of both sides do.
"""

import difflib
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from nemo_xtoken.data.conversation.parts import Part, common_length, equal_runs

__all__ = ["Span", "TurnText", "regions"]

_MARKERS = 0xF0000  # private use: special tokens within the template's text, one character for a role


class Span(NamedTuple):
    """A part of a turn, or what the template writes between two.

    Attributes:
        part: its number, or -1.
        start, end: in bytes; special tokens have none.
        text: of it; special tokens are markers.
        kinds: see `Stretch`.
    """

    part: int
    start: int
    end: int
    text: str
    kinds: frozenset[str]


@dataclass(frozen=True)
class TurnText:
    """The bytes of a turn.

    Attributes:
        tokens: int64 ``[n, 2]``, where each token begins and ends.
        spans: one after the other, from the beginning of the turn to its end.
        roles: token -> role, of special tokens.
    """

    tokens: np.ndarray
    spans: tuple[Span, ...]
    roles: dict[int, str]

    @staticmethod
    def marker(role: str) -> str:
        """What stands for a special token in a text."""
        return chr(_MARKERS + zlib.crc32(role.encode()) % 0xFFF0)

    def cut(self, count: int) -> "TurnText":
        """With so many tokens."""
        return TurnText(self.tokens[:count], self.spans, {at: role for at, role in self.roles.items() if at < count})

    def learned(self, learn: frozenset[str]) -> np.ndarray:
        """bool ``[n]``: tokens that hold something that is learned, and no words of a part that is not."""
        start, end = self.tokens[:, 0], self.tokens[:, 1]
        yes, no = np.zeros(len(start), bool), np.zeros(len(start), bool)
        for span in self.spans:
            inside = (start < span.end) & (end > span.start)
            yes |= inside & bool(span.kinds & learn)
            no |= inside & (span.part >= 0) & (not span.kinds & learn)
        for at in self.roles:  # without bytes: with the template's words around it
            place = start[at]
            around = [s for s in self.spans if s.part < 0 and s.start <= place <= s.end]
            yes[at] = any(s.kinds & learn for s in around)
        return yes & ~no


class _Region(NamedTuple):
    """Equal text: where it begins in the bytes of either side, and the text."""

    student: int
    teacher: int
    text: str


def regions(
    student: TurnText, teacher: TurnText, student_parts: Sequence[Part], words: Sequence[str]
) -> list[tuple[int, int, int, int]]:
    """Token ranges of both sides that spell the same bytes and can be compared: (start, end, start, end).

    Args:
        student_parts: the conversation's parts, which are the same for both sides.
        words: see `words_of`; of the turn's calls.
    """
    found = [region for region in _equal(student, teacher, student_parts, words) if region.text]
    joined: list[_Region] = []
    for region in sorted(found):
        if joined:
            last = joined[-1]
            ends = last.student + _size(last.text), last.teacher + _size(last.text)
            if ends == (region.student, region.teacher):
                joined[-1] = last._replace(text=last.text + region.text)
                continue
            if region.student < ends[0] or region.teacher < ends[1]:
                continue
        joined.append(region)
    ranges = (_tokens_in(student, teacher, region) for region in joined)
    return [one for one in ranges if one is not None]


def _equal(student: TurnText, teacher: TurnText, parts: Sequence[Part], words: Sequence[str]) -> list[_Region]:
    sides = [[(span.part, at) for at, span in enumerate(side.spans) if span.part >= 0] for side in (student, teacher)]
    numbers = [[part for part, _ in side] for side in sides]
    matcher = difflib.SequenceMatcher(None, numbers[0], numbers[1], autojunk=False)
    pairs = [
        (sides[0][block.a + i][1], sides[1][block.b + i][1])
        for block in matcher.get_matching_blocks()
        for i in range(block.size)
    ]
    out: list[_Region] = []
    before = (-1, -1)
    for pair in [*pairs, (len(student.spans), len(teacher.spans))]:
        out += _between(student.spans[before[0] + 1 : pair[0]], teacher.spans[before[1] + 1 : pair[1]], before, words)
        if pair[0] < len(student.spans):
            one, other = student.spans[pair[0]], teacher.spans[pair[1]]
            for a, b, length in equal_runs(parts[one.part].text, one.text, other.text):
                text = one.text[a : a + length]
                out.append(_Region(one.start + _size(one.text[:a]), other.start + _size(other.text[:b]), text))
        before = pair
    return out


def _between(
    student: Sequence[Span], teacher: Sequence[Span], before: tuple[int, int], words: Sequence[str]
) -> list[_Region]:
    """Equal texts between two parts that both sides have."""
    if not student or not teacher:
        return []
    first, second = "".join(s.text for s in student), "".join(s.text for s in teacher)
    a, b = student[0].start, teacher[0].start
    if first == second:
        return [_Region(a, b, first)]
    opens = before == (-1, -1) or any(len(s.kinds) > 1 for s in (*student, *teacher))
    ahead = 0 if opens else _to_word(first, second, common_length(first, second))
    rest, other = first[ahead:], second[ahead:]
    behind = 0 if opens else _to_word(rest[::-1], other[::-1], common_length(rest[::-1], other[::-1]))
    if behind in (len(rest), len(other)):  # one side has something more in front of it
        behind = 0
    out = [_Region(a, b, first[:ahead])]
    middle, others = rest[: len(rest) - behind], other[: len(other) - behind]
    a, b = a + _size(first[:ahead]), b + _size(second[:ahead])
    if words:
        longest = sorted(words, key=len, reverse=True)
        pattern = re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, longest))})(?!\w)")
        found = [list(pattern.finditer(text)) for text in (middle, others)]
        same = [[match[0] for match in side] for side in found]
        matcher = difflib.SequenceMatcher(None, same[0], same[1], autojunk=False)
        for block in matcher.get_matching_blocks():
            for i in range(block.size):
                one, two = found[0][block.a + i], found[1][block.b + i]
                places = a + _size(middle[: one.start()]), b + _size(others[: two.start()])
                out.append(_Region(*places, one[0]))
    if behind:
        out.append(_Region(a + _size(middle), b + _size(others), rest[len(rest) - behind :]))
    return out


def _to_word(first: str, second: str, length: int) -> int:
    """A common beginning cut back to one that ends between two words of both texts."""
    while length > 0 and any(_within_word(text, length) for text in (first, second)):
        length -= 1
    return length


def _within_word(text: str, at: int) -> bool:
    return (
        at < len(text) and (text[at - 1].isalnum() or text[at - 1] == "_") and (text[at].isalnum() or text[at] == "_")
    )


def _size(text: str) -> int:
    """In bytes; special tokens have none."""
    return len("".join(c for c in text if ord(c) < _MARKERS or ord(c) >= _MARKERS + 0xFFF0).encode())


def _tokens_in(student: TurnText, teacher: TurnText, region: _Region) -> tuple[int, int, int, int] | None:
    """The tokens of a region between the first and the last place where tokens of both sides end."""
    size = _size(region.text)
    edges = []
    for side, at in ((student, region.student), (teacher, region.teacher)):
        places = np.concatenate([side.tokens[:, 0], side.tokens[-1:, 1]]) - at if len(side.tokens) else np.empty(0)
        edges.append({int(place) for place in places if 0 <= place <= size})
    both = sorted(edges[0] & edges[1])
    if not both or (len(both) < 2 and size):
        return None
    out: list[int] = []
    opens, closes = (bool(text) and _size(text) == 0 for text in (region.text[:1], region.text[-1:]))
    for side, at in ((student, region.student), (teacher, region.teacher)):
        start, end = side.tokens[:, 0] - at, side.tokens[:, 1] - at
        low = int(np.searchsorted(start, both[0]))
        high = int(np.searchsorted(end, both[-1], "right"))
        while low < high and start[low] == end[low] and not (opens and both[0] == 0):
            low += 1
        while low < high and start[high - 1] == end[high - 1] and not (closes and both[-1] == size):
            high -= 1
        if low >= high:
            return None
        out += [low, high]
    return out[0], out[1], out[2], out[3]

"""A rendered conversation as the runs of text between its special tokens, and where in them the assistant speaks.

A token may reach over an end of the turn, as ``)\\n\\n`` of which the last character belongs to the next header.  It
is part of the turn, which would lack its last character otherwise, unless it holds text of another message.
"""

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from nemo_xtoken.data.conversation.comparable import Span, TurnText
from nemo_xtoken.errors import InputError
from nemo_xtoken.vocab import Vocabulary

__all__ = ["Rendered", "Run", "Script", "ScriptWriter", "Stretch", "Turn", "assemble"]

#: What tokenizers take for blanks beside a special token: Unicode's White_Space.
_BLANKS = "\t\n\x0b\x0c\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(map(chr, range(0x2000, 0x200B)))


class Rendered(NamedTuple):
    """One conversation for one tokenizer.

    Attributes:
        ids: int32 ``[n]``.
        turns: message number -> token range of an assistant's turn: its words and what ends it.
        unlearned: int64, tokens within the turns that are no labels.
        texts: of turns that are more than a text, how they consist of parts; None where the tokenizer changes them.
        left_out: what of the conversation the template does not write -> how many messages.
    """

    ids: np.ndarray
    turns: dict[int, tuple[int, int]]
    unlearned: np.ndarray
    texts: Mapping[int, TurnText | None]
    left_out: Mapping[str, int]


class Run(NamedTuple):
    """Text between two special tokens.

    Attributes:
        text: all of it.
        special: id of the special token after it; None at the end of the conversation.
    """

    text: str
    special: int | None


class Stretch(NamedTuple):
    """A part, or what the template writes between two.

    Attributes:
        run, start: where it begins.
        last, end: where it ends.
        part: number of the part, or -1.
        kinds: of what it is: one for a part, those of both neighbours between two.
    """

    run: int
    start: int
    last: int
    end: int
    part: int
    kinds: frozenset[str]


class Turn(NamedTuple):
    """What an assistant's message becomes.

    Attributes:
        message: its number.
        run, start: where its words begin.
        after: in this run, where the text of the message before ends.
        last: the run in which the turn ends.
        end: there, the end in its text; None: with its special token.
        stretches: what it consists of up to its last part.
        plain: it is a text and nothing else.
        before: in the last run, where the text of the message behind begins; None: with the run's end or later.
    """

    message: int
    run: int
    start: int
    after: int
    last: int
    end: int | None
    stretches: tuple[Stretch, ...]
    plain: bool
    before: int | None = None


class Script(NamedTuple):
    """A conversation, ready to be encoded."""

    runs: list[Run]
    turns: list[Turn]
    left_out: Mapping[str, int]

    def prefixes(self) -> Iterable[str]:
        """The texts to encode: the runs, and what of a run stands before the places of a turn."""
        yield from (run.text for run in self.runs)
        for turn in self.turns:
            yield from (self.runs[turn.run].text[:place] for place in (turn.after, turn.start))
            yield from (self.runs[turn.last].text[:place] for place in (turn.end, turn.before) if place is not None)


class ScriptWriter:
    """Puts the text of a conversation into runs, as it comes."""

    def __init__(self, pattern: re.Pattern[str], specials: dict[str, int], vocabulary: Vocabulary) -> None:
        self._pattern, self._specials, self._strips = pattern, specials, vocabulary.special_strips
        self._runs: list[Run] = []
        self._text, self._stripping = "", False  # blanks behind some special tokens belong to these
        self.after = 0  # in the run, where the words that were written last end

    @property
    def place(self) -> tuple[int, int]:
        """Run, and how many characters it has."""
        return len(self._runs), len(self._text)

    def write(self, text: str) -> None:
        """The template's own."""
        for j, piece in enumerate(self._pattern.split(text)):
            if not j % 2:
                self._put(piece)
                continue
            special = self._specials[piece]
            left, self._stripping = self._strips.get(special, (False, False))
            self._runs.append(Run(self._text.rstrip(_BLANKS) if left else self._text, special))
            self._text, self.after = "", 0

    def write_words(self, text: str) -> None:
        """A message's: there are no special tokens in it."""
        self._put(text)
        self.after = len(self._text)

    def finished(self) -> list[Run]:
        """All of them."""
        return [*self._runs, Run(self._text, None)]

    def _put(self, text: str) -> None:
        self._text += text.lstrip(_BLANKS) if self._stripping and not self._text else text


def assemble(
    vocabulary: Vocabulary, script: Script, ids_of: Mapping[str, np.ndarray], learn: frozenset[str]
) -> Rendered:
    """The ids, the turns in them, and what of these is learned.

    Args:
        ids_of: the ids of `Script.prefixes`.
        learn: kinds of parts that are.

    Raises:
        InputError: a part alone is learned, and the tokenizer does not keep the text's bytes.
    """
    parts: list[np.ndarray] = []
    begins: list[int] = []
    at = 0
    for run in script.runs:
        begins.append(at)
        parts.append(ids_of[run.text])
        if run.special is not None:
            parts.append(np.array([run.special], np.int32))
        at += len(ids_of[run.text]) + (run.special is not None)
    turns: dict[int, tuple[int, int]] = {}
    texts: dict[int, TurnText | None] = {}
    unlearned: list[np.ndarray] = []
    for turn in script.turns:
        text, last = script.runs[turn.run].text, script.runs[turn.last].text
        _, others = _held(vocabulary, ids_of[text[: turn.after]], ids_of[text])
        first = begins[turn.run] + max(_common(ids_of[text[: turn.start]], ids_of[text]), others)
        if turn.end is None:
            end = begins[turn.last] + len(ids_of[last]) + 1
        else:
            whole, touched = _held(vocabulary, ids_of[last[: turn.end]], ids_of[last])
            free, _ = _held(vocabulary, ids_of[last[: turn.before]], ids_of[last])
            end = begins[turn.last] + (touched if touched <= free else whole)
        if end <= first or turn.message in turns:
            continue
        kinds = frozenset[str]().union(*(stretch.kinds for stretch in turn.stretches))
        if not kinds & learn:
            continue
        if not turn.plain:
            found = texts[turn.message] = _turn_text(vocabulary, script.runs, turn, ids_of, first - begins[turn.run])
            if found is not None:
                found = texts[turn.message] = found.cut(end - first)
            if not kinds <= learn:
                if found is None:
                    raise InputError(
                        f"the tokenizer {vocabulary.name} changes the text of a message with reasoning or calls",
                        "one that keeps the bytes of texts, where only a part of a message is learned",
                        "set learn to all of answers, reasoning and calls",
                    )
                no = ~found.learned(learn)
                if no.all():
                    del texts[turn.message]
                    continue
                unlearned.append(first + np.flatnonzero(no))
        turns[turn.message] = first, end
    return Rendered(
        np.concatenate(parts).astype(np.int32, copy=False),
        turns,
        np.concatenate([np.empty(0, np.int64), *unlearned]),
        texts,
        script.left_out,
    )


def _turn_text(
    vocabulary: Vocabulary, runs: Sequence[Run], turn: Turn, ids_of: Mapping[str, np.ndarray], skipped: int
) -> TurnText | None:
    """The bytes of a turn's tokens and of its stretches; None where the tokens do not spell the text.

    Args:
        skipped: tokens of the first run in front of the turn.
    """
    tokens: list[tuple[int, int]] = []
    roles: dict[int, str] = {}
    base, bases = 0, []
    for number in range(turn.run, turn.last + 1):
        run, ids = runs[number], ids_of[runs[number].text]
        bases.append(base)
        edges = _edges(vocabulary, ids, run.text.encode())
        if edges is None:
            return None
        tokens += [(base + a, base + b) for a, b in itertools.pairwise(edges)]
        base += edges[-1]
        if run.special is not None:
            roles[len(tokens)] = vocabulary.roles.get(run.special) or f"special:{run.special}"
            tokens.append((base, base))

    def place(run: int, character: int) -> int:
        """In bytes from the beginning of the first run."""
        return bases[run - turn.run] + len(runs[run].text[:character].encode())

    def text(first: int, start: int, last: int, end: int) -> str:
        if first == last:
            return runs[first].text[start:end]
        specials = [_marker(vocabulary, runs[n].special) for n in range(first, last)]
        middle = "".join(specials[n - first] + runs[n].text for n in range(first + 1, last))
        return runs[first].text[start:] + middle + specials[-1] + runs[last].text[:end]

    spans = [
        Span(s.part, place(s.run, s.start), place(s.last, s.end), text(s.run, s.start, s.last, s.end), s.kinds)
        for s in turn.stretches
    ]
    last = turn.stretches[-1]
    end = len(runs[turn.last].text) if turn.end is None else turn.end
    tail = text(last.last, last.end, turn.last, end)
    if turn.end is None:
        tail += _marker(vocabulary, runs[turn.last].special)
    spans.append(Span(-1, spans[-1].end, place(turn.last, end), tail, last.kinds))
    found = np.array(tokens, np.int64).reshape(-1, 2)[skipped:]
    return TurnText(found, tuple(spans), {at - skipped: role for at, role in roles.items() if at >= skipped})


def _marker(vocabulary: Vocabulary, special: int | None) -> str:
    return "" if special is None else TurnText.marker(vocabulary.roles.get(special) or f"special:{special}")


def _edges(vocabulary: Vocabulary, ids: np.ndarray, text: bytes) -> list[int] | None:
    """Where the tokens of a text begin and end in its bytes; None where they are other bytes."""
    edges = [0, *np.cumsum(vocabulary.byte_length[ids]).tolist()]
    spelled = vocabulary.decode_bytes(ids)
    if spelled == text:
        return edges
    if spelled == b" " + text:  # the blank that some tokenizers write in front of every text
        return [max(0, edge - 1) for edge in edges]
    return None


def _held(vocabulary: Vocabulary, beginning: np.ndarray, ids: np.ndarray) -> tuple[int, int]:
    """How many of a text's first tokens hold nothing but its beginning, and how many hold any of it.

    Args:
        beginning: ids of the beginning alone; they may end in others than ``ids`` have there.
        ids: of the text.
    """
    count = common = _common(beginning, ids)
    left = vocabulary.decode_bytes(beginning[common:])
    while left:
        data = vocabulary.token_bytes[int(ids[count])] if count < len(ids) else None
        if not data or not (left.startswith(data) or data.startswith(left)):
            return common, common  # the tokenizer writes the beginning otherwise in the text
        if len(data) > len(left):
            return count, count + 1
        left, count = left[len(data) :], count + 1
    return count, count


def _common(a: np.ndarray, b: np.ndarray) -> int:
    """Length of the common start."""
    least = min(len(a), len(b))
    differ = a[:least] != b[:least]
    return int(differ.argmax()) if differ.any() else least

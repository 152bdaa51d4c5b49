"""What a conversation consists of, and where a template has written each part.

A template is rendered with a mark in place of every part: a message's text, its reasoning (beside the text, or between
``<think>`` and ``</think>`` at the beginning of it), and of a call the tool's name and each argument that is a text.
A template may write such a text as it is, or as JSON does (``\\n`` as two characters), or leave it out.
"""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from nemo_xtoken.data.conversation.chat import ASSISTANT, Call, Conversation, Message
from nemo_xtoken.errors import InputError

__all__ = [
    "ANSWERS",
    "CALLS",
    "KINDS",
    "LEARN",
    "MARK",
    "REASONING",
    "Part",
    "common_length",
    "equal_runs",
    "fill",
    "is_plain",
    "learned_kinds",
    "mark",
    "words_of",
]

ANSWERS, REASONING, CALLS = "answers", "reasoning", "calls"
#: What an assistant's turn may consist of.
KINDS = (ANSWERS, REASONING, CALLS)
LEARN = ",".join(KINDS)
_OPEN, _CLOSE = "\ue000", "\ue001"  # private use: no template contains them
MARK = re.compile(f"{_OPEN}(\\d+){_CLOSE}")
_THINKING = re.compile(r"(\s*<think>\s*)(.*?)(\s*</think>\s*)(.*)", re.DOTALL)
_TAG = re.compile("</?think>")


class Part(NamedTuple):
    """A text of a message.

    Attributes:
        message: its number.
        kind: one of `KINDS`; "" in messages that are not the assistant's.
        text: as the message has it.
    """

    message: int
    kind: str
    text: str


def mark(messages: Sequence[Message]) -> tuple[Conversation, list[Part]]:
    """The conversation with a mark in place of every part, and the parts by the marks' numbers.  Empty texts stay."""
    parts: list[Part] = []

    def marked(number: int, kind: str) -> Callable[[str], str]:
        def put(text: str) -> str:
            if not text:
                return text
            parts.append(Part(number, kind, text))
            return f"{_OPEN}{len(parts) - 1}{_CLOSE}"

        return put

    out = []
    for number, message in enumerate(messages):
        if message.role != ASSISTANT:
            out.append(message._replace(text=marked(number, "")(message.text)))
            continue
        reasoning = marked(number, REASONING)(message.reasoning)
        if (thinking := _thinking(message)) is not None:
            opening, thought, closing, answer = thinking
            thought = marked(number, REASONING)(thought)
            text = opening + thought + closing + marked(number, ANSWERS)(answer)
        else:
            text = marked(number, ANSWERS)(message.text)
        put = marked(number, CALLS)
        calls = tuple(Call(put(call.name), _in_leaves(call.arguments, put), call.id) for call in message.calls)
        out.append(message._replace(text=text, reasoning=reasoning, calls=calls))
    return Conversation(out, Conversation.of(messages).tools), parts


def _thinking(message: Message) -> tuple[str, str, str, str] | None:
    """Tag, reasoning, tag and answer of a text that begins with reasoning."""
    found = None if message.reasoning else _THINKING.fullmatch(message.text)
    if found is None or _TAG.search(found[2]) or _TAG.search(found[4]):
        return None
    return found[1], found[2], found[3], found[4]


def is_plain(message: Message) -> bool:
    """Whether a message is a text and nothing else."""
    return not (message.reasoning or message.calls or _thinking(message))


def _in_leaves(value: Any, put: Callable[[str], str]) -> Any:
    """The value with ``put`` of each text in it."""
    if isinstance(value, str):
        return put(value)
    if isinstance(value, dict):
        return {key: _in_leaves(inner, put) for key, inner in value.items()}
    return [_in_leaves(inner, put) for inner in value] if isinstance(value, list) else value


def learned_kinds(learn: str) -> tuple[str, ...]:
    """The kinds of parts with commas between them: answers, reasoning, calls.

    Raises:
        InputError: another one, or none.
    """
    kinds = tuple(kind for kind in KINDS if kind in [word.strip() for word in learn.split(",")])
    if len(kinds) != len(learn.split(",")):
        raise InputError(f"learn={learn!r}", f"some of {LEARN}, with commas between them", "correct learn")
    return kinds


def words_of(calls: Sequence[Call]) -> list[str]:
    """What a template writes of calls beside their parts: names of arguments, numbers, true, false and null."""

    def inside(value: Any) -> Iterator[str]:
        if isinstance(value, dict):
            for key, inner in value.items():
                yield str(key)
                yield from inside(inner)
        elif isinstance(value, list):
            for inner in value:
                yield from inside(inner)
        elif not isinstance(value, str):
            yield json.dumps(value)

    return list(dict.fromkeys(word for call in calls for word in inside(call.arguments) if word))


# --- how a template spells a text


def _as_is(text: str) -> str:
    return text


def _in_json(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)[1:-1]


def _in_ascii(text: str) -> str:
    return json.dumps(text)[1:-1]


def _twice(text: str) -> str:
    return _in_json(_in_json(text))


#: Spellings in which every character is spelled by itself.
_SPELLINGS = (_as_is, _in_json, _in_ascii, _twice)


def fill(pieces: Sequence[str], parts: Sequence[Part], rendered: str) -> list[str] | None:
    """The text that each mark stands for.

    Args:
        pieces: what `MARK` splits the marked conversation into: the template's text and marks' numbers by turns.
        parts: by their numbers.
        rendered: the conversation itself.

    Returns:
        As ``pieces``, with texts in place of numbers; None: the template does other things with the texts than with the
        marks.
    """
    out, at = [pieces[0]], len(pieces[0])
    if not rendered.startswith(pieces[0]):
        return None
    for number, behind in zip(pieces[1::2], pieces[2::2], strict=True):
        text = parts[int(number)].text
        for spelling in _SPELLINGS:
            written = spelling(text)
            if rendered.startswith(written + behind, at):
                break
        else:
            return None
        out += [written, behind]
        at += len(written) + len(behind)
    return out if at == len(rendered) else None


def equal_runs(text: str, first: str, second: str) -> list[tuple[int, int, int]]:
    """Where two spellings of a text are the same: (place in the first, place in the second, length), in characters."""
    if first == second:
        return [(0, 0, len(first))] if first else []
    spelled = []
    for written in (first, second):
        how = next((spelling for spelling in _SPELLINGS if spelling(text) == written), None)
        if how is None:
            return []
        spelled.append([how(character) for character in text])
    runs: list[tuple[int, int, int]] = []
    a = b = 0
    for one, other in zip(*spelled, strict=True):
        if one == other:
            if runs and (runs[-1][0] + runs[-1][2], runs[-1][1] + runs[-1][2]) == (a, b):
                runs[-1] = (*runs[-1][:2], runs[-1][2] + len(one))
            else:
                runs.append((a, b, len(one)))
        a, b = a + len(one), b + len(other)
    return runs


def common_length(a: str, b: str) -> int:
    """Of the common start of two texts."""
    least = min(len(a), len(b))
    return next((i for i in range(least) if a[i] != b[i]), least)

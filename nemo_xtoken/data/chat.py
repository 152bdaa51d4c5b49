"""Conversations as data sets hold them, brought to one form: a JSON list of ``[role, text]``.

From here on this form is the text of the document: digests, workers and the cache use it.
"""

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from nemo_xtoken.errors import InputError, shortened

__all__ = ["ASSISTANT", "Message", "conversation_text", "messages_of"]

ASSISTANT = "assistant"
_SPELLINGS = {
    "system": "system developer",
    "user": "user human prompter",
    ASSISTANT: "assistant gpt model bot chatgpt",
    "tool": "tool function observation ipython",
}
#: What may stand beside a message's text and says nothing that a template would write or a run would heed.
NEUTRAL = ("id", "uuid", "message_id", "created_at", "create_time", "timestamp", "date", "index", "lang", "language")
_ROLE_OF = {spelling: role for role, spellings in _SPELLINGS.items() for spelling in spellings.split()}


class Message(NamedTuple):
    """One message: its role, and its text without blanks around it."""

    role: str
    text: str


def conversation_text(value: Any, place: str) -> str:
    """A conversation in the form above; "" if the assistant says nothing, because nothing is learned from it then.

    Args:
        value: a list of messages, each with ``role`` and ``content`` (or ``from`` and ``value``); None is an empty one.
            A content is a text, or a list of parts that are texts.
        place: file and row, for error messages.

    Raises:
        InputError: anything else, an unknown role, something beside the text that would be lost (tool calls, reasoning,
            a name, a weight), or text that UTF-8 cannot hold.
    """
    if value is None:
        return ""
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise _wrong(place, f"a {type(value).__name__}", "a list of messages")
    messages = [_message(message, f"message {number} of {place}") for number, message in enumerate(value, 1)]
    if not any(message.role == ASSISTANT and message.text for message in messages):
        return ""
    return json.dumps(messages, ensure_ascii=False, separators=(",", ":"))


def messages_of(text: str) -> list[Message]:
    """The messages in what `conversation_text` made."""
    return [Message(role, content) for role, content in json.loads(text)]


def _message(message: Any, place: str) -> Message:
    if not isinstance(message, dict):
        raise _wrong(place, f"a {type(message).__name__}", "an object with role and content")
    names = ("role", "content") if "role" in message else ("from", "value")
    if not all(name in message for name in names):
        raise _wrong(place, f"keys {', '.join(map(str, message)) or 'none'}", "role and content, or from and value")
    for name, value in message.items():
        if name in names or name in NEUTRAL or value is None or value in ("", [], {}):
            continue
        if (name, value) in (("weight", 1), ("name", message[names[0]])):
            continue
        raise _wrong(
            place, f"{name}={shortened(repr(value))}", f"text in {names[1]} alone: what else a message has is not read"
        )
    role = _ROLE_OF.get(str(message[names[0]]).lower())
    if role is None:
        raise _wrong(place, f"role {message[names[0]]!r}", f"one of {', '.join(_ROLE_OF)}")
    text = _text(message[names[1]], place).strip()
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise _wrong(place, f"half a surrogate pair at character {error.start}", "text in UTF-8") from error
    return Message(role, text)


def _text(content: Any, place: str) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else [content]
    for part in parts:
        if not isinstance(part, dict) or not isinstance(part.get("text"), str):
            kind = part.get("type", "object") if isinstance(part, dict) else type(part).__name__
            raise _wrong(place, f"content of type {kind}", "a text, or parts that are texts")
    return "".join(part["text"] for part in parts)


def _wrong(place: str, found: str, expected: str) -> InputError:
    return InputError(
        f"{place}: {found}", expected, "correct or leave out the row, or set messages_key to another column"
    )

"""Conversations as data sets hold them, brought to one form: a JSON list of ``[role, text]``.

From here on this form is the text of the document: digests, workers and the cache use it.  A message with more than a
text has that as a third element; a conversation with tools is ``{"tools": [..], "messages": [..]}``.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from nemo_xtoken.errors import InputError, shortened

__all__ = ["ASSISTANT", "TOOL", "Call", "Conversation", "Message", "as_row", "conversation_text", "messages_of"]

ASSISTANT, TOOL = "assistant", "tool"
_SPELLINGS = {
    "system": "system developer",
    "user": "user human prompter",
    ASSISTANT: "assistant gpt model bot chatgpt",
    TOOL: "tool function observation ipython",
}
#: What may stand beside a message's text and says nothing that a template would write or a run would heed.
NEUTRAL = ("id", "uuid", "message_id", "created_at", "create_time", "timestamp", "date", "index", "lang", "language")
_ROLE_OF = {spelling: role for role, spellings in _SPELLINGS.items() for spelling in spellings.split()}
_REASONING = ("reasoning_content", "reasoning", "thinking")
_MOST_DEPTH = 40  # of lists and objects in each other, in a call's arguments and in tools


class Call(NamedTuple):
    """A call of a tool.

    Attributes:
        name: of the tool.
        arguments: by name; values are those of JSON.
        id: by which the tool's answer names it; "" where it has none.
    """

    name: str
    arguments: dict[str, Any]
    id: str = ""


class Message(NamedTuple):
    """One message.

    Attributes:
        role: who says it.
        text: without blanks around it.
        reasoning: of the assistant, beside the text; without blanks around it.
        calls: of tools, by the assistant.
        name, call_id: of a tool's answer, the tool and the call.
    """

    role: str
    text: str
    reasoning: str = ""
    calls: tuple[Call, ...] = ()
    name: str = ""
    call_id: str = ""


class Conversation(list[Message]):
    """Messages, and the tools that the assistant may call; a bare list of messages is one without tools.

    Attributes:
        tools: as `apply_chat_template` takes them.
    """

    def __init__(self, messages: Iterable[Message] = (), tools: Sequence[Any] = ()) -> None:
        super().__init__(messages)
        self.tools = list(tools)

    @classmethod
    def of(cls, messages: Sequence[Message], end: int | None = None) -> "Conversation":
        """The first messages, with the same tools."""
        return cls(messages[:end], messages.tools if isinstance(messages, Conversation) else ())


def conversation_text(value: Any, place: str, tools: Any = None) -> str:
    """A conversation in the form above; "" if the assistant says nothing, because nothing is learned from it then.

    Args:
        value: a list of messages, each with ``role`` and ``content`` (or ``from`` and ``value``); None is an empty one.
            A content is a text, or a list of parts that are texts or thoughts.  An assistant's message may have
            reasoning (``reasoning_content``, ``reasoning``, ``thinking``) and ``tool_calls``.
        place: file and row, for error messages.
        tools: a list of objects, or JSON that is one.

    Raises:
        InputError: anything else, an unknown role, something beside the text that would be lost (a name, a weight, a
            picture), or text that UTF-8 cannot hold.
    """
    if value is None:
        return ""
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise _wrong(place, f"a {type(value).__name__}", "a list of messages")
    messages = [_message(message, f"message {number} of {place}") for number, message in enumerate(value, 1)]
    if not any(m.role == ASSISTANT and (m.text or m.reasoning or m.calls) for m in messages):
        return ""
    found: Any = [_short(message) for message in messages]
    if listed := _tools(tools, place):
        found = {"tools": listed, "messages": found}
    text = json.dumps(found, ensure_ascii=False, separators=(",", ":"))
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise _wrong(place, "half a surrogate pair in a message, a call or a tool", "text in UTF-8") from error
    return text


def messages_of(text: str) -> Conversation:
    """The messages in what `conversation_text` made."""
    found = json.loads(text)
    tools = found["tools"] if isinstance(found, dict) else ()
    messages = []
    for role, content, *more in found["messages"] if isinstance(found, dict) else found:
        beside = dict(more[0]) if more else {}
        if "calls" in beside:
            beside["calls"] = tuple(Call(*call) for call in beside["calls"])
        messages.append(Message(role, content, **beside))
    return Conversation(messages, tools)


def as_row(message: Message, as_json: bool) -> dict[str, Any]:
    """A message as templates take it.

    Args:
        as_json: a call's arguments as JSON, not as an object.
    """
    given: dict[str, Any] = {"role": message.role, "content": message.text}
    if message.reasoning:  # by whichever name a template knows it
        given |= {"reasoning_content": message.reasoning, "thinking": message.reasoning}
    if message.calls:
        given["tool_calls"] = []
        for call in message.calls:
            arguments = json.dumps(call.arguments, ensure_ascii=False) if as_json else call.arguments
            made = {"type": "function", "function": {"name": call.name, "arguments": arguments}}
            given["tool_calls"].append(made | ({"id": call.id} if call.id else {}))
    named = {"name": message.name, "tool_call_id": message.call_id}
    return given | {key: value for key, value in named.items() if value}


def _short(message: Message) -> list[Any]:
    beside = {key: value for key, value in message._asdict().items() if value and key not in ("role", "text")}
    return [message.role, message.text, *([beside] if beside else [])]


def _message(message: Any, place: str) -> Message:
    if not isinstance(message, dict):
        raise _wrong(place, f"a {type(message).__name__}", "an object with role and content")
    who, what = ("role", "content") if "role" in message else ("from", "value")
    if who not in message or (what not in message and not message.get("tool_calls")):
        raise _wrong(place, f"keys {', '.join(map(str, message)) or 'none'}", "role and content, or from and value")
    role = _ROLE_OF.get(str(message[who]).lower())
    if role is None:
        raise _wrong(place, f"role {message[who]!r}", f"one of {', '.join(_ROLE_OF)}")
    text, thought = _text(message.get(what), place)
    thoughts, calls, name, call_id = [thought] if thought else [], [], "", ""
    for key, value in message.items():
        if key in (who, what) or key in NEUTRAL or value is None or value in ("", [], {}):
            continue
        if role == ASSISTANT and key in _REASONING and isinstance(value, str):
            thoughts.append(value.strip())
        elif role == ASSISTANT and key == "tool_calls" and isinstance(value, list):
            calls = [_call(call, place) for call in value]
        elif role == ASSISTANT and key == "function_call":
            calls = calls or [_call(value, place)]
        elif role == TOOL and key in ("name", "tool_name") and isinstance(value, str):
            name = value
        elif role == TOOL and key == "tool_call_id" and isinstance(value, str):
            call_id = value
        elif (key, value) not in (("weight", 1), ("name", message[who])):
            raise _wrong(
                place,
                f"{key}={shortened(repr(value))}",
                f"{what}, reasoning_content and tool_calls alone: what else a message has is not read",
            )
    if len({*filter(None, thoughts)}) > 1:
        raise _wrong(place, "two different reasonings", f"one of {', '.join(_REASONING)}, or a part of {what}")
    return Message(role, text, next(filter(None, thoughts), ""), tuple(calls), name, call_id)


def _text(content: Any, place: str) -> tuple[str, str]:
    """A content's text, and the thoughts among its parts, both without blanks around them."""
    if content is None:
        return "", ""
    if isinstance(content, str):
        return content.strip(), ""
    texts, thoughts = [], []
    for part in content if isinstance(content, list) else [content]:
        kind = part.get("type", "object") if isinstance(part, dict) else type(part).__name__
        if isinstance(part, dict) and isinstance(part.get("text"), str):
            texts.append(part["text"])
        elif kind in _REASONING and isinstance(part.get(kind), str):
            thoughts.append(part[kind])
        else:
            raise _wrong(place, f"content of type {kind}", "a text, or parts that are texts")
    return "".join(texts).strip(), "".join(thoughts).strip()


def _call(value: Any, place: str) -> Call:
    about = value.get("function", value) if isinstance(value, Mapping) else value
    arguments = about.get("arguments") if isinstance(about, Mapping) else None
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments or "{}")
        except (ValueError, RecursionError):
            arguments = None
    elif arguments is None and isinstance(about, Mapping) and "arguments" in about:
        arguments = {}
    name = about.get("name") if isinstance(about, Mapping) else None
    if not isinstance(name, str) or not name or not isinstance(arguments, dict) or _depth(arguments) > _MOST_DEPTH:
        raise _wrong(
            place,
            f"a call {shortened(repr(value))}",
            "a name and arguments: an object of JSON (or a text that is one), not more than "
            f"{_MOST_DEPTH} lists and objects deep",
        )
    number = value.get("id")
    return Call(name, arguments, number if isinstance(number, str) else "")


def _tools(value: Any, place: str) -> list[Any]:
    """The tools of a row; none is []."""
    found = value
    if isinstance(value, str):
        try:
            found = json.loads(value or "[]")
        except (ValueError, RecursionError):
            found = value
    if found is None:
        return []
    if not isinstance(found, list) or not all(isinstance(t, Mapping) for t in found) or _depth(found) > _MOST_DEPTH:
        raise InputError(
            f"{place}: tools {shortened(repr(value))}",
            f"a list of objects, or JSON that is one, not more than {_MOST_DEPTH} lists and objects deep",
            "correct or leave out the row, or set tools_key to another column",
        )
    return found


def _depth(value: Any) -> int:
    depth, level = 0, [value]
    while level and depth <= _MOST_DEPTH:
        inner = [list(v.values()) if isinstance(v, Mapping) else v for v in level if isinstance(v, (Mapping, list))]
        depth, level = depth + bool(inner), [v for values in inner for v in values]
    return depth


def _wrong(place: str, found: str, expected: str) -> InputError:
    return InputError(
        f"{place}: {found}", expected, "correct or leave out the row, or set messages_key to another column"
    )

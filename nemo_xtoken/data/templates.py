"""A conversation rendered by one tokenizer's chat template, as token ids, and where in them the assistant speaks.

The template is rendered twice.  Once with a mark in place of every message, which separates its own text (with the
special tokens) from that of the messages (where ``</s>`` is four characters, as in any text).  Once with the messages
themselves, to check that nothing else changes: with a template that rewrites a message, text would be scored that is
not in the data.

A generating model is given the tokens up to the assistant's words and continues; so the text in front of them is
encoded alone and in the whole, and the assistant's turn begins where the two differ.  It ends with the special token
that ends the turn.
"""

import datetime
import functools
import json
import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, NoReturn

import numpy as np

from nemo_xtoken.data.chat import ASSISTANT, Message
from nemo_xtoken.errors import InputError
from nemo_xtoken.files import digest_of
from nemo_xtoken.vocab import Vocabulary

__all__ = ["ChatTemplate", "Rendered"]

VERSION = 1  # raise it when the same conversation gives other ids or turns: caches are keyed by it
_OPEN, _CLOSE = "\ue000", "\ue001"  # private use: no template contains them
_MARK = re.compile(f"{_OPEN}(\\d+){_CLOSE}")
#: The date for templates that write one: rendering must not depend on the day.  Llama-3's own default.
_DATE = datetime.datetime(2024, 7, 26)


class Rendered(NamedTuple):
    """One conversation for one tokenizer.

    Attributes:
        ids: int32 ``[n]``.
        turns: message number -> token range of an assistant's turn: its words and what ends it.
    """

    ids: np.ndarray
    turns: dict[int, tuple[int, int]]


class _Run(NamedTuple):
    """Text between two special tokens.

    Attributes:
        text: all of it.
        words: (message number, start, end) in ``text`` of what the assistant says.
        special: id of the special token after it; None at the end of the conversation.
    """

    text: str
    words: tuple[tuple[int, int, int], ...]
    special: int | None


class ChatTemplate:
    """The chat template of a tokenizer.  Can be pickled.

    Args:
        vocabulary: the tokenizer.
        source: Jinja source, instead of the tokenizer's own.

    Raises:
        InputError: the tokenizer has no chat template, or it is not valid Jinja.
    """

    def __init__(self, vocabulary: Vocabulary, source: str | None = None) -> None:
        found = vocabulary.chat_template if source is None else source
        if found is None:
            raise InputError(
                f"the tokenizer {vocabulary.name} has no chat template",
                "one for each side of a conversation",
                "put chat_template.jinja beside its tokenizer.json (that of the model's instruct version, say); "
                "for the student, set chat_template to such a file instead",
            )
        self.vocabulary, self.source = vocabulary, found
        self._specials = {text: i for i, text in sorted(vocabulary.special_texts.items(), reverse=True)}
        self._tools: tuple[Any, re.Pattern[str]] | None = None
        _ = self._template

    @property
    def digest(self) -> str:
        """Of everything beside the tokenizer that decides ids and turns."""
        return digest_of(f"chat {VERSION}", self.source, repr(sorted(self.vocabulary.special_texts.items())))

    def __call__(self, conversations: Sequence[Sequence[Message]]) -> list[Rendered]:
        """The conversations as ids; their texts are encoded in one call of the tokenizer.

        Raises:
            InputError: the template refuses a conversation or changes its messages.
        """
        runs = [self._runs(messages) for messages in conversations]
        texts = dict.fromkeys(text for of in runs for run in of for text in _prefixes(run))
        ids = dict(zip(texts, self.vocabulary.encode_batch(list(texts)), strict=True))
        ids[""] = np.empty(0, np.int32)  # no dummy space for no text
        return [_assemble(of, ids) for of in runs]

    def render(self, messages: Sequence[Message]) -> str:
        """The conversation as text.

        Raises:
            InputError: the template refuses it.
        """
        texts = self.vocabulary.special_texts
        v = self.vocabulary
        roles = ("bos", v.bos_id), ("eos", v.eos_id), ("pad", v.pad_id), ("unk", v.id_of_role.get("unk"))
        named = {f"{role}_token": texts[i] for role, i in roles if i in texts}
        try:
            rendered: str = self._template[0].render(
                messages=[{"role": message.role, "content": message.text} for message in messages],
                tools=None,
                documents=None,
                add_generation_prompt=False,
                **named,
            )
        except Exception as error:  # templates raise many types
            raise InputError(
                f"the chat template of {self.vocabulary.name} refuses the conversation {_shown(messages)}: {error}",
                "conversations that every side's template takes",
                "correct or leave out the conversation, or give another template",
            ) from error
        return rendered

    def _runs(self, messages: Sequence[Message]) -> list[_Run]:
        rendered = self.render(messages)
        marked = self.render([Message(m.role, m.text and f"{_OPEN}{i}{_CLOSE}") for i, m in enumerate(messages)])
        parts = _MARK.split(marked)  # the template's text and numbers of messages by turns
        whole = "".join(messages[int(part)].text if i % 2 else part for i, part in enumerate(parts))
        if whole != rendered:
            raise InputError(
                f"the chat template of {self.vocabulary.name} changes the messages of {_shown(messages)}",
                "a template that writes every message as it is, or leaves it out",
                "take out of the messages what the template acts upon (such as <think>..</think>), "
                "or give another template",
            )
        runs, text, words = [], "", []
        for i, part in enumerate(parts):
            if i % 2:
                message = messages[int(part)]
                if message.role == ASSISTANT and message.text:
                    words.append((int(part), len(text), len(text) + len(message.text)))
                text += message.text
                continue
            for j, piece in enumerate(self._template[1].split(part)):
                if j % 2:
                    runs.append(_Run(text, tuple(words), self._specials[piece]))
                    text, words = "", []
                else:
                    text += piece
        return [*runs, _Run(text, tuple(words), None)]

    @property
    def _template(self) -> tuple[Any, re.Pattern[str]]:
        """The compiled template, and what finds special tokens in its text; made once a process."""
        if self._tools is None:
            import jinja2

            try:
                template = _environment().from_string(self.source)
            except jinja2.TemplateError as error:
                raise InputError(
                    f"the chat template of {self.vocabulary.name} is not a Jinja template: {error}",
                    "a chat template as transformers takes it",
                    "correct it",
                ) from error
            longest_first = sorted(self._specials, key=len, reverse=True)
            # Without special tokens: a pattern that never matches.
            pattern = re.compile(f"({'|'.join(map(re.escape, longest_first)) or '(?!)'})")
            self._tools = template, pattern
        return self._tools

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_tools": None}


def _prefixes(run: _Run) -> Iterable[str]:
    """What of a run is encoded: all of it, and what stands before and after the assistant's words."""
    yield run.text
    for _, start, end in run.words:
        yield from (run.text[:start], run.text[:end])


def _assemble(runs: Sequence[_Run], ids_of: dict[str, np.ndarray]) -> Rendered:
    parts: list[np.ndarray] = []
    turns: dict[int, tuple[int, int]] = {}
    at = 0
    for run in runs:
        ids = ids_of[run.text]
        for number, (message, start, end) in enumerate(run.words):
            first = _common(ids_of[run.text[:start]], ids)
            if number == len(run.words) - 1 and run.special is not None:
                last = len(ids) + 1  # with what ends the turn
            else:
                last = _common(ids_of[run.text[:end]], ids)
            if last > first and message not in turns:
                turns[message] = at + first, at + last
        parts.append(ids)
        if run.special is not None:
            parts.append(np.array([run.special], np.int32))
        at += len(ids) + (run.special is not None)
    return Rendered(np.concatenate(parts).astype(np.int32, copy=False), turns)


def _common(a: np.ndarray, b: np.ndarray) -> int:
    """Length of the common start."""
    least = min(len(a), len(b))
    differ = a[:least] != b[:least]
    return int(differ.argmax()) if differ.any() else least


def _shown(messages: Sequence[Message]) -> str:
    text = " ".join(f"{message.role}: {message.text}" for message in messages)
    return repr(text if len(text) <= 120 else text[:117] + "...")


@functools.cache
def _environment() -> Any:
    """As transformers renders templates: sandboxed, blocks trimmed."""
    import jinja2
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """``{% generation %}`` marks what the assistant generates; here that is known without it."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Any) -> Any:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def refuse(message: str) -> NoReturn:
        raise jinja2.TemplateError(message)

    def to_json(value: Any, indent: int | None = None, ensure_ascii: bool = False, **options: Any) -> str:
        return json.dumps(value, indent=indent, ensure_ascii=ensure_ascii, **options)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = to_json
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = _DATE.strftime
    return environment

"""A conversation rendered by one tokenizer's chat template, as token ids, and where in them the assistant speaks.

The template is rendered twice.  Once with a mark in place of every message, which separates its own text (with the
special tokens) from that of the messages (where ``</s>`` is four characters, as in any text).  Once with the messages
themselves, to check that nothing else changes: with a template that rewrites a message, text would be scored that is
not in the data.

A generating model is given the tokens up to the assistant's words and continues; so the text in front of them is
encoded alone and in the whole, and the assistant's turn begins where the two differ.  It ends with what the template
writes to end it: the text that follows the words both in the whole conversation and in one that ends with them, up to
the last special token in it where it has any.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from nemo_xtoken.data.chat import ASSISTANT, Message
from nemo_xtoken.data.jinja_environment import template_environment
from nemo_xtoken.errors import InputError, shortened
from nemo_xtoken.files import digest_of
from nemo_xtoken.vocab import Vocabulary

__all__ = ["ChatTemplate", "Rendered"]

VERSION = 2  # raise it when the same conversation gives other ids or turns: caches are keyed by it
_OPEN, _CLOSE = "\ue000", "\ue001"  # private use: no template contains them
_MARK = re.compile(f"{_OPEN}(\\d+){_CLOSE}")
#: What tokenizers take for blanks beside a special token: Unicode's White_Space.
_BLANKS = "\t\n\x0b\x0c\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(map(chr, range(0x2000, 0x200B)))


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
        special: id of the special token after it; None at the end of the conversation.
    """

    text: str
    special: int | None


class _Turn(NamedTuple):
    """What an assistant's message becomes.

    Attributes:
        message: its number.
        run, start: where its words begin.
        last: the run in which the turn ends.
        end: there, the end in its text; None: with its special token.
    """

    message: int
    run: int
    start: int
    last: int
    end: int | None


class _Script(NamedTuple):
    """A conversation, ready to be encoded."""

    runs: list[_Run]
    turns: list[_Turn]

    def prefixes(self) -> Iterable[str]:
        """The texts to encode: the runs, and what of a run stands before a turn begins or ends."""
        yield from (run.text for run in self.runs)
        for turn in self.turns:
            yield self.runs[turn.run].text[: turn.start]
            if turn.end is not None:
                yield self.runs[turn.last].text[: turn.end]


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
        self._endings: dict[tuple[tuple[str, bool], ...], str | None] = {}  # by roles, which decide it
        self._tools: tuple[Any, re.Pattern[str]] | None = None
        _ = self._template

    @property
    def digest(self) -> str:
        """Of everything beside the tokenizer that decides ids and turns."""
        return digest_of(
            f"chat {VERSION}",
            self.source,
            repr(sorted(self.vocabulary.special_texts.items())),
            repr(sorted(self.vocabulary.special_strips.items())),
        )

    def __call__(self, conversations: Sequence[Sequence[Message]]) -> list[Rendered]:
        """The conversations as ids; their texts are encoded in one call of the tokenizer.

        Raises:
            InputError: the template refuses a conversation or changes its messages.
        """
        scripts = [self._script(messages) for messages in conversations]
        texts = dict.fromkeys(text for script in scripts for text in script.prefixes())
        ids = dict(zip(texts, self.vocabulary.encode_batch(list(texts)), strict=True))
        ids[""] = np.empty(0, np.int32)  # no dummy space for no text
        return [_assemble(script, ids) for script in scripts]

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

    def _script(self, messages: Sequence[Message]) -> _Script:
        rendered = self.render(messages)
        parts = self._parts(messages)
        whole = "".join(messages[int(part)].text if i % 2 else part for i, part in enumerate(parts))
        if whole != rendered:
            raise InputError(
                f"the chat template of {self.vocabulary.name} changes the messages of {_shown(messages)}",
                "a template that writes every message as it is, or leaves it out",
                "take out of the messages what the template acts upon (such as <think>..</think>), "
                "or give another template",
            )
        return self._put_together(messages, parts)

    def _put_together(self, messages: Sequence[Message], parts: Sequence[str]) -> _Script:
        """The runs and the turns of a conversation.

        Args:
            parts: as `_parts` gives them.
        """
        runs: list[_Run] = []
        turns: list[_Turn] = []
        text, stripping = "", False  # blanks behind some special tokens belong to these
        for i, part in enumerate(parts):
            if not i % 2:
                for j, piece in enumerate(self._template[1].split(part)):
                    if not j % 2:
                        text += piece.lstrip(_BLANKS) if stripping and not text else piece
                        continue
                    special = self._specials[piece]
                    left, stripping = self.vocabulary.special_strips.get(special, (False, False))
                    runs.append(_Run(text.rstrip(_BLANKS) if left else text, special))
                    text = ""
                continue
            message, run, start = int(part), len(runs), len(text)
            words = messages[message].text
            text += words.lstrip(_BLANKS) if stripping and not text else words
            if messages[message].role == ASSISTANT and words:
                specials, blanks = self._ending(messages, message, parts[i + 1])
                end = None if specials else len(text) + blanks
                turns.append(_Turn(message, run, start, run + max(specials - 1, 0), end))
        return _Script([*runs, _Run(text, None)], turns)

    def _parts(self, messages: Sequence[Message]) -> list[str]:
        """The template's text and the numbers of messages, by turns."""
        marked = [Message(m.role, m.text and f"{_OPEN}{i}{_CLOSE}") for i, m in enumerate(messages)]
        return _MARK.split(self.render(marked))

    def _ending(self, messages: Sequence[Message], number: int, behind: str) -> tuple[int, int]:
        """What of the template's text behind an assistant's words belongs to the turn.

        It is what stands there as well where the conversation ends with this message.  A template may end the last
        turn by another special token than the others; then it is the one in the same place.

        Args:
            behind: the template's text up to the next message.

        Returns:
            how many special tokens; where there is none, how many characters.
        """
        key = tuple((m.role, bool(m.text)) for m in messages[: number + 1])
        if key not in self._endings:
            if len(self._endings) >= 1000:
                self._endings.clear()
            self._endings[key] = self._last_words_end(messages[: number + 1])
        last = self._endings[key]
        pattern = self._template[1]
        if last is None:  # such a conversation does not end here
            return int(pattern.match(behind) is not None), 0
        length = 0
        while length < min(len(last), len(behind)) and last[length] == behind[length]:
            length += 1
        for match in (*pattern.finditer(last), *pattern.finditer(behind)):
            if match.start() < length < match.end():  # the beginnings of two special tokens may be alike
                length = match.start()
        tokens = [match for match in pattern.finditer(behind) if match.end() <= length]
        if not tokens and pattern.match(last, length) and pattern.match(behind, length):
            return 1, 0
        return len(tokens), 0 if tokens else length

    def _last_words_end(self, messages: Sequence[Message]) -> str | None:
        """What the template writes behind the last message; None where it refuses to end there or leaves it out."""
        try:
            parts = self._parts(messages)
        except InputError:
            return None
        return parts[-1] if len(parts) > 1 and int(parts[-2]) == len(messages) - 1 else None

    @property
    def _template(self) -> tuple[Any, re.Pattern[str]]:
        """The compiled template, and what finds special tokens in its text; made once a process."""
        if self._tools is None:
            import jinja2

            try:
                template = template_environment().from_string(self.source)
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
        return self.__dict__ | {"_tools": None, "_endings": {}}


def _assemble(script: _Script, ids_of: Mapping[str, np.ndarray]) -> Rendered:
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
    for turn in script.turns:
        text, last = script.runs[turn.run].text, script.runs[turn.last].text
        first = begins[turn.run] + _common(ids_of[text[: turn.start]], ids_of[text])
        if turn.end is None:
            end = begins[turn.last] + len(ids_of[last]) + 1
        else:
            end = begins[turn.last] + _common(ids_of[last[: turn.end]], ids_of[last])
        if end > first and turn.message not in turns:
            turns[turn.message] = first, end
    return Rendered(np.concatenate(parts).astype(np.int32, copy=False), turns)


def _common(a: np.ndarray, b: np.ndarray) -> int:
    """Length of the common start."""
    least = min(len(a), len(b))
    differ = a[:least] != b[:least]
    return int(differ.argmax()) if differ.any() else least


def _shown(messages: Sequence[Message]) -> str:
    text = " ".join(f"{message.role}: {message.text}" for message in messages)
    return repr(shortened(text, 120))

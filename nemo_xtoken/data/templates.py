"""A conversation rendered by one tokenizer's chat template, as token ids, and where in them the assistant speaks.

The template is rendered twice.  Once with a mark in place of every text (`nemo_xtoken.data.conversation.parts`), which
separates its own words (with the special tokens) from those of the messages (where ``</s>`` is four characters, as in
any text).  Once with the messages themselves, to check that nothing else changes: with a template that rewrites a
message, text would be scored that is not in the data.  A mark that is not there is a text that the template leaves out.

A generating model is given the tokens up to the assistant's words and continues; so the text in front of them is
encoded alone and in the whole, and the assistant's turn begins where the two differ.  Where the turn begins with
reasoning or with a call, what the template writes to open these is generated as well: all that does not stand in what
the template writes to have an answer generated.  The turn ends with what the template writes to end it: the text that
follows the words both in the whole conversation and in one that ends with them, up to the last special token in it
where it has any.
"""

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from nemo_xtoken.data.conversation.chat import ASSISTANT, TOOL, Conversation, Message, as_row
from nemo_xtoken.data.conversation.parts import ANSWERS, CALLS, KINDS, MARK, Part, common_length, fill, is_plain, mark
from nemo_xtoken.data.conversation.script import Rendered, Script, ScriptWriter, Stretch, Turn, assemble
from nemo_xtoken.data.jinja_environment import MOST_CHARACTERS, limited_time, template_environment
from nemo_xtoken.errors import InputError, shortened
from nemo_xtoken.files import digest_of
from nemo_xtoken.vocab import Vocabulary

__all__ = ["ChatTemplate", "NotRendered", "Rendered"]

VERSION = 5  # raise it when the same conversation gives other ids or turns: caches are keyed by it
_KNOWN = 1000  # ends and beginnings of turns that are remembered


class NotRendered(InputError):
    """A conversation that a template cannot render as it is.

    Attributes:
        reason: in a few words, without the conversation's.
    """

    def __init__(self, reason: str, found: str, expected: str, fix: str) -> None:
        super().__init__(found, expected, fix)
        self.reason = reason


class ChatTemplate:
    """The chat template of a tokenizer.  Can be pickled.

    Args:
        vocabulary: the tokenizer.
        source: Jinja source, instead of the tokenizer's own.
        learn: what of the assistant's messages is learned: some of `KINDS`.

    Raises:
        InputError: the tokenizer has no chat template, or it is not valid Jinja.
    """

    def __init__(self, vocabulary: Vocabulary, source: str | None = None, learn: Sequence[str] = KINDS) -> None:
        found = vocabulary.chat_template if source is None else source
        if found is None:
            raise InputError(
                f"the tokenizer {vocabulary.name} has no chat template",
                "one for each side of a conversation",
                "put chat_template.jinja beside its tokenizer.json (that of the model's instruct version, say); "
                "for the student, set chat_template to such a file instead",
            )
        self.vocabulary, self.source, self.learn = vocabulary, found, frozenset(learn)
        self._specials = {text: i for i, text in sorted(vocabulary.special_texts.items(), reverse=True)}
        self._known: dict[tuple[str, bool], list[str] | None] = {}  # beginnings of marked conversations, rendered
        self._tools: tuple[Any, re.Pattern[str], bool] | None = None
        _ = self._template

    @property
    def digest(self) -> str:
        """Of everything beside the tokenizer that decides ids and turns."""
        return digest_of(
            f"chat {VERSION}",
            self.source,
            repr(sorted(self.vocabulary.special_texts.items())),
            repr(sorted(self.vocabulary.special_strips.items())),
            *([] if self.learn == {*KINDS} else sorted(self.learn)),
        )

    def __call__(self, conversations: Sequence[Sequence[Message]]) -> list[Rendered]:
        """The conversations as ids; their texts are encoded in one call of the tokenizer.

        Raises:
            InputError: the template refuses a conversation or changes its messages.
        """
        out = []
        for rendered in self.attempt(conversations):
            if isinstance(rendered, InputError):
                raise rendered
            out.append(rendered)
        return out

    def attempt(self, conversations: Sequence[Sequence[Message]]) -> list[Rendered | InputError]:
        """The conversations as ids, and for one that the template refuses or changes the error."""
        scripts = [self._attempted(messages) for messages in conversations]
        good = [script for script in scripts if not isinstance(script, InputError)]
        texts = dict.fromkeys(text for script in good for text in script.prefixes())
        ids = dict(zip(texts, self.vocabulary.encode_batch(list(texts)), strict=True))
        ids[""] = np.empty(0, np.int32)  # no dummy space for no text
        out: list[Rendered | InputError] = []
        for script in scripts:
            if isinstance(script, InputError):
                out.append(script)
                continue
            try:
                out.append(assemble(self.vocabulary, script, ids, self.learn))
            except InputError as error:
                out.append(NotRendered("its tokenizer changes the text", error.found, error.expected, error.fix))
        return out

    def render(self, messages: Sequence[Message], **options: Any) -> str:
        """The conversation as text.

        A call's arguments are an object, as transformers has them; for a template that raises then, JSON.

        Args:
            options: further variables of the template.

        Raises:
            InputError: the template refuses it.
        """
        try:
            return self._rendered(messages, False, options)
        except Exception as error:  # templates raise many types
            if any(message.calls for message in messages):
                try:
                    return self._rendered(messages, True, options)
                except Exception as other:
                    error = other if isinstance(error, TypeError) else error
            raise NotRendered(
                shortened(str(error), 100) or type(error).__name__,
                f"the chat template of {self.vocabulary.name} refuses the conversation {_shown(messages)}: {error}",
                "conversations that every side's template takes",
                "correct or leave out the conversation, or give another template",
            ) from error

    def _rendered(self, messages: Sequence[Message], as_json: bool, options: dict[str, Any]) -> str:
        texts = self.vocabulary.special_texts
        v = self.vocabulary
        roles = ("bos", v.bos_id), ("eos", v.eos_id), ("pad", v.pad_id), ("unk", v.id_of_role.get("unk"))
        named = {f"{role}_token": texts[i] for role, i in roles if i in texts}
        given = [as_row(message, as_json) for message in messages]
        tools = Conversation.of(messages).tools
        most = MOST_CHARACTERS + sum(len(message.text) + len(message.reasoning) for message in messages)
        variables = {"messages": given, "tools": tools or None, "documents": None, "add_generation_prompt": False}
        parts, size = [], 0
        with limited_time():
            for part in self._template[0].generate(**variables | named | options):
                parts.append(part)
                size += len(part)
                if size > most:
                    raise ValueError(f"it writes more than {MOST_CHARACTERS:,} characters of its own")
        return "".join(parts)

    def _attempted(self, messages: Sequence[Message]) -> Script | InputError:
        try:
            return self._script(messages)
        except InputError as error:
            return error

    def _script(self, messages: Sequence[Message]) -> Script:
        rendered = self.render(messages)
        marked, parts = mark(messages)
        pieces = MARK.split(self.render(marked))
        texts = fill(pieces, parts, rendered)
        if texts is None:
            raise NotRendered(
                "it changes what a message says",
                f"the chat template of {self.vocabulary.name} changes the messages of {_shown(messages)}",
                "a template that writes every message as it is, or leaves it out",
                "take out of the messages what the template acts upon (such as <think>..</think>), "
                "or give another template",
            )
        numbers = [int(piece) for piece in pieces[1::2]]
        return self._put_together(marked, parts, numbers, texts, self._left_out(messages, parts, {*numbers}))

    def _left_out(self, messages: Sequence[Message], parts: Sequence[Part], written: set[int]) -> dict[str, int]:
        """What is not in the text, and of how many messages.

        Raises:
            NotRendered: a call or a tool's answer, without which the rest makes no sense.
        """
        gone: Counter[str] = Counter()
        for message, kind in {(part.message, part.kind) for n, part in enumerate(parts) if n not in written}:
            role = messages[message].role
            if kind == CALLS or role == TOOL:
                what = "calls of tools" if kind == CALLS else "what a tool answers"
                raise NotRendered(
                    f"it leaves out {what}",
                    f"the chat template of {self.vocabulary.name} leaves out {what} in {_shown(messages)}",
                    "a template that knows tools, for conversations that use them",
                    "give another template (that of a model of the family that calls tools, say)",
                )
            gone[kind or f"messages of the {role}"] += 1
        if Conversation.of(messages).tools and not self._template[2]:
            gone["the list of tools"] += 1
        return dict(sorted(gone.items()))

    def _put_together(
        self,
        marked: Sequence[Message],
        parts: Sequence[Part],
        numbers: Sequence[int],
        texts: Sequence[str],
        left_out: dict[str, int],
    ) -> Script:
        """The runs and the turns of a conversation.

        Args:
            marked: with marks in place of parts.
            numbers: of the marks, in the order in which the template writes them.
            texts: see `fill`.
        """
        writer = ScriptWriter(self._template[1], self._specials, self.vocabulary)
        turns: list[Turn] = []
        spoken = self._spoken(marked, parts, numbers)
        begun, stretches, kinds = (0, 0, 0), list[Stretch](), frozenset[str]()
        for i, number in enumerate(numbers):
            part, turn = parts[number], spoken[i]
            message, inside = part.message, turn is not None
            before = texts[2 * i]
            if turn is not None and turn[0]:  # the turn's first part
                opening = self._opening(marked, part, numbers[:i], before)
                writer.write(before[:opening])
                begun, stretches, kinds = (*writer.place, writer.after), [], frozenset({part.kind})
                before = before[opening:]
            place, kinds = writer.place, kinds | {part.kind}
            writer.write(before)
            if inside and writer.place != place:
                stretches.append(Stretch(*place, *writer.place, -1, kinds))
            place = writer.place
            if turns and turns[-1].last == place[0] and turns[-1].before is None and turns[-1].message != message:
                turns[-1] = turns[-1]._replace(before=place[1])
            writer.write_words(texts[2 * i + 1])
            kinds = frozenset({part.kind})
            if inside:
                stretches.append(Stretch(*place, *writer.place, number, kinds))
            if turn is not None and turn[1]:  # its last
                specials, blanks = self._ending(marked, parts, message, texts[2 * i + 2])
                run, length = writer.place
                end = None if specials else length + blanks
                plain = is_plain(marked[message])
                last = run + max(specials - 1, 0)
                turns.append(Turn(message, *begun, last, end, tuple(stretches), plain))
        writer.write(texts[-1])
        return Script(writer.finished(), turns, left_out)

    def _spoken(
        self, marked: Sequence[Message], parts: Sequence[Part], numbers: Sequence[int]
    ) -> list[tuple[bool, bool] | None]:
        """Of each mark that is in a turn of the assistant's, whether it is the first there, and the last.

        A tool's name may stand in front of its answer again: that is not the assistant's.
        """
        times = Counter(numbers)
        seen: Counter[int] = Counter()
        within: dict[int, list[int]] = {}
        for i, number in enumerate(numbers):
            message = parts[number].message
            if marked[message].role != ASSISTANT:
                continue
            seen[number] += 1
            if times[number] > 1:
                alone = self._pieces(Conversation.of(marked, message + 1), False) or []
                if seen[number] > alone[1::2].count(str(number)):
                    continue
            within.setdefault(message, []).append(i)
        out: list[tuple[bool, bool] | None] = [None] * len(numbers)
        for places in within.values():
            for i in places:
                out[i] = i == places[0], i == places[-1]
        return out

    def _opening(self, marked: Sequence[Message], first: Part, before: Sequence[int], text: str) -> int:
        """How many characters of the template's text in front of a turn's first part are not the assistant's.

        Args:
            before: the marks in front of it.
            text: between the last of these and the part.
        """
        if first.kind == ANSWERS:
            return len(text)
        prompt = self._pieces(Conversation.of(marked, first.message), True, first.kind != CALLS)
        if prompt is None or prompt[-2:-1] != [str(number) for number in before[-1:]]:
            return len(text)
        length = common_length(prompt[-1], text)
        for match in (*self._template[1].finditer(prompt[-1]), *self._template[1].finditer(text)):
            if match.start() < length < match.end():  # the beginnings of two special tokens may be alike
                length = match.start()
        if length < len(prompt[-1]):  # two tags that begin alike
            least = max((match.end() for match in self._template[1].finditer(text, 0, length)), default=0)
            while least < length < len(text) and not (text[length - 1].isspace() or text[length].isspace()):
                length -= 1
        return length

    def _ending(self, marked: Sequence[Message], parts: Sequence[Part], number: int, behind: str) -> tuple[int, int]:
        """What of the template's text behind an assistant's words belongs to the turn.

        It is what stands there as well where the conversation ends with this message.  A template may end the last
        turn by another special token than the others; then it is the one in the same place.

        Args:
            behind: the template's text up to the next message.

        Returns:
            how many special tokens; where there is none, how many characters.
        """
        alone = self._pieces(Conversation.of(marked, number + 1), False)
        pattern = self._template[1]
        if not alone or len(alone) < 2 or parts[int(alone[-2])].message != number:  # no conversation ends here
            return int(pattern.match(behind) is not None), 0
        last = alone[-1]
        length = common_length(last, behind)
        for match in (*pattern.finditer(last), *pattern.finditer(behind)):
            if match.start() < length < match.end():
                length = match.start()
        tokens = [match for match in pattern.finditer(behind) if match.end() <= length]
        if not tokens and pattern.match(last, length) and pattern.match(behind, length):
            return 1, 0
        return len(tokens), 0 if tokens else length

    def _pieces(self, marked: Conversation, prompt: bool, thinking: bool = True) -> list[str] | None:
        """A marked conversation as the template writes it, split at the marks; None where it refuses to end there.

        Args:
            prompt: with what has an answer generated.
            thinking: one with reasoning.
        """
        key = repr((list(marked), marked.tools, thinking)), prompt
        if key not in self._known:
            if len(self._known) >= _KNOWN:
                self._known.clear()
            options = {"add_generation_prompt": True, "enable_thinking": thinking} if prompt else {}
            try:
                self._known[key] = MARK.split(self.render(marked, **options))
            except InputError:
                self._known[key] = None
        return self._known[key]

    @property
    def _template(self) -> tuple[Any, re.Pattern[str], bool]:
        """The compiled template, what finds special tokens in its text, and whether it knows tools; made once."""
        if self._tools is None:
            import jinja2
            import jinja2.meta

            try:
                environment = template_environment()
                template = environment.from_string(self.source)
                names = jinja2.meta.find_undeclared_variables(environment.parse(self.source))
            except jinja2.TemplateError as error:
                raise InputError(
                    f"the chat template of {self.vocabulary.name} is not a Jinja template: {error}",
                    "a chat template as transformers takes it",
                    "correct it",
                ) from error
            longest_first = sorted(self._specials, key=len, reverse=True)
            # Without special tokens: a pattern that never matches.
            pattern = re.compile(f"({'|'.join(map(re.escape, longest_first)) or '(?!)'})")
            self._tools = template, pattern, "tools" in names
        return self._tools

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_tools": None, "_known": {}}


def _shown(messages: Sequence[Message]) -> str:
    text = " ".join(f"{message.role}: {message.text}" for message in messages)
    return repr(shortened(text, 120))

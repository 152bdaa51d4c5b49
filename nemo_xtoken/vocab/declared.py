"""What a tokenizer's configuration says about its special tokens, and which ids that gives."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field

from nemo_xtoken.errors import InputError
from nemo_xtoken.vocab.canonical import role_of_special

__all__ = ["Declared"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Declared:
    """What a tokenizer's configuration says about its special tokens.

    Attributes:
        texts: "bos", "eos", "unk", "pad" -> the token's text.
        add_bos: whether BOS is put in front of a text; None where it does not say.
        added: id -> (text, special) of tokens beside the model's own.
        strips: id -> whether a token takes the blanks on its left, on its right along.
        chat_template: Jinja source of the chat template; None where there is none.
    """

    texts: Mapping[str, str] = field(default_factory=dict)
    add_bos: bool | None = None
    added: Mapping[int, tuple[str, bool]] = field(default_factory=dict)
    strips: Mapping[int, tuple[bool, bool]] = field(default_factory=dict)
    chat_template: str | None = None

    def role_of(self, text: str) -> str:
        """One token may be declared for several uses: the end of a text counts most, padding least."""
        return next((r for r in ("eos", "bos", "unk", "pad") if self.texts.get(r) == text), role_of_special(text))

    def among(self, ranks: Mapping[bytes, int]) -> dict[str, int]:
        """The declared texts that are tokens of the text, by their bytes."""
        return {text: ranks[data] for text in self.texts.values() if (data := text.encode()) in ranks}

    def id_of(
        self, role: str, name: str, special: Mapping[str, int], ordinary: Mapping[str, int], default: int | None
    ) -> int | None:
        """The id for a role.

        Padding is never read and never learned, so any token will do, and one of the text stays text.  What begins or
        ends a text is no part of any: a token of the text in its place would be found in the middle of texts.

        Args:
            role: "bos", "eos", "pad" or "unk".
            name: of the tokenizer, for error messages.
            special: spelling -> id of the special tokens.
            ordinary: spelling -> id of declared tokens that are tokens of the text.
            default: the id where nothing is declared.

        Raises:
            InputError: BOS or EOS is declared as a token of the text, or as none that the tokenizer has.
        """
        text = self.texts.get(role)
        if text is None or text in special:
            return default if text is None else special[text]
        if role == "pad":
            if text not in ordinary:
                instead = "no padding token" if default is None else f"id {default} for padding"
                logger.warning("%s: pad_token %r is no token of it; it has %s", name, text, instead)
            return ordinary.get(text, default)
        if role == "unk":
            what = "a part of texts, and stays one" if text in ordinary else "no token of it"
            logger.warning("%s: unk_token %r is %s", name, text, what)
            return default
        examples = ", ".join(map(repr, sorted(special, key=special.__getitem__)[:6])) or "none"
        is_what = f"the ordinary token {ordinary[text]}, a part of texts" if text in ordinary else "no token of it"
        raise InputError(
            f"{name}: {role}_token {text!r} is {is_what}",
            f"one of its special tokens: {examples}",
            f"correct {role}_token in its tokenizer_config.json (or special_tokens_map.json), or take it out",
        )

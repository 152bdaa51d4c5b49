"""What a process and its forks have read of a tokenizer, or worked out of two, is not done again for another run."""

import copy
import functools
from typing import Any

import pytest

from nemo_xtoken.projection import prefixes
from nemo_xtoken.vocab import loading
from nemo_xtoken.vocab.declared import Declared
from nemo_xtoken.vocab.vocabulary import Vocabulary

__all__ = ["remember_spellings", "remember_vocabularies"]


def remember_spellings() -> None:
    """From now on the tokens of a vocabulary are spelled with those of another once, which takes seconds."""
    spelled: Any = prefixes._spelled
    if hasattr(spelled, "found"):
        return
    found: dict[Any, Any] = {}

    @functools.wraps(spelled)
    def remembered(own: Vocabulary, other: Vocabulary) -> Any:
        key = tuple((side.digest, tuple(side.token_bytes)) for side in (own, other))
        if key not in found:
            found[key] = spelled(own, other)
        return found[key]

    remembered.found = found  # type: ignore[attr-defined]
    prefixes._spelled = remembered


def remember_vocabularies(patch: pytest.MonkeyPatch) -> None:
    """From now on a ``tokenizer.json`` is read once, wherever copies of it lie: one of 128,000 tokens takes seconds."""
    read = loading.read_tokenizers_json
    found: dict[tuple[str, str], Vocabulary] = {}

    def remembered(text: str, declared: Declared, name: str) -> Vocabulary:
        key = text, repr(declared)
        if key not in found:
            found[key] = read(text, declared, name)
        vocabulary = copy.copy(found[key])
        vocabulary.__dict__["name"] = name
        return vocabulary

    patch.setattr(loading, "read_tokenizers_json", remembered)

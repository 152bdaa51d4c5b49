"""What a process and its forks have worked out once of two tokenizers is not worked out again for another run."""

import functools
from typing import Any

from nemo_xtoken.projection import prefixes
from nemo_xtoken.vocab.vocabulary import Vocabulary

__all__ = ["remember_spellings"]


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

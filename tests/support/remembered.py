"""What a process and its forks have read of a tokenizer, worked out of two, or drawn is not done for another run."""

import copy
import functools
from pathlib import Path
from typing import Any

import pytest

from nemo_xtoken.projection import prefixes
from nemo_xtoken.report import summary
from nemo_xtoken.vocab import loading
from nemo_xtoken.vocab.declared import Declared
from nemo_xtoken.vocab.vocabulary import Vocabulary

__all__ = ["remember_pictures", "remember_spellings", "remember_vocabularies"]


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


def remember_pictures() -> None:
    """From now on the curves of runs are drawn, half a second, where none of these names and lengths were before."""
    draw: Any = summary.draw_curves
    drawn: dict[tuple[tuple[int, frozenset[str]], ...], bytes] = {}

    @functools.wraps(draw)
    def remembered(runs: Any, path: Path) -> None:
        key = tuple(
            (len(records), frozenset(name for record in records for name in record)) for records in runs.values()
        )
        if key in drawn:
            path.write_bytes(drawn[key])
            return
        draw(runs, path)
        drawn[key] = path.read_bytes()

    summary.draw_curves = remembered


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

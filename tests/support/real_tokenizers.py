"""Real tokenizers for tests, where a machine has them; tests that need one are skipped where it does not."""

import functools
import os
from pathlib import Path

import pytest

from nemo_xtoken.vocab import Vocabulary, load_vocabulary

__all__ = ["real"]

ASSETS = Path(os.environ.get("XTOKEN_ASSETS", Path.home() / ".cache" / "xtoken-assets"))


@functools.cache
def real(name: str) -> Vocabulary:
    """The tokenizer in ``$XTOKEN_ASSETS/tokenizers/<name>``, or a skip that says what is missing."""
    folder = ASSETS / "tokenizers" / name
    if not (folder / "tokenizer.json").is_file():
        pytest.skip(f"no tokenizer in {folder} (set XTOKEN_ASSETS to a folder that has tokenizers/{name})")
    return load_vocabulary(folder)

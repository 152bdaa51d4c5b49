"""Real tokenizers for tests, where a machine has them; tests that need one are skipped where it does not."""

import functools
import os
from pathlib import Path

import pytest

from nemo_xtoken.vocab import Vocabulary, load_vocabulary

__all__ = ["read_shared", "real"]

ASSETS = Path(os.environ.get("XTOKEN_ASSETS", Path.home() / ".cache" / "xtoken-assets"))

#: What several files of tests use.
SHARED = ("llama3", "qwen3", "gemma3", "phi4mini", "llama2", "smollm2", "gptoss", "gpt2", "deepseek_v3", "mistral_v1")


@functools.cache
def real(name: str) -> Vocabulary:
    """The tokenizer in ``$XTOKEN_ASSETS/tokenizers/<name>``, or a skip that says what is missing."""
    folder = ASSETS / "tokenizers" / name
    if not (folder / "tokenizer.json").is_file():
        pytest.skip(f"no tokenizer in {folder} (set XTOKEN_ASSETS to a folder that has tokenizers/{name})")
    return load_vocabulary(folder)


def read_shared() -> None:
    """Reads these where they are, before processes are forked that share them."""
    for name in SHARED:
        if (ASSETS / "tokenizers" / name / "tokenizer.json").is_file():
            real(name)

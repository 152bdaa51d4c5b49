"""The table of losses between models that agree on texts, in docs/method.md, is that of the measurement's file."""

import json
from pathlib import Path

import agreement

ROOT = Path(__file__).resolve().parents[3]


def test_the_page_has_the_tables():
    found = json.loads((ROOT / "benchmarks" / "agreement.json").read_text("utf-8"))
    page = (ROOT / "docs" / "method.md").read_text("utf-8")
    for pair in ("llama3 <- gemma3", "llama3 <- qwen3"):
        assert list(found[pair]) == list(agreement.TEXTS)
        assert agreement.table(found[pair]).strip() in page

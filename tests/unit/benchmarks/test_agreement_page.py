"""The table of losses between models that agree on texts, in docs/method.md, is that of the measurement's file."""

import json
from pathlib import Path

import agreement

ROOT = Path(__file__).resolve().parents[3]


def test_the_page_has_the_table():
    found = json.loads((ROOT / "benchmarks" / "agreement.json").read_text("utf-8"))["llama3 <- gemma3"]
    assert list(found) == list(agreement.TEXTS)
    assert agreement.table(found).strip() in (ROOT / "docs" / "method.md").read_text("utf-8")

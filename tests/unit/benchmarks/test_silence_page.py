"""What docs/method.md says of the text that losses score is what the measurement's file has."""

import itertools
import json
import statistics
from pathlib import Path

import pytest
import silence
from tokenizer_zoo import zoo

from nemo_xtoken.losses.sample_texts import SAMPLES

ROOT = Path(__file__).resolve().parents[3]
CELLS = json.loads((ROOT / "benchmarks" / "silence.json").read_text("utf-8"))["cells"]
PAGE = " ".join((ROOT / "docs" / "method.md").read_text("utf-8").split())
BLANK_FIRST = ("llama2", "mistral_v1", "mistral_v3")  # put a blank before a text


def test_the_cells_are_all_pairs_and_kinds_of_text():
    names = sorted({name.partition(" ")[0] for name in CELLS})
    assert len(names) == 13
    assert set(CELLS) == {f"{a} <- {b}, {kind}" for a, b in itertools.permutations(names, 2) for kind in SAMPLES}
    assert f"for all ordered pairs of {len(names)} tokenizers" in PAGE
    assert f"In all {len(CELLS)} cells every chunk is scored by `prefix_kl`." in PAGE
    assert all(cell["prefix_kl"] == cell["in no chunk"] for cell in CELLS.values())


def test_the_page_has_the_counts_and_the_shares():
    outside = {name: cell["in no chunk"] for name, cell in CELLS.items() if cell["in no chunk"] > 0.005}
    assert all(set(name.partition(",")[0].split(" <- ")) & set(BLANK_FIRST) for name in outside)
    assert (
        f"Tokens in no chunk are more than 0.5% in {len(outside)} cells, all with Llama 2, Mistral 1 or Mistral 3 on "
        f"one side and at most {max(outside.values()):.1%}:"
    ) in PAGE
    strict = [cell["strict_1to1"] for cell in CELLS.values()]
    assert (
        f"`strict_1to1` is silent on {statistics.median(strict):.0%} of the tokens in the median, and on "
        f"{max(strict):.0%} at most."
    ) in PAGE


def test_a_measurement_counts_tokens():
    """201 and 37 are each one token of the student, and several of the teacher."""
    student, teacher = zoo()["llama"], zoo()["qwen"]
    ids = student.encode("in 201 of 37").tolist()
    assert [student.token_bytes[i] for i in ids if student.token_bytes[i] in (b"201", b"37")] == [b"201", b"37"]
    found = silence.silence(student, teacher, "in 201 of 37")
    assert found == pytest.approx({"prefix_kl": 0, "strict_1to1": 2 / len(ids), "in no chunk": 0})

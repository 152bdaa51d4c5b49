"""What the documents say of kills is what the campaign's file has, and that has every kind of work."""

import json
import re
from pathlib import Path

import kills_page
from blocks import filled, out_of_date
from kill_campaign import FAULTS, Counts, written

RESULTS = json.loads(kills_page.RESULTS.read_text("utf-8"))


def test_the_documents_have_the_figures():
    stale = out_of_date(kills_page.DOCUMENTS, kills_page.WORD, kills_page.made(RESULTS))
    assert stale == [], "python benchmarks/kills_page.py"


def test_every_kind_was_killed_without_a_fault():
    jobs = Path(__file__).parents[2] / "jobs" / "test_killed_anywhere.py"
    kinds = re.search(r"^KINDS = \{\n(.*?)^\}", jobs.read_text("utf-8"), re.DOTALL | re.MULTILINE)[1]
    assert list(RESULTS["kinds"]) == re.findall(r'^    "([^"]+)":', kinds, re.MULTILINE)
    for kind, one in RESULTS["kinds"].items():
        assert one["kills"] >= 3, kind
        assert one["compared"] > 0, kind
        assert [one[name] for name in FAULTS] == [0, 0, 0, 0], kind


def test_a_campaign_writes_what_the_page_says(tmp_path):
    """Also of what must not be; a kind that is tried again takes the place of what was there."""
    file = tmp_path / "kills.json"
    written(file, "one", Counts(runs=9, kills=9, compared=9), 1)
    written(file, "two", Counts(runs=5, kills=3, compared=2, different=["a"], orphans=["b", "c"]), 1)
    written(file, "one", Counts(runs=4, kills=3, compared=1, stray=["d"]), 2)
    assert set(kills_page.FAULTS) == set(FAULTS)
    text = kills_page.made(json.loads(file.read_text("utf-8")))["campaign"]
    assert "6 kills in 9 runs of 2 kinds of work,\n3 results compared" in text
    assert "1 results were different, 0 starts failed, 2 processes went on running, 1 unfinished files" in text


def test_blocks_that_are_not_there_and_blocks_of_others(tmp_path):
    text = "a\n<!-- one: x -->\nold\n<!-- end of x -->\n<!-- two: x -->\nkept\n<!-- end of x -->\n"
    document = tmp_path / "page.md"
    document.write_text(text)
    assert filled(text, "one", {"x": "new\n"}) == text.replace("old", "new")
    assert out_of_date([document], "one", {"x": "old\n"}) == []
    assert out_of_date([document], "one", {"x": "new\n", "y": ""}) == ["page.md", "y"]

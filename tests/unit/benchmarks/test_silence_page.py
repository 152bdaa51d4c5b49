"""What docs/method.md says of the text that losses score is what the measurement's file has."""

import itertools
import json
import statistics
from pathlib import Path

import numpy as np
import pytest
import silence
import torch
from tokenizer_zoo import zoo

from nemo_xtoken.losses.pair import VocabularyPair
from nemo_xtoken.losses.prefix_kl import HaveClasses
from nemo_xtoken.losses.sample_texts import SAMPLES
from nemo_xtoken.losses.text_coverage import losses_on_text
from nemo_xtoken.projection.prefixes import PrefixClasses

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


def test_what_is_silent_is_the_first_word_of_the_text():
    """In every cell with less than 99.5% of the tokens scored, and in every other that is not whole."""
    for name, cell in CELLS.items():
        tokens = cell[silence.SILENT]
        assert bool(tokens) == (cell["prefix_kl"] > 0), name
        said = "".join(tokens).strip(" ")
        assert not said or SAMPLES[name.partition(", ")[2]].startswith(said), name
        assert len(tokens) <= 3, name


def test_a_measurement_counts_tokens():
    """201 and 37 are each one token of the student, and several of the teacher."""
    student, teacher = zoo()["llama"], zoo()["qwen"]
    ids = student.encode("in 201 of 37").tolist()
    assert [student.token_bytes[i] for i in ids if student.token_bytes[i] in (b"201", b"37")] == [b"201", b"37"]
    found = silence.silence(student, teacher, {"": "in 201 of 37"})[""]
    assert found.pop(silence.SILENT) == []
    assert found == pytest.approx({"prefix_kl": 0, "strict_1to1": 2 / len(ids), "in no chunk": 0})


PAIRS = [("llama", "qwen"), ("qwen", "sp_bpe"), ("sp_bpe", "llama"), ("sp_unigram", "tiktoken"), ("sp_model", "llama")]


@pytest.mark.parametrize("names", PAIRS)
def test_tokens_with_a_spelling_have_a_class_in_the_loss(names):
    student, teacher = (zoo()[name] for name in names)
    whole = HaveClasses(PrefixClasses.of(student, teacher))
    for own, other, classes in ((student, teacher, whole.student), (teacher, student, whole.teacher)):
        known = silence.have_class(own, other, np.arange(own.size))
        assert len(known) > own.size / 2
        assert (classes[torch.from_numpy(known)] >= 0).all()
        left = np.setdiff1d(np.flatnonzero(classes.numpy() >= 0), known).tolist()  # as a beginning of another's token
        assert len(left) < own.size / 20


@pytest.mark.parametrize("names", PAIRS[:2])
def test_the_quick_way_gives_what_the_losses_own_classes_do(names, monkeypatch):
    student, teacher = (zoo()[name] for name in names)
    quick = silence.silence(student, teacher, SAMPLES)
    assert silence.silence(student, teacher, SAMPLES, whole=True) == quick
    pair = VocabularyPair(student, teacher)
    for kind, text in SAMPLES.items():
        theirs = losses_on_text(pair, silence.LOSSES, text)
        for name, key in zip(silence.LOSSES, ("prefix_kl", "strict_1to1", silence.NO_CHUNK), strict=True):
            assert quick[kind][key] == pytest.approx(theirs[name].tokens.share("none")), (kind, name)
    monkeypatch.setattr(silence, "have_class", lambda own, other, ids: np.zeros(0, np.int64))
    assert silence.silence(student, teacher, SAMPLES) == quick  # nothing is known of a token: the classes are made

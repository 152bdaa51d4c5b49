"""What each loss scores of a text, counted again by hand."""

from dataclasses import asdict

import numpy as np
import pytest
from test_agreeing_texts import made
from tokenizer_zoo import TEXT, zoo

from nemo_xtoken.losses.pair import VocabularyPair
from nemo_xtoken.losses.registry import LOSSES
from nemo_xtoken.losses.sample_texts import SAMPLES
from nemo_xtoken.losses.text_coverage import least_scored_sample, losses_on_text

KEPT_WITH = "test_agreeing_texts.py"  # in one process, which has its pairs
WITHOUT_W = [name for name, loss in LOSSES.items() if name != "same_tokenizer"]


def counts(covered):
    return covered.tokens.full, covered.tokens.part, covered.tokens.none


def test_a_numeral_that_the_teacher_cuts_up():
    student, teacher = zoo()["llama"], zoo()["qwen"]
    text = "in 201 of 37"
    ids = student.encode(text)
    several = [i for i in ids.tolist() if student.token_bytes[i] in (b"201", b"37")]
    assert len(several) == 2
    found = losses_on_text(VocabularyPair(student, teacher), WITHOUT_W, text)
    assert counts(found["p_kl"]) == (len(ids) - 2, 2, 0)
    assert counts(found["prefix_kl"]) == (len(ids), 0, 0)
    assert counts(found["strict_1to1"]) == (len(ids) - 2, 0, 2)


def test_the_bits_of_the_teacher_are_those_of_its_tokens_in_the_chunks():
    student, teacher = zoo()["llama"], zoo()["qwen"]
    text = "in 201 of 37"
    pieces = [teacher.token_bytes[i] for i in teacher.encode(text).tolist()]
    bits = np.arange(1.0, len(pieces) + 1)
    digits = sum(b for b, piece in zip(bits, pieces, strict=True) if piece.isdigit())
    assert 0 < digits < bits.sum()
    found = losses_on_text(VocabularyPair(student, teacher), WITHOUT_W, text, bits)
    assert asdict(found["p_kl"].bits) == {"full": bits.sum() - digits, "part": digits, "none": 0}
    assert asdict(found["prefix_kl"].bits) == {"full": bits.sum(), "part": 0, "none": 0}
    assert asdict(found["strict_1to1"].bits) == {"full": bits.sum() - digits, "part": 0, "none": digits}


def test_the_least_scored_sample_is_the_one_with_the_smallest_share():
    pair = VocabularyPair(zoo()["llama"], zoo()["qwen"])
    shares = {kind: losses_on_text(pair, ["p_kl"], text)["p_kl"].tokens.share("full") for kind, text in SAMPLES.items()}
    kind, parts = least_scored_sample(pair, "p_kl")
    assert parts.share("full") == shares[kind] == min(shares.values()) < 1
    assert least_scored_sample(pair, "prefix_kl")[1].share("full") == 1


def test_the_kinds_add_up():
    found = losses_on_text(VocabularyPair(zoo()["sp_bpe"], zoo()["llama"]), WITHOUT_W, TEXT)
    for covered in found.values():
        assert sum(counts(covered)) == covered.tokens.total == len(zoo()["sp_bpe"].encode(TEXT))
        assert sum(covered.tokens.share(kind) for kind in ("full", "part", "none")) == pytest.approx(1)
        assert covered.bits is None
    assert found["strict_1to1"].tokens.none > found["prefix_kl"].tokens.none


@pytest.mark.parametrize("names", [("llama3", "gemma3"), ("smollm2", "llama3")], ids="-".join)
def test_prefix_kl_scores_indentation(names):
    """Of code a fifth was silent, and of JSON an eighth, since first tokens are of different classes."""
    student, teacher, classes = made(names)
    pair = VocabularyPair(student, teacher, classes=classes)
    for kind, text in SAMPLES.items():
        found = losses_on_text(pair, ["prefix_kl"], text)["prefix_kl"].tokens
        assert found.share("full") >= 0.995, kind
        assert found.share("none") <= 0.005, kind

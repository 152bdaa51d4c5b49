"""What each loss scores of a text, counted again by hand."""

import pytest
from real_tokenizers import real
from tokenizer_zoo import TEXT, zoo

from nemo_xtoken.losses.pair import VocabularyPair
from nemo_xtoken.losses.registry import LOSSES
from nemo_xtoken.losses.sample_texts import SAMPLES
from nemo_xtoken.losses.text_coverage import losses_on_text

WITHOUT_W = [name for name, loss in LOSSES.items() if name != "same_tokenizer"]


def counts(covered):
    return covered.full, covered.part, covered.none


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


def test_the_kinds_add_up():
    found = losses_on_text(VocabularyPair(zoo()["sp_bpe"], zoo()["llama"]), WITHOUT_W, TEXT)
    for covered in found.values():
        assert sum(counts(covered)) == covered.tokens
        assert covered.share("full") + covered.share("part") + covered.share("none") == pytest.approx(1)
    assert found["strict_1to1"].none > found["prefix_kl"].none


@pytest.mark.parametrize(("student", "teacher"), [("llama3", "gemma3"), ("smollm2", "llama3")])
def test_prefix_kl_scores_indentation(student, teacher):
    """Of code a fifth was silent, and of JSON an eighth, since first tokens are of different classes."""
    pair = VocabularyPair(real(student), real(teacher))
    for kind, text in SAMPLES.items():
        found = losses_on_text(pair, ["prefix_kl"], text)["prefix_kl"]
        assert found.share("full") >= 0.995, kind
        assert found.share("none") <= 0.005, kind

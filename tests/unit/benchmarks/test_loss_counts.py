"""Operations and waits of a tile stay what they are, or become fewer; the estimates and documents have the counts."""

import json

import loss_counts_page
import pytest
import torch
from blocks import out_of_date
from loss_counts import LOSSES, Counts, counts_of, seconds_on_h100, traffic_by
from tokenizer_zoo import zoo

from nemo_xtoken.run.estimates.loss_time import LossSizes
from nemo_xtoken.run.estimates.loss_traffic import COMMON, traffic_of

RESULTS = json.loads(loss_counts_page.RESULTS.read_text("utf-8"))
#: operations, waits for the device, passes over the student's and over the teacher's tile.  Of losses that sort with
#: fewer values compared one by one than there are, as in a run.
MOST = {
    "p_kl": (166, 0, 23.7, 27.3),
    "prefix_kl": (217, 0, 23.8, 25.6),
    "h_kl": (227, 0, 33.5, 28.1),
    "gold": (216, 0, 33.5, 27.3),
    "uld": (178, 0, 58.8, 7.7),
    "strict_1to1": (179, 1, 22.5, 12.2),
    "csd": (222, 0, 28.4, 26.9),
    "bpm": (244, 0, 29.7, 29.1),
}


def test_every_loss_of_the_benchmark_has_a_bound():
    assert set(MOST) == set(LOSSES)


@pytest.mark.parametrize("loss", MOST)
def test_a_tile(loss):
    """On numerals, which one of the tokenizers cuts into digits: chunks of one and of several tokens."""
    found = counts_of(loss, zoo()["llama"], zoo()["qwen"])
    assert found["tiles"] == 1
    figures = [found[name] for name in ("operations", "waits", "student_passes", "teacher_passes")]
    assert all(0 <= here <= most for here, most in zip(figures, MOST[loss], strict=True)), figures
    whole, products = seconds_on_h100(found)
    assert whole > products > 0.014


def test_the_document_has_the_figures():
    stale = out_of_date(loss_counts_page.DOCUMENTS, loss_counts_page.WORD, loss_counts_page.made(RESULTS))
    assert stale == [], "python benchmarks/loss_counts_page.py"


def test_the_estimates_have_the_counts_of_tritons_kernels():
    by_loss = {one["loss"]: one for one in RESULTS["results"] if one["kernels"] == "triton"}
    for loss in ("prefix_kl", "bpm"):
        assert traffic_by(by_loss[loss]) == COMMON, loss
    for loss in ("h_kl", "gold", "uld", "csd"):
        assert traffic_of(loss) == traffic_by(by_loss[loss]), loss


def test_a_top_k_is_read_byte_by_byte():
    """8 times for the k-th of 8-byte numbers, once to collect; the k are written, then read and written in order."""
    x = torch.arange(30).view(3, 10)
    with Counts({10: "student", 4: "largest"}) as counts:
        torch.topk(x, 4, dim=1)
    assert counts.touched["student"] == (8 + 1) * 30 * 2
    assert counts.touched["largest"] == 3 * (12 * 2 + 12 * 2)


def test_sorting_costs_what_was_counted():
    """By hand, for one chunk of vocabularies of 1,000 and 2,000 tokens."""
    by = traffic_of("gold")
    sizes = LossSizes(1, 1, 1, 1, 1, 1, 1000, 2000, 1, 0.0, traffic=by, cap=60)
    student, teacher = by.sorted_shares
    each = by.student_sorted * 1000 * student + by.teacher_sorted * 2000 * teacher + by.largest * 60
    assert sizes.touched == pytest.approx(4 * (by.student * 1000 + by.teacher * 2000 + each))
    assert sizes.gathered == 0

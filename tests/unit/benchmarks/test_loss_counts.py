"""Operations and waits of a tile stay what they are, or become fewer."""

import pytest
from loss_counts import LOSSES, counts_of, seconds_on_h100
from tokenizer_zoo import zoo

#: operations, waits for the device, passes over the student's and over the teacher's tile.
MOST = {
    "p_kl": (168, 0, 23.7, 29.8),
    "prefix_kl": (232, 0, 24.7, 30.6),
    "h_kl": (223, 0, 33.5, 30.6),
    "gold": (212, 0, 33.5, 29.8),
    "uld": (174, 0, 76.4, 7.7),
    "strict_1to1": (181, 1, 22.5, 13.7),
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

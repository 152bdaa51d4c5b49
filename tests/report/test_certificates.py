"""The picture of certificates."""

import pytest

from nemo_xtoken.report.certificates import draw_certificates


@pytest.mark.parametrize("losses", [1, 3])
@pytest.mark.parametrize("kinds", [1, 4])
def test_a_picture_is_written(losses, kinds, tmp_path):
    curves = [(f"merge {n}", [0, 1, 10, 200], [0.99, 0.9, 0.1 * n, 0.0]) for n in range(9)]
    panels = {f"loss_{i}": {f"kind $x_{k}": curves[: 2 * i + 1] for k in range(kinds)} for i in range(losses)}
    draw_certificates("a$ -> b_", panels, tmp_path / "made" / "p.png")
    data = (tmp_path / "made" / "p.png").read_bytes()
    assert data.startswith(b"\x89PNG")
    width, height = (int.from_bytes(data[at : at + 4], "big") for at in (16, 20))
    assert width > 300 * kinds
    assert height > 200 * losses

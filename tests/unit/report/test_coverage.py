"""The audit's figure."""

import pytest

from nemo_xtoken.report.coverage import draw_coverage

CLASS = {"label": "2-digit numerals", "total": 100, "exact": 40, "multi": 59, "empty": 1}


@pytest.mark.parametrize("classes", [[CLASS, CLASS | {"total": 0}, CLASS | {"exact": 0, "multi": 99}], []])
def test_it_is_a_png(tmp_path, classes):
    path = tmp_path / "made" / "coverage.png"
    draw_coverage("a $b_c -> d", "recommended loss: P-KL", classes, path)
    assert path.read_bytes().startswith(b"\x89PNG")
    assert [p.name for p in path.parent.iterdir()] == ["coverage.png"]

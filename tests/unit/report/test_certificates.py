"""The picture of certificates."""

from nemo_xtoken.report.certificates import certificates_figure, draw_certificates
from nemo_xtoken.report.colors import CROSS_ENTROPY, colors_of

KINDS = ("1 to 1", "kind $x_1 of $")


def panels(losses):
    curves = [(f"merge {n}", [0, 1, 10, 200], [0.99, 0.9, 0.1 * n, 0.0]) for n in range(9)]
    return {f"loss_{i}": {KINDS[0]: curves[: 8 * i + 1], KINDS[1]: curves[:i]} for i in range(losses)}


def test_a_panel_for_every_loss_and_kind():
    figure = certificates_figure("a$ -> b_", panels(2))
    grid = figure.axes
    assert [axes.get_title() for axes in grid] == [*KINDS, "", ""]
    assert [axes.get_ylabel() for axes in grid] == ["loss_0", "", "loss_1", ""]
    assert [len(axes.lines) for axes in grid] == [1, 0, 9, 1]
    assert [t.get_text() for t in grid[1].texts] == ["not compared"]
    assert len(grid[3].get_legend().get_texts()) == 9
    assert grid[2].get_xlabel() == "steps of gradient descent"


def test_a_picture_is_written(tmp_path):
    draw_certificates("a$ -> b_", panels(1), tmp_path / "made" / "p.png")
    assert (tmp_path / "made" / "p.png").read_bytes().startswith(b"\x89PNG")


def test_one_thing_has_one_colour():
    """The run without a teacher is drawn in its colour wherever it stands, and nothing else is."""
    for names in (["cross-entropy only", "distilled"], ["with the teacher", "cross-entropy only"], list("abcdefg")):
        chosen = colors_of(names)
        assert {name for name in names if chosen[name] == CROSS_ENTROPY} == (
            {"cross-entropy only"} & set(names) or {"b"}
        )
    assert (
        colors_of(["cross-entropy only", "distilled"])["distilled"]
        == colors_of(["with the teacher"])["with the teacher"]
    )

"""Pictures of W and of alignments: labels, lines, and that odd input draws."""

import itertools

import pytest

from nemo_xtoken.errors import InputError
from nemo_xtoken.report.alignment_figure import LINE, MOST_LINES, _Column, _lines, draw_alignment
from nemo_xtoken.report.pictures import drawable, label, picture_path, width
from nemo_xtoken.report.projection_figure import draw_projection


def test_labels_show_blanks_and_what_no_font_has():
    assert label(" a\\n\t") == "·a⏎⇥"
    assert label("\u0378") == "\\u0378"  # no character at all, so in no font
    assert label("\U000e0fff") == "\\Ue0fff"
    assert label("x" * 30) == "x" * 23 + "…"
    assert label("é") == "é"
    assert drawable("an é")
    assert not drawable("an \u0378")


def test_wide_and_combining_characters_take_their_columns():
    assert [width(t) for t in ("ab", "机器", "e\u0301", "")] == [2, 4, 1, 0]


@pytest.mark.parametrize("name", ["a.jpg", "a", "folder.png"])
def test_a_picture_is_a_png(name, tmp_path):
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(InputError, match="figure="):
        picture_path(str(tmp_path / name))
    assert picture_path("a/b.PNG").name == "b.PNG"


def test_lines_hold_every_chunk_once_and_in_order():
    columns = [_Column("one", (["x" * (n % 7)], ["y" * (n % 11)])) for n in range(200)]
    columns[50] = _Column("several", (["z" * 24] * 9, ["z"]))  # wider than a line
    lines = _lines(columns)
    assert [c for line in lines for c in line] == columns
    assert [columns[50]] in lines
    for line in lines:
        assert sum(c.width for c in line) <= LINE or len(line) == 1
    for line, following in itertools.pairwise(lines):
        assert sum(c.width for c in line) + following[0].width > LINE


@pytest.mark.parametrize(
    "rows",
    [
        [
            ("gap", ["<bos>"], []),
            ("chunk", ["$a_b$"], ["$a", "_b$"]),
            ("gap", [], ["x", "y"]),
            ("chunk", ["机"], ["机"]),
        ],
        [("chunk", ["word"], ["word"])] * 40 * MOST_LINES,
        [("chunk", ["a" * 100] * 12, ["b"])],
        [],
    ],
    ids=["kinds", "many lines", "one wide chunk", "nothing"],
)
def test_an_alignment_draws(rows, tmp_path):
    draw_alignment(("a $b_c", "a tokenizer with a very long name"), rows, tmp_path / "made" / "a.png")
    assert (tmp_path / "made" / "a.png").read_bytes().startswith(b"\x89PNG")


CLASS = {"name": "digits_2", "label": "2-digit numerals", "exact": 40, "multi": 59, "empty": 1}
ROW = {"token": "201", "entries": [{"id": 5, "token": "2", "weight": 0.9}, {"id": 7, "token": "$0", "weight": 0.1}]}
TEACHER = {"tokens": 12, "reached": 9, "by_class": {"code": 12}, "unreached_by_class": {"code": 3}}


@pytest.mark.parametrize(
    ("classes", "rows", "entries"),
    [
        ([CLASS, CLASS | {"name": "code"}], [ROW, {"token": "x", "entries": []}] * 40, {"0": 1, "1": 40, "2": 59}),
        ([CLASS], [ROW | {"entries": ROW["entries"][:1]}], {"1": 1}),
        ([], [], {}),
    ],
)
def test_a_projection_draws(classes, rows, entries, tmp_path):
    draw_projection(("a", "b"), classes, TEACHER, entries, rows, tmp_path / "w.png")
    assert (tmp_path / "w.png").read_bytes().startswith(b"\x89PNG")

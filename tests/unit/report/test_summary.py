"""The report of runs: the numbers of the table, the files, and runs that lack something."""

import io
import json
import math

import pytest
from rich.console import Console

from nemo_xtoken.report.curves import draw_curves
from nemo_xtoken.report.summary import report_runs, summarize
from nemo_xtoken.run.records import TRAINED_WITH, append_record, read_history


@pytest.fixture
def runs(tmp_path):
    """A run without and one with a teacher, 4 steps each, evaluated before and after."""
    folders = {}
    for name, end, chunks in (("alone", 4.0, 0), ("taught", 3.5, 100)):
        folder = tmp_path / name
        (folder / "checkpoints" / f"{name}--step=3-last" / "weights").mkdir(parents=True)
        append_record(folder, {"step": 0, "held_out_ce": 8.0, "held_out_accuracy": 0.01})
        for step in range(1, 5):
            record = {"step": step, "ce": 8.0 - step, "tokens": 50.0, "seconds": 0.5}
            append_record(folder, record | ({"kd": 1.0 / step, "chunks": chunks, "scale": 1.0} if chunks else {}))
        append_record(folder, {"step": 4, "held_out_ce": end, "held_out_accuracy": 0.3})
        folders[name] = folder
    return folders


def test_the_numbers(runs):
    taught = summarize("taught", runs["taught"])
    assert (taught.steps, taught.start_ce, taught.end_ce, taught.end_accuracy) == (4, 8.0, 3.5, 0.3)
    assert taught.seconds == pytest.approx(2.0)
    assert taught.chunks_per_second == pytest.approx(200.0)
    assert taught.checkpoint == str(runs["taught"] / "checkpoints" / "taught--step=3-last")
    assert summarize("alone", runs["alone"]).chunks_per_second is None


def test_a_checkpoint_of_megatron_bridge_is_named_too(runs):
    made = runs["alone"].parent / "bridge"
    (made / "checkpoints" / "iter_0000004").mkdir(parents=True)
    (made / "checkpoints" / "iter_0000004" / "run_config.yaml").write_text("")
    assert summarize("bridge", made).checkpoint == str(made / "checkpoints" / "iter_0000004")


def test_table_and_files(runs, tmp_path):
    shown = io.StringIO()
    report_runs(runs, tmp_path, Console(file=shown, width=120))
    text = shown.getvalue()
    for part in ("before", "8.000", "alone", "4.000", "taught", "3.500", "30.0%", "200", "step=3-last", "curves.png"):
        assert part in text
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert [run["end_ce"] for run in json.loads((tmp_path / "report.json").read_text())] == [4.0, 3.5]


def test_what_a_run_went_on_with_is_shown(runs, tmp_path):
    first = {"teacher.loss": "p_kl", "teacher.checkpoint": "content 1"}
    second, third = first | {"teacher.loss": "gold"}, {"teacher.loss": "gold", "teacher.checkpoint": "content 2"}
    entries = [{"after": after, "settings": s} for after, s in ((0, first), (2, second), (1999, third))]
    (runs["taught"] / TRAINED_WITH).write_text(json.dumps(entries))
    shown = io.StringIO()
    report_runs(runs, tmp_path, Console(file=shown, width=120))
    assert [line for line in shown.getvalue().splitlines() if line.startswith("changed")] == [
        "changed     taught: from step 3 on teacher.loss=gold (before: p_kl)",
        "changed     taught: from step 2,000 on teacher.checkpoint=content 2 (before: content 1)",
    ]
    told = [run["changes"] for run in json.loads((tmp_path / "report.json").read_text())]
    assert told == [[], [[3, ["teacher.loss=gold (before: p_kl)"]], [2000, told[1][1][1]]]]


def test_a_run_without_a_step_or_held_out_text(tmp_path):
    report_runs({"empty": tmp_path}, tmp_path, Console(file=io.StringIO()))
    summary = summarize("empty", tmp_path)
    assert (summary.steps, summary.end_ce, summary.checkpoint) == (0, None, None)


def test_a_line_cut_short_is_left_out(runs):
    path = runs["alone"] / "history.jsonl"
    path.write_text(path.read_text()[:-20])
    records = read_history(runs["alone"])
    assert len(records) == 5
    assert all(math.isfinite(r.get("ce", 0)) for r in records)


@pytest.fixture
def several(tmp_path):
    """A run with two teachers whose weights move."""
    folder = tmp_path / "several"
    folder.mkdir()
    for step in range(1, 5):
        teachers = {"kd/phi": 3.0 - step / 2, "kd/own": 2.0, "alpha/phi": 0.5 + step / 10, "alpha/own": 0.5 - step / 10}
        record = {"step": step, "ce": 5.0, "tokens": 50.0, "seconds": 0.5, "kd": 2.0, "chunks": 80, "scale": 1.0}
        append_record(folder, record | teachers | {"chunks/phi": 30, "chunks/own": 50})
    return folder


def test_several_teachers_have_a_table_of_their_own(several, runs, tmp_path):
    [phi, own] = summarize("several", several).teachers
    assert (phi.name, phi.start_kd, phi.end_kd, phi.alpha, phi.chunks) == ("phi", 2.5, 1.0, 0.9, 120)
    assert (own.name, own.end_kd, own.chunks) == ("own", 2.0, 200)
    shown = io.StringIO()
    report_runs({"alone": runs["alone"], "several": several}, tmp_path, Console(file=shown, width=120))
    for part in ("Teachers of several", "phi", "0.9", "2.500", "1.000", "own", "200"):
        assert part in shown.getvalue()
    assert json.loads((tmp_path / "report.json").read_text())[1]["teachers"][0]["name"] == "phi"


def test_the_picture_has_each_teachers_line_and_its_weight(several, runs, monkeypatch, tmp_path):
    from matplotlib.figure import Figure

    drawn = {}

    def keep(figure, *_, **__):
        for axes in figure.axes:
            drawn[axes.get_title()] = axes.get_legend_handles_labels()[1]

    monkeypatch.setattr(Figure, "savefig", lambda self, path, **kw: keep(self) or path.write_bytes(b"x"))
    histories = {"taught": read_history(runs["taught"]), "several": read_history(several)}
    draw_curves(histories, tmp_path / "curves.png")
    assert drawn["Training"] == ["taught", "several"]
    assert drawn["Distance from the teacher"] == ["taught", "several: phi", "several: own"]
    assert drawn["Weights of the teachers"] == ["several: phi", "several: own"]

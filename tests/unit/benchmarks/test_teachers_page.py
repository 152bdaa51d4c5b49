"""What the documents say of teachers elsewhere is what the measurement's file has, and the goals are met there."""

import json

import pytest
import teachers_page
from blocks import out_of_date
from stored_teachers import LOSSES
from teacher_sources import Shape, taught

RESULTS = json.loads(teachers_page.RESULTS.read_text("utf-8"))
SOURCES = {row["teacher"]: row for row in RESULTS["sources"]["sources"]}


def test_the_documents_have_the_figures():
    stale = out_of_date(teachers_page.DOCUMENTS, teachers_page.WORD, teachers_page.blocks(RESULTS))
    assert stale == [], "python benchmarks/teachers.py --page"


def test_a_student_does_not_wait_for_enough_replicas():
    shape = RESULTS["sources"]["shape"]
    needed = shape["rows"] * shape["length"] / shape["seconds"] / shape["rate"]
    remote = {int(name.split()[1]): row for name, row in SOURCES.items() if name.startswith("remote")}
    assert min(remote) < needed < max(remote)
    for replicas, row in remote.items():
        assert (row["waiting"] <= 0.02) == (replicas >= needed), replicas
        assert 1 < row["wire"] <= 1.02
    for form in ("bf16", "fp8"):  # which is read ahead
        assert SOURCES[f"cached, {form}"]["waiting"] <= 0.02, form
    assert SOURCES["colocated"]["waiting"] == pytest.approx(needed / (1 + needed), abs=0.05)


def test_trainings_are_of_all_forms():
    rows = {row["form"]: row for row in RESULTS["training"]["training"]}
    assert list(rows) == ["colocated", "fp32", "bf16", "fp8", "sampled"]
    for name in ("CE", "held-out bits a byte"):  # exact states change nothing but the order of additions
        assert rows["fp32"][name] == pytest.approx(rows["colocated"][name], rel=1e-3)


class Counting:
    """A teacher that computes nothing; ``most``: rows that were wanted and not forgotten at a time."""

    def __init__(self):
        self.wanted, self.got, self.most = {}, [], 0

    def want(self, row):
        self.wanted[row.key] = row
        self.most = max(self.most, len(self.wanted))

    def get(self, key):
        self.got.append(self.wanted[key].key)

    def forget(self, key):
        del self.wanted[key]


def test_the_student_that_measures_asks_two_steps_ahead_and_for_each_row_once():
    shape = Shape(hidden=4, length=8, rows=2, seconds=0.0, steps=5, rate=800.0)
    teacher = Counting()
    assert taught(teacher, shape)["waiting"] <= 1
    assert teacher.got == [row.key for step in shape.data() for row in step]
    assert len(set(teacher.got)) == 6 * 2
    assert (teacher.most, teacher.wanted) == (3 * 2, {})


def test_angles_are_of_all_losses_and_forms():
    """What is refused, or not stored by this package, is in brackets; several draws are nearer than one."""
    rows = RESULTS["models"]["gradients"]
    by_loss = {}
    for row in rows:
        by_loss.setdefault(row["loss"], {})[row["form"]] = row
    assert list(by_loss) == list(LOSSES)
    table = teachers_page.blocks(RESULTS)["angles"]
    for loss, forms in by_loss.items():
        [line] = [line for line in table.splitlines() if line.startswith(f"| `{loss}` |")]
        accepted = [not cell.startswith("(") for cell in line.split(" | ")[1:]]
        assert accepted == [True, True, loss in ("p_kl", "alm"), False, False]
        assert forms["bf16"]["degrees, weight"] < forms["fp8"]["degrees, weight"]
    draws = f"{RESULTS['models']['shape']['draws']} x sampled"
    assert by_loss["p_kl"][draws]["degrees, weight"] < by_loss["p_kl"]["sampled"]["degrees, weight"] / 2


def test_some_rows_are_measured_anew(tmp_path):
    """With their own machine; the others stay, and a file of another shape is left alone."""
    file, part = tmp_path / "teachers.json", RESULTS["sources"]
    file.write_text(json.dumps(RESULTS))
    about = part["machine"] | {"date": "2030-01-02 03:04 UTC"}
    new = {"teacher": "cached, fp8", "tokens/s": 1.0, "waiting": 0.5, "machine": about, "core": 0.25}
    found = teachers_page.with_rows(file, part["shape"], [new])
    kept = [row for row in part["sources"] if row["teacher"] != "cached, fp8"]
    assert [row for row in found["sources"]["sources"] if row["teacher"] != "cached, fp8"] == kept
    text = teachers_page.blocks(found)["sources"]
    assert "| cached, fp8 | 1 | 50.0% |" in text
    assert '"cached, fp8": measured 2030-01-02 03:04 UTC' in text
    assert "a busy process had 25% of one" in text
    with pytest.raises(ValueError, match="figures by"):
        teachers_page.with_rows(file, part["shape"] | {"steps": 1}, [new])

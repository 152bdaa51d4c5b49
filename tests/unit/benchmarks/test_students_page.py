"""The study of real students: its plan, its claims by known numbers, and the documents against the runs' files."""

import dataclasses
import json

import pytest

pytest.importorskip("scipy.stats", reason="SciPy is not installed")

from benchmarks.blocks import out_of_date
from benchmarks.students import __main__ as command
from benchmarks.students import report
from benchmarks.students.claims import CLAIMS, judged
from benchmarks.students.corpora import KINDS, Texts
from benchmarks.students.plan import ARMS, LENGTHS, SETTINGS, TUNING_SEED, Run, runs_of, settings_of
from benchmarks.students.study import Study, read_results, write

RATES = SETTINGS["compression"].rates


def result(arm, seed, bits, setting="compression", rate=6e-4, half=None):
    """A run's file, with these bits on every kind."""
    of = SETTINGS[setting]
    looks = [{"step": 30, "bits": dict.fromkeys(of.trained, half or bits)}]
    looks.append({"step": 60, "bits": dict.fromkeys(of.trained, bits)})
    found = settings_of(Run(setting, arm, seed), LENGTHS["first"]) | {"rate": rate, "steps": 60, "tokens": 30_000}
    found |= {"bytes": 120_000}
    found |= {"machine": {"device": "x86_64", "precision": "float32"}, "cpu_seconds_a_step": 2.0, "looks": looks}
    return found | {
        "bits": dict.fromkeys((*of.trained, *of.others), bits),
        "continued": {of.prompts[0]: f"{arm} | `x`"},
    }


def results_here():
    return {name: read_results(command.RESULTS, name) for name in LENGTHS if name != "smoke"}


def test_documents_and_figure_are_those_of_the_results():
    found = results_here()
    stale = out_of_date(report.DOCUMENTS, report.WORD, report.blocks(found))
    assert stale == [], "python -m benchmarks.students --report"
    shown = any("ce" in {r["arm"] for r in results} for results in found.values())
    if shown and report.FIGURE.is_file():
        assert report.digest(found).encode() in report.FIGURE.read_bytes()


def test_the_results_are_what_their_names_say():
    """And small: a run is a few kilobytes."""
    for file in command.RESULTS.glob("*/*/*.json"):
        run = json.loads(file.read_text("utf-8"))
        tuned = run["rate"] if run["seed"] == TUNING_SEED else None
        assert file.stem == Run(run["setting"], run["arm"], run["seed"], tuned).stem
        assert (file.parent.name, file.parent.parent.name) == (run["setting"], run["length"]["name"])
        assert file.stat().st_size < 40_000
        length = LENGTHS[run["length"]["name"]]
        assert Study(command.RESULTS, length).result(Run(run["setting"], run["arm"], run["seed"], tuned)) is not None
        assert run["machine"]["packages"]["torch"]


def test_any_number_of_runs_is_reported(tmp_path):
    """Nothing, one arm alone, and an arm beside cross-entropy; what is missing is named."""
    assert "Nothing has been run yet" in report.blocks({"first": []})["compression"]
    tuning = [result("ce", TUNING_SEED, 3 + rate, rate=rate) for rate in RATES]
    made = report.blocks({"first": [*tuning, result("ce", 0, 2.0)]})
    assert "cross-entropy alone | 2.000 |" in made["compression"]
    assert "`prefix_kl`" in made["compression"].split("Not run yet")[1]
    both = [result("teacher", 0, 1.0), result("ce", 0, 2.0), result("prefix_kl", 0, 1.5, half=1.9)]
    found = {"first": [*tuning, *both]}
    made = report.blocks(found)
    assert "| `prefix_kl` | 1.500 | " in made["compression"]
    assert " | 50% | 2.0 | 1 |" in made["compression"]
    assert "prefix_kl ¦ 'x'" in made["continued"]
    assert "| C1 | compression |" in made["claims"]
    assert "-0.100 | 1 |  | so it is in this seed; not tested |" in made["claims"]
    report.draw(found, tmp_path / "figure.png")
    assert report.digest(found).encode() in (tmp_path / "figure.png").read_bytes()


def test_claims_are_tested_over_seeds_and_corrected():
    """Two clear differences of six seeds stand; one that is clear alone, and not beside the others, does not."""
    runs = []
    for seed in range(6):
        noise = 0.01 * (-1) ** seed
        runs += [result("ce", seed, 2.0), result("prefix_kl", seed, 1.5 + noise, half=2.0 + 4 * noise)]
        runs.append(result("gold", seed, 1.55 + 2 * noise))
    found = {verdict.claim.name: verdict for verdict in judged(runs)}
    assert set(found) == {claim.name for claim in CLAIMS}
    assert found["C2"].mean == pytest.approx(-0.5)
    assert [found[name].stands for name in ("C1", "C2", "C3")] == [False, True, True]
    assert found["C4"].values == {}
    swap = [result("teacher", 0, 1.0, "swap"), result("none", 0, 2.0, "swap"), result("prefix_kl", 0, 1.1, "swap")]
    assert {v.claim.name: v.mean for v in judged(swap)}["C4"] == pytest.approx(-0.1)


def test_a_finished_run_is_not_made_again_and_rates_are_chosen_by_cross_entropy(tmp_path, capsys):
    study, runs = Study(tmp_path, LENGTHS["first"]), runs_of(["compression"], ["prefix_kl"], [0, 1])
    assert [str(run) for run in runs[:5]] == [
        *(f"compression/tuning-{rate:g}" for rate in RATES),
        "compression/teacher-0",
        "compression/none-0",
    ]
    student = Run("compression", "prefix_kl")
    for rate, bits in zip(RATES, (3.0, 2.0, 2.5), strict=True):
        assert study.rate(student) is None
        write(study.file(Run("compression", "ce", TUNING_SEED, rate)), result("ce", TUNING_SEED, bits, rate=rate))
    assert study.rate(student) == RATES[1]
    assert len(study.pending(runs)) == len(runs) - len(RATES)
    write(study.file(student), result("prefix_kl", 0, 1.0, rate=RATES[0]))
    assert study.result(student) is None  # at a rate that is not the best
    write(study.file(student), result("prefix_kl", 0, 1.0, rate=RATES[1]))
    assert study.result(student) is not None
    others = Study(tmp_path, dataclasses.replace(LENGTHS["first"], steps=61))  # it was not done with these settings
    assert len(others.pending(runs)) == len(runs)
    assert others.rate(student) is None
    command.main(["--list", "--results", str(tmp_path), "--settings", "compression", "--seeds", "0"])
    assert f"done  compression/tuning-{RATES[0]:g}\n" in capsys.readouterr().out


def test_texts_are_cut_and_held_out_by_seed(tmp_path):
    file = tmp_path / KINDS["prose"].file
    file.parent.mkdir(parents=True)
    sentences = [f"The whale number {i} was seen from the ship at noon and again at night. " for i in range(400)]
    file.write_text("".join(sentences))
    texts = Texts(tmp_path)
    pieces = texts.pieces("prose", 200)
    assert all(100 <= len(piece) <= 200 and piece.endswith(".") for piece in pieces)
    folds = [set(texts.held_out("prose", 200, 10**6, seed)) for seed in (0, 1)]
    assert folds[0] != folds[1]
    for seed, fold in enumerate(folds):
        at = texts.to_train_on("prose", 200, seed)
        once = [at(step) for step in range(len(pieces) - len(fold))]
        assert set(once) == set(pieces) - fold
        assert len(set(once)) == len(once)
        assert set(once) != [at(step + len(once)) for step in range(len(once))]  # again, in another order
    assert len(ARMS) > 10

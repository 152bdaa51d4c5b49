"""What docs/learning.md says of the study of toy models is what its files of results say."""

import json
import random
from dataclasses import asdict

import pytest

stats = pytest.importorskip("scipy.stats", reason="SciPy is not installed")

from benchmarks.learning.arms import arm_named  # noqa: E402
from benchmarks.learning.claims import CLAIMS, LEVEL, arms_of_claims  # noqa: E402
from benchmarks.learning.lengths import QUICK  # noqa: E402
from benchmarks.learning.page import BEGIN, END, PAGE, RESULTS, kept, page  # noqa: E402

MEASURES = ("accuracy", "right_answer", "numerals", "calibration_error", "arithmetic_ce", "text_ce")


def verdicts(results):
    """Of each comparison, in order, by SciPy's paired test and Holm's rule as it is written."""
    found = {}
    for claim in CLAIMS:
        for c in claim.comparisons:
            a, b = (results.get(name, {}) for name in (c.arm, c.beside))
            seeds = sorted(a.keys() & b.keys())
            values = [[r[seed]["measures"][c.measure] for seed in seeds] for r in (a, b)]
            p, above = (1.0, 0.0)
            if len(seeds) > 1:
                test = stats.ttest_rel(*values)
                p, above = test.pvalue, test.statistic
            found[c] = (p, above, bool(seeds))
    order, stands = sorted(found, key=lambda c: found[c][0]), True
    verdict = {}
    for rank, c in enumerate(order):
        p, above, made = found[c]
        stands = stands and p * (len(order) - rank) < LEVEL
        said = ("holds" if above * c.sign > 0 else "the opposite holds") if stands else "not shown"
        verdict[c] = said if made else "not run"
    return [verdict[c] for claim in CLAIMS for c in claim.comparisons]


def rows(text):
    """The verdicts of the page's table of claims."""
    lines = text.partition("| claim |")[2].partition("\n\n")[0].splitlines()[2:]
    return [line.strip("| ").split(" | ")[-1] for line in lines]


def test_the_page_is_what_the_results_say():
    part = PAGE.read_text("utf-8").partition(BEGIN)[2].partition(END)[0]
    assert BEGIN + part + END == page()
    assert rows(part) == verdicts(kept())


def test_the_results_are_of_the_settings_that_the_page_names():
    results = [result for by_seed in kept().values() for result in by_seed.values()]
    assert len({result["content"] for result in results}) <= 1
    for result in results:
        theirs = {name: value for name, value in result["length"].items() if name not in ("core", "seeds")}
        ours = {name: value for name, value in json.loads(json.dumps(asdict(QUICK))).items() if name in theirs}
        assert theirs == ours
        assert result["machine"]["commit"]
        if result["arm"] is not None:
            assert result["arm"] == json.loads(json.dumps(asdict(arm_named(result["name"]))))
            assert len(result["curve"].get("ce", ())) == QUICK.steps * result["arm"]["trained"]
    assert len(results) == len(list((RESULTS / QUICK.name).glob("*.json")))


@pytest.fixture
def made_up(tmp_path):
    """Results of every arm of a claim and three seeds; in text most arms differ little, prefix_kl by much."""
    rng = random.Random(7)
    folder = tmp_path / QUICK.name
    folder.mkdir()
    machine = {"python": "3.11", "system": "Linux", "commit": "abc", "packages": {"torch": "2"}}
    for name in arms_of_claims():
        for seed in range(3):
            far = {"digits/prefix_kl": -0.5, "digits/gold": 0.25}.get(name, 0.0)
            measures = {measure: 1 + far + rng.gauss(0, 0.003) for measure in MEASURES}
            course = [{"step": step, **measures} for step in (0, 10)]
            cost = {"steps": 2, "seconds": 1.0}
            result = {"name": name, "seed": seed, "arm": {"name": name}, "measures": measures, "course": course}
            file = folder / f"{name.replace('/', '-')}-{seed}.json"
            file.write_text(json.dumps(result | {"cost": cost, "machine": machine}))
    return tmp_path


def test_claims_are_judged_from_files(made_up):
    text = page(made_up)
    assert rows(text) == verdicts(kept(made_up))
    assert {"holds", "the opposite holds", "not shown"} == set(rows(text))
    assert f"{3 * len(arms_of_claims())} students, seeds 0, 1, 2: Python 3.11, torch 2, Linux." in text
    assert set(rows(page(made_up / "nothing"))) == {"not run"}

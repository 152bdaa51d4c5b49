"""Learned W on the real stack: it moves, in every layout alike; it is saved, resumed, exported and used again."""

import json

import numpy as np
import pytest
from launcher import launch, start
from test_checkpoints import _load_plain, _saved, in_rank

from nemo_xtoken.errors import InputError
from nemo_xtoken.projection.matrix import ProjectionMatrix

pytestmark = pytest.mark.usefixtures("nemo")

RELATIVE = 1e-5
STEPS = (0, 2)
LOGITS = "learned_projections.of_teacher.logits"
FILE = "learned_projection.safetensors"


@pytest.fixture(scope="module")
def course(world):
    """``course(ranks, **settings)``: ``(job, every rank's results)`` of three steps; each set of settings runs once."""
    import jobs
    from watchers import Gradients, Rates, Totals, Weights

    done = {}

    def run(ranks=1, **settings):
        key = repr((ranks, sorted(settings.items())))
        if key not in done:
            job = world.distillation(
                f"learned{len(done)}",
                **{
                    "optimizer": "sgd",  # Adam turns rounding into steps where a gradient is about 0
                    "lr": 0.3,
                    "text": {"pack": False},
                    "teacher_config": {"learned": True, "learned_lr": 300.0},
                    "watchers": (Totals(), Gradients(STEPS), Rates(), Weights()),
                    "distributed": False,
                    **settings,
                },
            )
            done[key] = job, launch(jobs.train, job, ranks=ranks, folder=world.root / "logs" / job.name)
        return done[key]

    return run


@pytest.fixture(scope="module")
def vocabularies(world):
    from nemo_xtoken.vocab.loading import load_vocabulary

    return [load_vocabulary(world.root / f"{side}_tokenizer") for side in ("student", "teacher")]


@pytest.fixture(scope="module")
def w(vocabularies):
    """W at the start."""
    from nemo_xtoken.projection.build import build_projection

    return build_projection(*vocabularies)


def test_it_moves_and_is_a_w_file(course, w, vocabularies):
    job, [one] = course(micro=4)
    learned = ProjectionMatrix.load(job.folder / FILE, *vocabularies)
    np.testing.assert_array_equal(learned.ids, w.ids)
    several = (w.ids >= 0).sum(axis=1) > 1
    np.testing.assert_array_equal(learned.weights[~several], w.weights[~several])
    assert np.abs(learned.weights - w.weights).max() > 0.01
    assert learned.rule == w.rule | {"learned_steps": 3}
    assert one["gradients"][0][LOGITS].any()


def test_the_rows_that_moved_most_are_reported(course, w, capsys):
    from rich.console import Console

    from nemo_xtoken.projection.rows import row_distances
    from nemo_xtoken.report.learned import report_learned

    job, _ = course(micro=4)
    record = json.loads((job.folder / "learned_projection.json").read_text())
    distances = row_distances(w, ProjectionMatrix.load(job.folder / FILE))
    assert [row["id"] for row in record["rows"][:3]] == np.argsort(-distances, kind="stable")[:3].tolist()
    assert record["count"] == (distances > 1e-6).sum()
    report_learned(job.folder, Console(width=200))
    out = capsys.readouterr().out
    assert f"'{record['rows'][0]['token']}'" in out
    assert record["rows"][0]["text_after"] in out
    assert str(job.folder / FILE) in out.replace("\n", "")


LAYOUTS = {
    "micro1": (1, {"micro": 1}),
    "tp2": (2, {"tp": 2, "micro": 2}),
    "pp2": (2, {"pp": 2, "micro": 1}),
    "dp2": (2, {"micro": 1}),
}


CASES = [*((name, "chain_rule") for name in LAYOUTS), ("tp2", "mean"), ("tp2", "first")]


@pytest.mark.parametrize(("layout", "merge"), CASES)
def test_a_layout_changes_nothing(course, w, layout, merge):
    from watchers import merge_stages

    one, [expected] = course(micro=4, merge=merge)
    ranks, parallel = LAYOUTS[layout]
    job, found = course(ranks, merge=merge, **parallel)
    assert [LOGITS in rank["gradients"][0] for rank in found] == [layout != "pp2"] * (ranks - 1) + [True]
    for step in STEPS:
        a, b = expected["gradients"][step][LOGITS], merge_stages(found, step)[LOGITS]
        cut = w.ids.size
        assert not b[cut:].any()
        assert np.linalg.norm(b[:cut] - a[:cut]) < RELATIVE * np.linalg.norm(a)
    weights = [ProjectionMatrix.load(j.folder / FILE).weights for j in (one, job)]
    np.testing.assert_allclose(*weights, rtol=0, atol=RELATIVE)
    assert found[-1]["totals"][2]["kd/teacher"] == pytest.approx(expected["totals"][2]["kd/teacher"], rel=RELATIVE)

"""Teachers of mixed kinds in one run, on the real stack: layouts, weights, shared checkpoints, resuming."""

import json
import signal

import pytest
from launcher import launch
from tokenizer_zoo import write_folder

pytestmark = pytest.mark.usefixtures("nemo")

RELATIVE = 1e-5
STEPS = (0, 1)


@pytest.fixture(scope="module")
def mixed(world):
    """Beside the world's teacher (P-KL): one with a third tokenizer (H-KL), one with the student's own."""
    from nemo_xtoken.losses.base import ChunkLossConfig

    tokenizer = str(write_folder("qwen", world.root / "second_tokenizer"))
    second = world.job("second", side="teacher", tokenizer=tokenizer, seed=7, model={"num_layers": 2}, steps=1)
    own = world.job("own", seed=99, steps=1, model={"hidden_size": 64, "num_attention_heads": 4})
    paths = {}
    for job in (second, own):
        world.run(job.but(save_every=1))
        paths[job.name] = str(job.last)
    return {
        "teacher_config": {"weight": 0.7},
        "teachers": {
            "second": {
                "path": paths["second"],
                "loss": "h_kl",
                "weight": 0.5,
                "length": 80,
                "chunks": ChunkLossConfig("mean", 2.0),
            },
            "own": {"path": paths["own"], "loss": "same_tokenizer", "weight": 1.3, "length": 64},
        },
    }


@pytest.fixture(scope="module")
def course(world, mixed):
    """``course(ranks, **settings)``: ``(every rank's results of two steps, the history)``, once for each."""
    import jobs
    from watchers import Gradients, Totals

    done = {}

    def run(ranks=1, kind="static", **settings):
        key = repr((ranks, kind, sorted(settings.items())))
        if key not in done:
            job = world.distillation(
                f"several{len(done)}",
                steps=len(STEPS),
                optimizer="sgd",
                lr=0.3,
                distributed=False,
                watchers=(Totals(), Gradients(STEPS)),
                objective={"teacher_weights": kind},
                text={"pack": False},
                **mixed,
                **settings,
            )
            results = launch(jobs.train, job, ranks=ranks, folder=world.root / "logs" / job.name)
            history = [json.loads(line) for line in (job.folder / "history.jsonl").read_text().splitlines()]
            done[key] = results, [record for record in history if "ce" in record]
        return done[key]

    return run


@pytest.mark.parametrize(
    ("kind", "ranks", "layout"),
    [
        pytest.param("static", 2, {"tp": 2}, id="static-tp2"),
        pytest.param("static", 2, {"micro": 1}, id="static-dp2"),
        pytest.param("confidence", 1, {"micro": 1}, id="confidence-micro1"),
        pytest.param("confidence", 2, {"tp": 2, "sequence_parallel": True}, id="confidence-tp2"),
        pytest.param("confidence", 2, {"pp": 2, "micro": 1}, id="confidence-pp2"),
    ],
)
def test_a_layout_changes_nothing(course, kind, ranks, layout):
    from watchers import assert_same

    [one], _ = course(kind=kind, micro=4)
    others, _ = course(ranks, kind, **layout)
    assert_same(one, others, STEPS, RELATIVE)


def test_history_has_every_teacher(course):
    [one], history = course(kind="static", micro=4)
    names = {"teacher": 0.7, "second": 0.5, "own": 1.3}
    for record, totals in zip(history, one["totals"], strict=True):
        assert {name: record[f"alpha/{name}"] for name in names} == names
        for name in names:
            assert record[f"kd/{name}"] == pytest.approx(totals[f"kd/{name}"] / totals[f"chunks/{name}"], rel=1e-12)
            assert record[f"chunks/{name}"] == totals[f"chunks/{name}"] > 10
        assert record["kd"] == pytest.approx(sum(a * record[f"kd/{n}"] for n, a in names.items()), rel=1e-9)
        assert record["chunks"] == sum(record[f"chunks/{n}"] for n in names)
        assert not [key for key in record if key.startswith(("statistic", "score"))]
    assert history[0]["scale"] == 1
    assert history[1]["scale"] == pytest.approx(history[0]["ce"] / history[0]["kd"], rel=1e-9)


def test_weights_follow_from_the_step_before(course):
    import math

    _, history = course(kind="confidence", micro=4)
    given = {"teacher": 0.7, "second": 0.5, "own": 1.3}
    scores = dict.fromkeys(given, 0.0)
    for record in history:
        raw = {name: weight * math.exp(scores[name]) for name, weight in given.items()}
        for name in given:
            assert record[f"alpha/{name}"] == pytest.approx(raw[name] / sum(raw.values()), rel=1e-9)
        scores = {name: record[f"score/{name}"] for name in given}
        assert all(0 < score < 1 for score in scores.values())
        assert len(set(scores.values())) == 3


def test_teachers_of_one_checkpoint_share_a_model_and_each_teaches_as_alone(world):
    from watchers import Totals, Weights

    def run(name, **settings):
        job = world.distillation(name, steps=1, watchers=(Totals(), Weights()), **settings)
        [result] = world.run(job)
        return result["totals"][0], result["teacher_start"]

    both, models = run("shared", teachers={"hybrid": {"path": world.teacher, "loss": "h_kl", "weight": 0.5}})
    assert len(models) == 1
    for name, loss in (("teacher", "p_kl"), ("hybrid", "h_kl")):
        alone, _ = run(f"alone_{name}", loss=loss)
        for metric in ("kd", "chunks"):
            assert both[f"{metric}/{name}"] == pytest.approx(alone[f"{metric}/teacher"], rel=1e-6)
    assert both["ce"] == pytest.approx(alone["ce"], rel=1e-6)


def test_dynamic_per_micro_batch_scales_the_weighted_sum(world, mixed):
    from watchers import Totals

    job = world.distillation(
        "several_per_microbatch", steps=1, scale="dynamic_per_microbatch", micro=4, watchers=(Totals(),), **mixed
    )
    [result] = world.run(job)
    totals, used = result["totals"][0], result["used"][0]
    means = {name: totals[f"kd/{name}"] / totals[f"chunks/{name}"] for name in ("teacher", "second", "own")}
    kd = 0.7 * means["teacher"] + 0.5 * means["second"] + 1.3 * means["own"]
    assert used["kd"] == pytest.approx(kd, rel=1e-9)
    assert used["scale"] == pytest.approx(totals["ce"] / totals["tokens"] / kd, rel=1e-9)


def test_a_killed_run_goes_on_bit_for_bit(world, mixed):
    from test_resume import course, finish, interrupt, records
    from watchers import Weights

    settings = {**mixed, "objective": {"teacher_weights": "entropy"}}
    straight = course(world, "several_straight", watchers=(Weights(),), **settings)
    [result] = world.run(straight)
    job = course(world, "several_killed", **settings)
    [end] = interrupt(world, job, 1, step=5, number=signal.SIGKILL)
    assert end.status == -signal.SIGKILL
    weights, history, steps = finish(world, job, 1)
    assert steps == 2
    assert weights == [result["weights"]]
    assert history == records(straight)
    alphas = {record["alpha/second"] for record in history if "ce" in record}
    assert len(alphas) == 6

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
    from nemo_xtoken.report.learned_projection import report_learned

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
    "tp2": (2, {"tp": 2, "micro": 2}),
    "pp2": (2, {"pp": 2, "micro": 1}),
    "dp2": (2, {"micro": 1}),
    "cp2": (2, {"cp": 2, "micro": 1}),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout_changes_nothing(course, w, layout):
    from gradients import merge_stages

    one, [expected] = course(micro=4)
    ranks, parallel = LAYOUTS[layout]
    job, found = course(ranks, **parallel)
    assert [LOGITS in rank["gradients"][0] for rank in found] == [layout != "pp2"] * (ranks - 1) + [True]
    for step in STEPS:
        a, b = expected["gradients"][step][LOGITS], merge_stages(found, step)[LOGITS]
        cut = w.ids.size
        assert not b[cut:].any()
        assert np.linalg.norm(b[:cut] - a[:cut]) < RELATIVE * np.linalg.norm(a)
    weights = [ProjectionMatrix.load(j.folder / FILE).weights for j in (one, job)]
    np.testing.assert_allclose(*weights, rtol=0, atol=RELATIVE)
    assert found[-1]["totals"][2]["kd/teacher"] == pytest.approx(expected["totals"][2]["kd/teacher"], rel=RELATIVE)


def test_the_rate_is_its_own_and_follows_the_schedule(world, course):
    """Also where NeMo gives all parameters the first group's rate; no weight decay for the logits."""
    from watchers import Rates

    job, [one] = course(micro=4)
    assert [r[1000.0][0] for r in one["rates"]] == [300.0] * 3
    job = world.distillation("rates", steps=4, teacher_config={"learned": True}, watchers=(Rates(),))
    [seen] = launch(_train_scheduled, job, folder=world.root / "logs" / job.name)
    rates = [(r[1.0], r[10.0]) for r in seen["rates"]]
    assert len({student[0] for student, _ in rates}) > 2
    for student, w in rates:
        assert w[0] == pytest.approx(10 * student[0])
        assert w[1] == 0


def _train_scheduled(job):
    import jobs
    import nemo.lightning as nl

    optim = jobs.build(job)["optim"]
    optim.lr_scheduler = nl.lr_scheduler.CosineAnnealingScheduler(
        max_steps=6, warmup_steps=2, constant_steps=2, min_lr=1e-4
    )
    optim.no_weight_decay_cond = lambda name, parameter: name.endswith("bias")
    return jobs.train(job, optim=optim)


def test_it_does_not_shorten_the_students_steps(world):
    """Gradient clipping: the norm is the student's alone."""

    found = {}
    for name, settings in {"alone": {}, "with": {"learned": True, "learned_lr": 300.0}}.items():
        job = world.distillation(
            f"clipped_{name}", steps=1, optimizer="sgd", lr=0.3, distributed=False, teacher_config=settings
        )
        [found[name]] = launch(_train_clipped, job, folder=world.root / "logs" / job.name)
    alone, together = found["alone"], found["with"]
    assert together["norm of w"] > together["norm"] > 0.02
    assert together["norm"] == pytest.approx(alone["norm"], rel=1e-5)


def _train_clipped(job):
    import jobs

    arguments = jobs.build(job)
    arguments["optim"].config.clip_grad = 0.02
    seen = {}

    class Norms(jobs.Watcher):
        def on_train_start(self, trainer, model):
            [optimizer] = trainer.optimizers
            step = optimizer.mcore_optimizer.step

            def watched():
                if model.learned is not None:
                    gradient = model.learned.of("teacher").logits.main_grad
                    seen["norm of w"] = float(gradient.mul_(1000).norm())
                done = step()
                seen["norm"] = float(done[1])
                return done

            optimizer.mcore_optimizer.step = watched

    arguments["trainer"].callbacks.append(Norms())
    jobs.train(job, **arguments)
    return seen


@pytest.mark.parametrize("layout", ["one", "tp2"])
def test_resumed_after_a_kill_it_ends_the_same(world, layout):
    import signal

    from test_resume import LAYOUTS, STEPS, course, finish, interrupt, records
    from watchers import Weights

    ranks, settings = LAYOUTS[layout]
    settings = settings | {"teacher_config": {"learned": True}, "save_best": False}
    straight = course(world, f"learned_straight_{layout}", watchers=(Weights(),), **settings)
    want = [r["weights"] for r in world.run(straight, ranks)]
    job = course(world, f"learned_killed_{layout}", **settings)
    interrupt(world, job, ranks, step=5, number=signal.SIGKILL)
    assert not (job.folder / FILE).exists()
    weights, history, steps = finish(world, job, ranks)
    assert steps == STEPS - 4
    assert weights == want
    assert history == records(straight)
    assert (job.folder / FILE).read_bytes() == (straight.folder / FILE).read_bytes()


def test_a_checkpoint_of_one_rank_goes_on_on_two(world, course, w):
    """The optimizer's state for it as well: Adam, whose next step depends on all before."""
    import jobs
    from watchers import Totals

    settings = {"distributed": False, "text": {"pack": False}, "teacher_config": {"learned": True}, "micro": 2}
    whole = world.distillation("resharded_straight", steps=4, save_every=2, **settings)
    first = world.distillation("resharded", steps=2, save_every=2, **settings)
    world.run(whole)
    world.run(first)
    found = launch(
        jobs.train,
        first.but(steps=4, tp=2, watchers=(Totals(),)),
        ranks=2,
        folder=world.root / "logs" / "resharded_on_two",
    )
    assert len(found[0]["totals"]) == 2
    a, b = (ProjectionMatrix.load(j.folder / FILE) for j in (whole, first))
    assert b.rule["learned_steps"] == 4
    assert np.abs(a.weights - w.weights).max() > 5e-3
    # where a gradient is rounding alone, Adam's step is as well
    assert (np.abs(a.weights - b.weights) > 1e-4).mean() < 1e-3


@pytest.fixture(scope="module")
def adam(world):
    """A run with Adam, the usual case: ``(job, results)``."""
    from watchers import Weights

    job = world.distillation("learned_adam", save_every=3, teacher_config={"learned": True}, watchers=(Weights(),))
    return job, world.run(job)


def test_its_checkpoint_is_a_plain_nemo_model_with_w_beside_it(world, adam):
    job, _ = adam
    saved = in_rank(world, _saved, job.last)
    own = {name: shape for name, shape in saved.items() if not name.startswith("optimizer.")}
    assert len(own) == 9 + 1
    [plain] = launch(_load_plain, job.last, folder=world.root / "logs" / "plain_learned")
    assert plain


def _start_weights(job):
    """Digests of the student and logits that a run starts with, by parameter."""
    import jobs
    from megatron.core.utils import unwrap_model

    found = {}

    class Look(jobs.Watcher):
        def on_train_start(self, trainer, model):
            for name, p in unwrap_model(model.module).named_parameters():
                found[name] = p.detach().float().numpy().copy()

        def on_train_end(self, trainer, model):
            for name, p in unwrap_model(model.module).named_parameters():
                found[f"end {name}"] = p.detach().float().numpy().copy()

    jobs.train(job.but(watchers=(*job.watchers, Look())))
    return found


def test_runs_with_and_without_it_start_from_one_another(world, adam, w):
    job, _ = adam
    end = in_rank(world, _start_weights, job.but(name="learned_adam_again"))
    body = "output_layer.weight"
    plain = in_rank(world, _start_weights, world.distillation("plain_from_learned", start=str(job.last), steps=1))
    assert LOGITS not in plain
    np.testing.assert_array_equal(plain[body], end[f"end {body}"])
    again = in_rank(
        world,
        _start_weights,
        world.distillation("learned_from_learned", start=str(job.last), steps=1, teacher_config={"learned": True}),
    )
    np.testing.assert_array_equal(again[body], end[f"end {body}"])
    np.testing.assert_array_equal(again[LOGITS], end[LOGITS])  # at W, as every run starts
    assert not np.array_equal(end[LOGITS], end[f"end {LOGITS}"])


def test_a_later_run_uses_the_file(world, adam, vocabularies):
    from watchers import Totals

    job, _ = adam
    kd = {}
    for name, config in {
        "built": {},
        "used": {"projection": str(job.folder / FILE)},
        "learned_on": {"projection": str(job.folder / FILE), "learned": True},
    }.items():
        later = world.distillation(f"later_{name}", steps=1, teacher_config=config, watchers=(Totals(),))
        [seen] = world.run(later)
        kd[name] = seen["totals"][0]["kd/teacher"]
    assert kd["used"] != pytest.approx(kd["built"], rel=1e-4)
    assert kd["learned_on"] == pytest.approx(kd["used"], rel=1e-6)


def test_another_run_in_its_folder_is_refused(world, adam):
    import jobs

    job, _ = adam
    for change, message in (
        ({"teacher_config": {}}, "no learned W"),
        ({"teacher_config": {"learned": True, "learned_lr": 0.02}}, "learned_lr"),
    ):
        [end] = start(jobs.train, job.but(steps=8, **change), folder=world.root / "logs" / "other_learned")
        assert isinstance(end.error, InputError), end.log[-3000:]
        assert message in str(end.error)
    from nemo_xtoken.projection.build import ProjectionRule

    rule = {"learned": True, "rule": ProjectionRule(beta=0.8)}
    [end] = start(jobs.train, job.but(steps=8, teacher_config=rule), folder=world.root / "logs" / "other_learned")
    assert isinstance(end.error, InputError), end.log[-3000:]
    assert "another W" in str(end.error)
    plain = world.distillation("plain_run", steps=2, save_every=2)
    world.run(plain)
    [end] = start(
        jobs.train, plain.but(steps=4, teacher_config={"learned": True}), folder=world.root / "logs" / "other_learned"
    )
    assert isinstance(end.error, InputError), end.log[-3000:]
    assert "no learned W" in str(end.error)


def _half_precision(job):
    import jobs
    import nemo.lightning as nl

    plugin = nl.MegatronMixedPrecision
    nl.MegatronMixedPrecision = lambda precision: plugin(precision="bf16-mixed")  # in this fork alone
    arguments = jobs.build(job)
    arguments["optim"].config.bf16 = True
    seen = {}

    class Look(jobs.Watcher):
        def on_train_end(self, trainer, model):
            seen.update({name: str(p.dtype) for name, p in model.module.named_parameters()})

    arguments["trainer"].callbacks.append(Look())
    jobs.train(job, **arguments)
    return seen


def test_in_bfloat16_the_logits_stay_float32(world, w):
    job = world.distillation("learned_bf16", steps=2, save_every=2, teacher_config={"learned": True})
    in_rank(world, _half_precision, job)
    seen = in_rank(world, _half_precision, job.but(steps=3))  # goes on from the checkpoint
    kinds = {name.endswith(LOGITS): kind for name, kind in seen.items()}
    assert kinds == {True: "torch.float32", False: "torch.bfloat16"}
    learned = ProjectionMatrix.load(job.folder / FILE)
    assert learned.rule["learned_steps"] == 3
    assert 1e-3 < np.abs(learned.weights - w.weights).max() < 0.1
    [end] = start(_half_precision, job.but(name="bf16", distributed=False), folder=world.root / "logs" / "bf16")
    assert "use_distributed_optimizer" in str(end.error)


@pytest.mark.parametrize(
    ("settings", "optim", "message"),
    [
        ({"loss": "h_kl"}, {}, "loss=p_kl"),
        ({"teacher_config": {"learned": True, "learned_lr": 0.0}}, {}, "above 0"),
        ({"lr": 0.0}, {}, "above 0 for the student"),
        ({}, {"lr_mult": 2.0}, "lr_mult"),
        ({}, {"scale_lr_cond": lambda name, _: "output_layer" in name}, "lr_mult"),
    ],
)
def test_settings_that_cannot_be(world, settings, optim, message):
    job = world.distillation("refused", **{"teacher_config": {"learned": True}, **settings})
    [end] = start(_train_with, job, optim, folder=world.root / "logs" / "refused")
    assert isinstance(end.error, InputError), end.log[-3000:]
    assert message in str(end.error)
    assert not job.folder.exists()


def _train_with(job, settings):
    import jobs

    optim = jobs.build(job)["optim"]
    for name, value in settings.items():
        setattr(optim, name, value)
    jobs.train(job, optim=optim)

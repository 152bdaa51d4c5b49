"""A loss that scores some chunks only divides by these, in every layout; the public P-KL is one of a micro-batch."""

import pytest
from launcher import launch

pytestmark = pytest.mark.usefixtures("nemo")

RELATIVE = 1e-5
STEPS = (0, 2)


@pytest.fixture(scope="module")
def course(world):
    """``course(name, ranks, **settings)``: every rank's results of three steps."""
    import jobs
    from watchers import Gradients, Totals, Watcher

    class Counts(Watcher):
        """``counts``: the chunks that each step divides by."""

        def on_train_batch_end(self, trainer, pl_module, *_):
            self.result.setdefault("counts", []).append(pl_module.objective.counts.chunks[0])

    def run(name, ranks=1, options=None, **settings):
        from nemo_xtoken.losses.registry import DivergenceOptions

        job = world.distillation(
            f"selection_{name}",
            optimizer="sgd",
            lr=0.3,
            distributed=False,
            watchers=(Totals(), Gradients(STEPS), Counts()),
            teacher_config={"options": DivergenceOptions(**(options or {}))},
            **settings,
        )
        return launch(jobs.train, job, ranks=ranks, folder=world.root / "logs" / job.name)

    return run


def test_strict_1to1_counts_its_own_chunks_in_every_layout(course):
    from watchers import assert_same

    [every] = course("p_kl", micro=4)
    [one] = course("one", micro=4, loss="strict_1to1")
    others = {
        "dp2": course("dp2", 2, micro=1, loss="strict_1to1"),
        "pp2": course("pp2", 2, pp=2, micro=1, loss="strict_1to1"),
        "tp2": course("tp2", 2, tp=2, micro=2, loss="strict_1to1"),
        "cp2": course("cp2", 2, cp=2, micro=2, loss="strict_1to1"),
    }
    for totals, counted, whole in zip(one["totals"], one["counts"], every["totals"], strict=True):
        assert totals["chunks/teacher"] == counted
        assert 0.2 * whole["chunks/teacher"] < counted < 0.9 * whole["chunks/teacher"]
    for results in others.values():
        assert_same(one, results, STEPS, RELATIVE)
        assert all(result["counts"] == one["counts"] for result in results)


def test_the_public_p_kl_depends_on_the_micro_batch_and_on_no_rank(course):
    """Its one set of tokens is that of a micro-batch, as it is there; ranks do not change it."""
    from watchers import assert_same

    compat = {"loss": "nrl_p_kl", "options": {"top_k": 40}}
    [one] = course("compat_one", micro=2, **compat)
    assert_same(one, course("compat_tp2", 2, tp=2, micro=2, **compat), STEPS, RELATIVE)
    assert_same(one, course("compat_dp2", 2, micro=2, **compat), STEPS, RELATIVE)
    [smaller] = course("compat_micro1", micro=1, **compat)
    assert smaller["totals"][0]["kd/teacher"] != pytest.approx(one["totals"][0]["kd/teacher"], rel=1e-4)

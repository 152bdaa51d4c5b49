"""Loss, gradients and counts do not depend on the parallel layout or the micro-batch size, on the real stack."""

import pytest
from launcher import launch

pytestmark = pytest.mark.usefixtures("nemo")

RELATIVE = 1e-5
STEPS = (0, 1)  # the first, and one whose dynamic scale comes from a step before
PACKED = {"pack": True}
UNPACKED = {"pack": False}  # documents of different lengths: micro-batches and ranks with different numbers of tokens


@pytest.fixture(scope="module")
def course(world):
    """``course(ranks, **settings)``: every rank's results of two steps; each set of settings runs once."""
    import jobs
    from watchers import Gradients, Totals

    done = {}

    def run(ranks=1, tied=False, experts=False, **settings):
        key = repr((ranks, tied, experts, sorted(settings.items())))
        if key not in done:
            models = {"start": world.tied if tied else world.student}
            if experts:
                models = world.with_experts
            if settings.get("loss") == "prefix_kl":
                assert world.spelled  # once, not in every rank
            job = world.distillation(
                f"layout{len(done)}",
                **models,
                tied=tied,
                steps=len(STEPS),
                optimizer="sgd",  # Adam turns rounding into steps where a gradient is about 0
                lr=0.3,
                distributed=False,
                watchers=(Totals(), Gradients(STEPS)),
                **{"text": UNPACKED, **settings},
            )
            done[key] = launch(jobs.train, job, ranks=ranks, folder=world.root / "logs" / job.name)
        return done[key]

    return run


LAYOUTS = {
    "micro1": (1, {"micro": 1}),
    "tp2": (2, {"tp": 2, "micro": 2}),
    "tp2_sequence_parallel": (2, {"tp": 2, "micro": 2, "sequence_parallel": True}),
    "pp2": (2, {"pp": 2, "micro": 1}),
    "dp2": (2, {"micro": 1}),
    "dp2_one_batch": (2, {"micro": 2}),
    "ep2": (2, {"ep": 2, "micro": 2}),
    "tp2_ep2": (4, {"tp": 2, "ep": 2, "sequence_parallel": True, "micro": 1}),
    "cp2_ep2": (2, {"cp": 2, "ep": 2, "micro": 2}),
    "cp2": (2, {"cp": 2, "micro": 2}),
    "cp2_whole": (2, {"cp": 2, "micro": 4}),
    "tp2_cp2": (4, {"tp": 2, "cp": 2, "sequence_parallel": True, "micro": 4}),
    "pp2_cp2": (4, {"pp": 2, "cp": 2, "micro": 1}),
    "dp2_cp2": (4, {"cp": 2, "micro": 1}),
}
CASES = [
    *(pytest.param(name, {}, id=name) for name in LAYOUTS if name != "cp2_whole" and "ep2" not in name),
    *(pytest.param(name, {"experts": True}, id=f"{name}-experts") for name in LAYOUTS if "ep2" in name),
    pytest.param("cp2_whole", {"scale": "dynamic_per_microbatch"}, id="cp2-dynamic_per_microbatch"),
    # Every loss and merge in every layout: unit/losses/test_invariance.py.  Here one without W, and one that selects.
    pytest.param("tp2", {"merge": "first"}, id="tp2-first"),
    *(pytest.param("tp2", {"loss": name}, id=f"tp2-{name}") for name in ("prefix_kl", "uld")),
    pytest.param("tp2", {"tied": True}, id="tp2-tied"),
    pytest.param("pp2", {"tied": True}, id="pp2-tied"),
    *(pytest.param(name, {"text": PACKED}, id=f"{name}-packed") for name in ("micro1", "dp2_cp2")),
    *(
        pytest.param(name, {"text": PACKED, "lengths": True}, id=f"{name}-packed-lengths")
        for name in ("micro1", "tp2_cp2", "pp2_cp2")
    ),
]


@pytest.mark.parametrize(("layout", "settings"), CASES)
def test_a_layout_changes_nothing(course, layout, settings):
    from watchers import assert_same

    [one] = course(micro=4, **{name: value for name, value in settings.items() if name != "lengths"})
    ranks, parallel = LAYOUTS[layout]
    others = course(ranks, **parallel, **settings)
    assert_same(one, others, STEPS, RELATIVE)


@pytest.mark.parametrize(("tied", "name"), [(False, "output_layer.weight"), (True, "embedding.word_embeddings.weight")])
def test_the_output_layers_gradient_goes_past_autograd(course, monkeypatch, tied, name):
    from watchers import assert_same

    [one] = course(micro=4, tied=tied)
    assert one["added"] == [name]
    monkeypatch.setattr("nemo_xtoken.training.lessons.main_grad_of", lambda *_: None)
    [other] = course(micro=2, tied=tied)
    assert other["added"] == []
    assert_same(one, [other], STEPS, RELATIVE)


#: The student's layout, and what differs in the teacher's.
TEACHER_LAYOUTS = {
    "tp1_teacher_tp2": (2, {"micro": 1}, {"tensor_model_parallel_size": 2}),
    "tp2_teacher_tp1": (2, {"tp": 2, "micro": 4}, {"tensor_model_parallel_size": 1}),
    "pp2_teacher_cp2": (
        2, {"pp": 2, "micro": 1}, {"pipeline_model_parallel_size": 1, "context_parallel_size": 2},
    ),
    "cp2_teacher_pp2": (
        2, {"cp": 2, "micro": 2}, {"context_parallel_size": 1, "pipeline_model_parallel_size": 2},
    ),
    "tp2_dp2_teacher_tp2_pp2": (
        4, {"tp": 2, "sequence_parallel": True, "micro": 1}, {"pipeline_model_parallel_size": 2},
    ),
    "cp2_dp2_teacher_tp4": (
        4, {"cp": 2, "micro": 1}, {"tensor_model_parallel_size": 4, "context_parallel_size": 1},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TEACHER_LAYOUTS)
def test_a_teacher_in_a_layout_of_its_own(course, name):
    from watchers import assert_same

    ranks, parallel, own = TEACHER_LAYOUTS[name]
    [one] = course(micro=4)
    assert_same(one, course(ranks, **parallel, teacher_config=own), STEPS, RELATIVE)


def test_experts_of_the_teacher_alone(course, world):
    """A dense student has no expert parallelism; the teacher's experts are spread over the student's ranks."""
    from watchers import assert_same

    teacher = {"teacher": world.with_experts["teacher"]}
    [one] = course(micro=4, **teacher)
    others = course(2, micro=1, **teacher, teacher_config={"expert_model_parallel_size": 2})
    assert_same(one, others, STEPS, RELATIVE)


def test_bytes_travel_between_tensor_parallel_ranks_alone(course):
    dense = {name: layout for name, layout in LAYOUTS.items() if "ep2" not in name}
    sent = {n: course(ranks, **kw)[0]["totals"][0]["exchange_bytes/teacher"] for n, (ranks, kw) in dense.items()}
    assert all((value > 0) == name.startswith("tp2") for name, value in sent.items())
    assert sent["tp2"] == sent["tp2_sequence_parallel"]


def test_the_batch_puts_the_layouts_to_a_test(course):
    """What the tests above stand on: the scale moves, ranks have different numbers of chunks, merges differ."""
    [one] = course(micro=4)
    scales = [used["scale"] for used in one["used"]]
    assert scales[0] == 1
    assert len(set(scales)) == len(STEPS)
    assert len({total["tokens"] for total in one["totals"]}) == len(STEPS)
    assert all(total["chunks/teacher"] < total["tokens"] for total in one["totals"])
    merges = [course(micro=4, **({"merge": m} if m else {}))[0]["totals"][0] for m in ("", "mean", "first")]
    assert len({round(m["kd/teacher"], 3) for m in merges}) == 3
    assert len({m["ce"] for m in merges}) == 1

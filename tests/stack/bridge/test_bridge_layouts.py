"""Loss, gradients and counts do not depend on the parallel layout or the micro-batch size, under Megatron-Bridge.

The matrix of ``plugin/test_layouts.py``, which has the same tolerances under NeMo 2.
"""

import pytest

pytestmark = pytest.mark.usefixtures("megatron", "bridge")

RELATIVE, IN_FLOAT64 = 1e-5, 1e-11
STEPS = 3
KEPT = (1, 3)  # the first, and one whose dynamic scale comes from a step before
COUNTS = ("tokens", "chunks", "chunks/teacher", "chunks/large", "chunks/same")
PACKED = {"text": {"pack": True}}
TWO = {
    "teachers": {
        "large": {"path": "teacher", "loss": "p_kl", "weight": 0.8},
        "same": {"path": "other", "loss": "same_tokenizer", "weight": 0.2},
    }
}
EXPERTS = {"start": "experts", "learn": "teacher_of_experts"}


def _strategy(tp=1, pp=1, cp=1, ep=1, sp=False):
    return {
        "tensor_model_parallel_size": tp,
        "pipeline_model_parallel_size": pp,
        "context_parallel_size": cp,
        "expert_model_parallel_size": ep,
        "sequence_parallel": sp,
    }


#: Ranks, samples of a micro-batch, the student's layout.
LAYOUTS = {
    "micro-batches": (1, 1, _strategy()),
    "tensor": (2, 2, _strategy(tp=2)),
    "tensor, with sequence": (2, 2, _strategy(tp=2, sp=True)),
    "pipeline": (2, 1, _strategy(pp=2)),
    "context": (2, 2, _strategy(cp=2)),
    "data": (2, 1, _strategy()),
    "experts": (2, 2, _strategy(ep=2)),
    "tensor and experts": (4, 1, _strategy(tp=2, ep=2, sp=True)),
    "context and experts": (2, 2, _strategy(cp=2, ep=2)),
    "tensor and context": (4, 4, _strategy(tp=2, cp=2, sp=True)),
    "pipeline and context": (4, 1, _strategy(pp=2, cp=2)),
    "data and context": (4, 1, _strategy(cp=2)),
    "tensor and data": (4, 1, _strategy(tp=2, sp=True)),
}
#: The student's layout, and what differs in the teacher's.
OF_TEACHERS = {
    "tensor of the teacher": ("data", {"tensor_model_parallel_size": 2}),
    "tensor of the student": ("tensor", {"tensor_model_parallel_size": 1}),
    "pipeline of the student, context of the teacher": (
        "pipeline", {"pipeline_model_parallel_size": 1, "context_parallel_size": 2},
    ),
    "context of the student, pipeline of the teacher": (
        "context", {"context_parallel_size": 1, "pipeline_model_parallel_size": 2},
    ),
    "tensor of both, pipeline of the teacher": ("tensor and data", {"pipeline_model_parallel_size": 2}),
    "context of the student, tensor of the teacher": (
        "data and context", {"tensor_model_parallel_size": 4, "context_parallel_size": 1},
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def course(bridge_world):
    """``course(ranks, **settings)``: every rank's records and gradients of three steps; each run once."""
    done = {}

    def run(ranks=1, **settings):
        key = repr((ranks, sorted(settings.items())))
        if key not in done:
            settings = {"sgd": True, "steps": STEPS, "keep": KEPT, "text": {"pack": False}, **settings}
            done[key] = bridge_world.courses(f"layout{len(done)}", ranks, **settings)
        return done[key]

    return run


def _assert_same(one, others, relative=RELATIVE):
    from gradients import assert_same_gradients

    for other in others:
        steps = [[r for r in result["records"] if "ce" in r] for result in (one, other)]
        assert [len(records) for records in steps] == [STEPS, STEPS]
        for expected, found in zip(*steps, strict=True):
            for name in {"ce", "kd", "scale", *COUNTS} & expected.keys():
                wanted = expected[name] if name in COUNTS else pytest.approx(expected[name], rel=relative)
                assert found[name] == wanted, (name, expected["step"])
    assert_same_gradients(one, others, KEPT, relative)


CASES = [
    *(pytest.param(name, {}, id=name) for name in LAYOUTS if "experts" not in name),
    *(pytest.param(name, EXPERTS, id=name) for name in LAYOUTS if "experts" in name),
    *(pytest.param(n, PACKED, id=f"{n}, packed") for n in ("micro-batches", "context", "data and context")),
    *(
        pytest.param(n, {**PACKED, "lengths": True}, id=f"{n}, packed by lengths")
        for n in ("micro-batches", "tensor and context", "pipeline and context")
    ),
    *(pytest.param(n, TWO, id=f"{n}, two teachers") for n in ("tensor, with sequence", "pipeline and context")),
    *(pytest.param(n, {"start": "tied"}, id=f"{n}, tied") for n in ("tensor", "pipeline")),
    *(pytest.param("tensor", {"teacher": {"loss": loss}}, id=f"tensor, {loss}") for loss in ("prefix_kl", "h_kl")),
    # Its gradient jumps where two sorted values are equal, which in float32 rounding decides: unit/losses/test_uld.py.
    pytest.param("tensor", {"teacher": {"loss": "uld"}, "double": True}, id="tensor, uld in float64"),
]


@pytest.mark.parametrize(("layout", "settings"), CASES)
def test_a_layout_changes_nothing(course, layout, settings):
    ranks, micro, strategy = LAYOUTS[layout]
    [one] = course(micro=4, **{name: value for name, value in settings.items() if name != "lengths"})
    others = course(ranks, micro=micro, strategy=strategy, **settings)
    _assert_same(one, others, IN_FLOAT64 if settings.get("double") else RELATIVE)


@pytest.mark.parametrize("name", OF_TEACHERS)
def test_a_teacher_in_a_layout_of_its_own(course, name):
    layout, own = OF_TEACHERS[name]
    ranks, micro, strategy = LAYOUTS[layout]
    [one] = course(micro=4)
    _assert_same(one, course(ranks, micro=micro, strategy=strategy, teacher=own))


def test_experts_of_the_teacher_alone(course):
    """A dense student has no expert parallelism; the teacher's experts are spread over the student's ranks."""
    ranks, micro, strategy = LAYOUTS["data"]
    learn = {"learn": "teacher_of_experts"}
    [one] = course(micro=4, **learn)
    others = course(ranks, micro=micro, strategy=strategy, teacher={"expert_model_parallel_size": 2}, **learn)
    _assert_same(one, others)


def test_the_batch_puts_the_layouts_to_a_test(course):
    """What the tests above stand on: the scale moves, and steps have different numbers of tokens and chunks."""
    [one] = course(micro=4)
    steps = [record for record in one["records"] if "ce" in record]
    assert steps[0]["scale"] == 1
    for name in ("scale", "tokens", "chunks"):
        assert len({record[name] for record in steps}) == STEPS, name

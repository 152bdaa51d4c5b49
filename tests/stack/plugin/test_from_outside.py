"""A loss and a teacher's source that this package knows nothing of teach on the real stack, in any layout."""

import pytest
from launcher import launch

pytestmark = pytest.mark.usefixtures("nemo")

RELATIVE = 1e-5
STEPS = (0, 2)
LAYOUTS = {
    "dp2_micro1": (2, {"micro": 1}),
    "tp2": (2, {"tp": 2, "micro": 2, "sequence_parallel": True}),
    "pp2": (2, {"pp": 2, "micro": 1}),
    "cp2": (2, {"cp": 2, "micro": 2}),
}


@pytest.fixture(scope="module")
def course(world, tmp_path_factory):
    """``course(name, ranks, **settings)``: every rank's results of three steps."""
    import jobs
    from outside import FOLDER
    from watchers import Gradients, Totals

    folder = tmp_path_factory.mktemp("states")

    def run(name, ranks=1, **settings):
        job = world.distillation(
            f"outside_{name}",
            optimizer="sgd",
            lr=0.3,
            distributed=False,
            watchers=(Totals(), Gradients(STEPS)),
            **{"text": {"pack": True}, **settings},
        )
        logs = world.root / "logs" / job.name
        return launch(jobs.train, job, ranks=ranks, folder=logs, env={FOLDER: str(folder)})

    return run


@pytest.fixture(scope="module")
def recorded(course):
    with pytest.raises(AssertionError, match="no states for teacher"):  # a source's own check, before anything is built
        course("early", teacher_config={"source": "outside:Replayed"})
    [one] = course("recorded", micro=4, teacher_config={"source": "outside:Recorded"})
    return one


def test_recording_changes_nothing(course, recorded):
    from watchers import assert_same

    assert_same(recorded, course("colocated", micro=4), STEPS, 1e-12)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_states_of_another_run_teach_in_any_layout(course, recorded, layout):
    """They are found by text and place, whatever the micro-batch; no teacher's model is loaded."""
    from watchers import assert_same

    ranks, settings = LAYOUTS[layout]
    others = course(f"replayed_{layout}", ranks, teacher_config={"source": "outside:Replayed"}, **settings)
    assert_same(recorded, others, STEPS, RELATIVE)


def test_a_loss_from_outside_teaches_in_any_layout(course):
    from watchers import assert_same

    [one] = course("hellinger", micro=4, loss="outside:Hellinger")
    assert one["totals"][0]["kd/teacher"] > 0
    ranks, settings = LAYOUTS["tp2"]
    assert_same(one, course("hellinger_tp2", ranks, loss="outside:Hellinger", **settings), STEPS, RELATIVE)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("elsewhere", "teacher.source='elsewhere'"),
        ("outside:Nothing", "cannot be imported"),
        ("outside:Hellinger", "a subclass of nemo_xtoken.teachers.contract.Teacher"),
        ("colocated", "whose layout is"),
    ],
)
def test_a_source_that_cannot_be(source, message):
    from types import SimpleNamespace

    from nemo_xtoken.errors import InputError
    from nemo_xtoken.run.layout import ParallelSizes
    from nemo_xtoken.teachers.teacher_sources import check_source, open_teacher

    host = SimpleNamespace(
        label="teacher",
        sizes=ParallelSizes(2),
        student_sizes=ParallelSizes(),
        settings=SimpleNamespace(ahead=False),
    )

    def teach():
        check_source(None, source, "teacher")
        open_teacher(host, source)

    with pytest.raises(InputError) as found:
        teach()
    assert message in str(found.value)

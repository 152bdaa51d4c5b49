"""A teacher in processes of its own teaches as one beside the student does, and its faults lose nothing."""

import errno
import functools
import signal

import pytest
import torch
from launcher import launch, start

from nemo_xtoken.weights.checkpoint_names import steps_of

pytestmark = pytest.mark.usefixtures("nemo")
pytest.importorskip("zmq")

RELATIVE = 1e-5
STEPS = (0, 2)
TEXT = {"text": {"pack": True}}


@pytest.fixture(scope="module")
def course(world):
    """``course(name, ranks, **settings)``: every rank's results of three steps."""
    import jobs
    from watchers import Gradients, Totals, Weights

    def run(name, ranks=1, by=launch, **settings):
        job = world.distillation(
            f"remote_{name}",
            watchers=(Totals(), Gradients(STEPS), Weights()),
            **{"optimizer": "sgd", "lr": 0.3, "distributed": False, **TEXT, **settings},
        )
        return by(jobs.train, job, ranks=ranks, folder=world.root / "logs" / job.name)

    return run


@pytest.fixture(scope="module")
def colocated(course):
    [one] = course("colocated", micro=1)
    return one


@pytest.fixture
def service(world, tmp_path):
    from service import Service

    made = Service(tmp_path / "service", world.teacher)
    yield made
    made.close()


def remote(service, **settings):
    from nemo_xtoken.teachers.source_settings import ServiceConfig

    return {"teacher_config": {"source": "remote", "service": ServiceConfig(str(service.folder), **settings)}}


def test_in_every_layout_and_from_two_replicas(course, colocated, service):
    """One replica over two tensor-parallel ranks, one over two pipeline stages; a student alone sees the same bits
    from a replica that computes as the teacher beside it does."""
    from watchers import assert_same

    service.start("one")
    [one] = course("one", micro=1, **remote(service))
    assert one["weights"] == colocated["weights"]
    service.signal("one", signal.SIGTERM)
    service.start("tp2", 2, tp=2, sequence_parallel=True)
    service.start("pp2", 2, pp=2)
    for name, settings in {
        "tp2": {"tp": 2, "sequence_parallel": True},
        "pp2": {"pp": 2, "micro": 1},
        "cp2": {"cp": 2},
        "dp2": {"micro": 1},
    }.items():
        assert_same(colocated, course(name, 2, **settings, **remote(service)), STEPS, RELATIVE)


def after_steps(folder, steps, action):
    """For ``start(when=..)``: does something once a run has written so many records."""

    def when(_pids):
        history = folder / "history.jsonl"
        if not history.exists() or sum('"kd"' in line for line in history.read_text().splitlines()) < steps:
            return False
        action()
        return True

    return when


def test_a_replica_that_is_killed_or_stands_still_changes_nothing(course, world, service):
    long = {"steps": 8, "micro": 1, "batch": 4}
    [expected] = course("undisturbed", **long)
    service.start("stays")
    for fault in (signal.SIGKILL, signal.SIGSTOP):
        name = f"disturbed_{fault.name}"
        service.start("falls")
        act = after_steps(world.root / "runs" / f"remote_{name}", 1, lambda n=fault: service.signal("falls", n))
        [ended] = course(name, by=with_when(act), **long, **remote(service, silent=1.0, slow=5.0))
        assert ended.status == 0, ended.log[-3000:]
        assert ended.result["weights"] == expected["weights"]


def test_without_a_service_the_run_ends_with_a_checkpoint_and_goes_on_when_it_is_back(course, world, service):
    long = {"steps": 8, "micro": 1, "batch": 4, "save_every": 100, "optimizer": "adam"}  # sgd cannot be resumed
    [expected] = course("uninterrupted", 2, **long)[:1]
    for name in ("first", "second"):
        service.start(name, 2, pp=2)
    folder = world.root / "runs" / "remote_interrupted"
    act = after_steps(folder, 2, lambda: [service.signal(name, signal.SIGKILL) for name in ("first", "second")])
    impatient = long | remote(service, silent=1.0, lost=4.0)
    ended = course("interrupted", 2, by=with_when(act), **impatient)
    assert [end.status for end in ended] == [75, 75]
    assert not any("Traceback" in end.log for end in ended)
    [last] = folder.glob("checkpoints/step_*")
    assert 3 <= steps_of(last) <= 8
    service.start("third", 2, pp=2)
    again = course("interrupted", 2, **long, **remote(service))
    assert again[0]["weights"] == expected["weights"]
    assert len(again[0]["totals"]) < 8


def with_when(act):
    """`start` with an action in the midst of the run."""

    def run(*arguments, **settings):
        return start(*arguments, when=act, **settings)

    return run


def test_another_teacher_is_refused_before_a_step(course, service):
    service.start("other", dtype="bf16")
    with pytest.raises(AssertionError, match="another teacher: dtype bfloat16 where float32 is wanted"):
        course("refused", micro=1, **remote(service))


@pytest.mark.parametrize("disk", ["room", "full"])
def test_what_has_come_is_kept_and_a_second_run_needs_no_service(course, colocated, service, tmp_path, disk):
    from watchers import assert_same

    from nemo_xtoken.teachers.source_settings import CacheConfig, ServiceConfig

    folder = tmp_path / "states"
    config = {
        "source": "remote+cached",
        "service": ServiceConfig(str(service.folder)),
        "cache": CacheConfig(str(folder)),
    }
    service.start("one")
    if disk == "full":  # nothing can be written any more when the first file is
        [one] = course("kept_full", micro=1, by=on_a_full_disk(folder), teacher_config=config)
        assert one["weights"] == colocated["weights"]
        return
    [one] = course("kept", micro=1, teacher_config=config)
    assert one["weights"] == colocated["weights"]
    service.signal("one", signal.SIGKILL)
    assert_same(colocated, course("kept_again", 2, micro=1, teacher_config=config), STEPS, RELATIVE)


def test_a_second_epoch_asks_for_nothing(course, service, world, tmp_path):
    """Each position of the text was computed once, though each is read twice."""
    from nemo_xtoken.teachers.source_settings import CacheConfig, ServiceConfig
    from nemo_xtoken.teachers.store.state_store import StateStore

    config = {
        "source": "remote+cached",
        "service": ServiceConfig(str(service.folder)),
        "cache": CacheConfig(str(tmp_path / "states")),
    }
    service.start("one")
    text = {"pack": True, "paths": [f"{world.root}/text/0*.txt"]}  # of ten documents
    course("epochs", micro=1, steps=8, text=text, teacher_config=config)
    service.signal("one", signal.SIGTERM)
    service.end("one", 60)
    kept, lines = StateStore(tmp_path / "states", None), (service.folder / "one-0.log").read_text().splitlines()
    assert lines[-1] == f"{kept.tokens} tokens"
    assert len(kept) < 8 * 4  # samples, and their pieces: some were read again


def test_a_service_fills_a_folder(service, world, tmp_path):
    """As a teacher in the command's own processes, bit by bit, here by two processes without its model."""
    from states import fill_states

    from nemo_xtoken.errors import InputError
    from nemo_xtoken.run.layout import ParallelSizes
    from nemo_xtoken.teachers.store.state_store import StateStore
    from nemo_xtoken.training.alone.teacher_world import TeacherPlan

    service.start("one")
    stores = []
    for name, ranks, arguments in (("own", 1, {}), ("served", 2, {"service": service.folder})):
        job = world.distillation(f"fill_{name}", **TEXT)
        work = functools.partial(fill_states, job, tmp_path / name, micro=1, **arguments)
        launch(work, ranks=ranks, folder=world.root / "logs" / job.name)
        stores.append(StateStore(tmp_path / name, None))
    own, served = (
        {key: store.shard(int(shard)).record(int(row)).stored.values for key, shard, row in zip(*table, strict=True)}
        for store in stores
        for table in [(store.table.keys.tolist(), store.table.shards, store.table.rows)]
    )
    assert own.keys() == served.keys()
    assert all(torch.equal(own[key], served[key]) for key in own)
    service.signal("one", signal.SIGTERM)
    service.end("one", 60)
    assert (service.folder / "one-0.log").read_text().splitlines()[-1] == f"{stores[1].tokens} tokens"
    with pytest.raises(InputError, match="no layout: the processes of the service have theirs"):
        TeacherPlan("teacher", sizes=ParallelSizes(2), service=str(service.folder)).settings()


def on_a_full_disk(folder):
    """A run for which files below a folder cannot be as large as states are."""

    def run(function, *arguments, **settings):
        def limited(*inner):
            from nemo_xtoken.teachers.store import state_writer

            def full(*_, **__):
                raise OSError(errno.ENOSPC, "no space left on device")

            state_writer.write_shard = full  # in this fork alone
            return function(*inner)

        return launch(limited, *arguments, **settings)

    return run

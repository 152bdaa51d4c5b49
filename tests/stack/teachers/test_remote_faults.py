"""A student of two processes and replicas of two: killed at any moment, still for a while, or with their connections
dropped, they change nothing.

One kill and a stop of some seconds here; a campaign by ``NEMO_XTOKEN_REPLICA_KILLS=20 NEMO_XTOKEN_REPLICA_STOP=60``
(other moments with ``NEMO_XTOKEN_KILL_SEED=2``).
"""

import os
import random
import signal
import time

import pytest
from launcher import start
from relay import RelayProcess

pytestmark = pytest.mark.usefixtures("nemo")
pytest.importorskip("zmq")

KILLS = int(os.environ.get("NEMO_XTOKEN_REPLICA_KILLS", "1"))
STOP = float(os.environ.get("NEMO_XTOKEN_REPLICA_STOP", "2.5"))
SEED = os.environ.get("NEMO_XTOKEN_KILL_SEED", "1")
REPLICA = {"ranks": 2, "tp": 2, "sequence_parallel": True}
LONG = {"steps": 10, "micro": 1, "batch": 4, "tp": 2, "sequence_parallel": True}


@pytest.fixture(scope="module")
def course(world):
    """``course(name, when, ranks, **settings)``: how each rank ended."""
    import jobs
    from watchers import Gradients, Totals, Weights

    def run(name, when=None, ranks=2, **settings):
        job = world.distillation(
            f"faults_{name}",
            watchers=(Totals(), Gradients((0, 2)), Weights()),
            **{"optimizer": "sgd", "lr": 0.3, "distributed": False, "text": {"pack": True}, **settings},
        )
        return start(jobs.train, job, ranks=ranks, folder=world.root / "logs" / job.name, when=when)

    return run


@pytest.fixture
def service(world, tmp_path):
    from service import Service

    made = []

    def make(name="service"):
        made.append(Service(tmp_path / name, world.teacher))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture(scope="module")
def undisturbed(course, world, tmp_path_factory):
    """The weights that each rank ends with, by one replica of two processes, and the seconds that it took."""
    from service import Service

    of = Service(tmp_path_factory.mktemp("undisturbed"), world.teacher)
    try:
        of.start("stays", **REPLICA)
        began = time.monotonic()
        found = weights(course("undisturbed", **LONG, teacher_config=remote(of, **QUICK)))
        return found, time.monotonic() - began
    finally:
        of.close()


def remote(service, **settings):
    from nemo_xtoken.teachers.source_settings import ServiceConfig

    return {"source": "remote", "service": ServiceConfig(str(service.folder), **settings)}


QUICK = {"silent": 1.5, "slow": 20.0}
#: Bytes, of about 800,000 that a run has from its teacher, 20,000 for each sample.
MOMENTS = (100, 10_000, 150_000, 300_000, 500_000)


def weights(ended):
    assert [one.status for one in ended] == [0, 0], ended[0].log[-3000:]
    return [one.result["weights"] for one in ended]


def at(moment, action):
    """For ``when=``: does something so many seconds after the first look."""
    began = []

    def when(_pids):
        began.append(time.monotonic())
        if time.monotonic() - began[0] < moment:
            return False
        action()
        return True

    return when


def test_a_replica_of_two_processes_killed_at_any_moment_loses_nothing(course, service, undisturbed):
    """One process of it, or both; the other of a pair must not go on alone, and a new one takes its place."""
    of = service()
    of.start("stays", **REPLICA)
    (expected, seconds), numbers = undisturbed, random.Random(f"{SEED} replicas")
    for number in range(KILLS):
        of.start("falls", **REPLICA)
        victims = numbers.choice([slice(0, 1), slice(1, 2), slice(0, 2)])

        def kill(victims=victims):
            for pid in of.pids["falls"][victims]:
                os.kill(pid, signal.SIGKILL)

        moment = numbers.uniform(0, seconds)
        ended = course(f"killed{number}", at(moment, kill), **LONG, teacher_config=remote(of, **QUICK))
        assert weights(ended) == expected, (number, moment, victims)
        kill()  # where the run has ended before
        of.end("falls", 60)  # the other process by itself
    print(f"\n{KILLS} kills of replicas of two processes: no difference, no process left")


def test_a_replica_that_stood_still_works_again(course, service, undisturbed):
    of = service()
    of.start("stays", **REPLICA)
    of.start("stops", **REPLICA)
    settings = {**LONG, "teacher_config": remote(of, **QUICK)}
    (expected, _), began = undisturbed, []

    def stop():
        began.append(time.monotonic())
        of.signal("stops", signal.SIGSTOP)

    assert weights(course("still", at(1.0, stop), **settings)) == expected
    time.sleep(max(0.0, STOP - (time.monotonic() - began[0])))
    of.signal("stops", signal.SIGCONT)
    of.signal("stays", signal.SIGKILL)
    assert weights(course("again", **settings)) == expected


def test_connections_that_are_dropped_lose_nothing(course, service, undisturbed):
    """Of the only replica: before it has said welcome, in the midst of the first states and later."""
    of = service()
    of.start("one", **REPLICA)
    relay = RelayProcess(of.folder, "one", MOMENTS)
    try:
        ended = course("dropped", **LONG, teacher_config=remote(of, **QUICK))
        assert weights(ended) == undisturbed[0]
        assert relay.cuts == len(MOMENTS)
    finally:
        relay.close()


def slowed():
    """In each process of a replica: half a second for each batch, some hundred times as long as the model takes."""
    from nemo_xtoken.training.alone import serving

    computed = serving._computed

    def slowly(*arguments):
        time.sleep(0.5)
        return computed(*arguments)

    serving._computed = slowly


def test_a_slow_replica_changes_nothing(course, service, undisturbed):
    of = service()
    of.start("quick", **REPLICA)
    of.start("slow", prepare=slowed, **REPLICA)
    assert weights(course("beside_a_slow_one", **LONG, teacher_config=remote(of, **QUICK))) == undisturbed[0]
    of.signal("slow", signal.SIGTERM)
    of.end("slow", 60)
    assert int((of.folder / "slow-1.log").read_text().splitlines()[-1].removesuffix(" tokens")) > 0


def test_several_teachers_elsewhere_and_one_that_learns_w(course, service, world):
    """Two services, two losses, a W that is trained: as with both beside the student."""
    from watchers import assert_same

    def settings(first, second):
        one = {"path": world.teacher, "loss": "p_kl", "learned": True, "learned_lr": 300.0, **first}
        two = {"path": world.teacher, "loss": "gold", "weight": 0.5, **second}
        return {"teacher": None, "teachers": {"one": one, "two": two}, "micro": 2}

    services = [service("first"), service("second")]
    for number, of in enumerate(services):
        of.start(f"replica{number}")
    [expected] = course("beside", ranks=1, **settings({}, {}))
    found = course("elsewhere", **settings(*(remote(of) for of in services)))
    assert [one.status for one in (expected, *found)] == [0, 0, 0], found[0].log[-3000:]
    assert_same(expected.result, [one.result for one in found], (0, 2), 1e-5)

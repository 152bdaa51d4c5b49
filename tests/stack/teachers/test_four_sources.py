"""A teacher of each source in one run, each with a W that is learned, teaches as all of them beside the student do."""

import functools
from pathlib import Path

import pytest
from launcher import launch
from learned_runs import assert_same_learned, without_padding

from nemo_xtoken.losses.base import ChunkLossConfig

pytestmark = pytest.mark.usefixtures("nemo")
pytest.importorskip("zmq")

RELATIVE = 1e-5
STEPS = (0, 1)
SOURCES = ("colocated", "remote", "cached", "remote+cached")
#: Whether documents share samples, the ranks, and the student's layout.
LAYOUTS = {
    "apart": (False, 1, {"micro": 2}),
    "tp2": (True, 2, {"tp": 2, "micro": 2, "sequence_parallel": True}),
    "pp2": (True, 2, {"pp": 2, "micro": 1}),
    "cp2": (True, 2, {"cp": 2, "micro": 2}),
    "dp2": (True, 2, {"micro": 1}),
}


@pytest.fixture(scope="module")
def course(world):
    """``course(name, ranks, **settings)``: the job, and every rank's results of two steps."""
    import jobs
    from watchers import Gradients, Totals

    def run(name, ranks=1, **settings):
        job = world.distillation(
            f"four_{name}",
            steps=len(STEPS),
            watchers=(Totals(), Gradients(STEPS)),
            **{"optimizer": "sgd", "lr": 0.3, "distributed": False, "teacher": None, **settings},
        )
        return job, launch(jobs.train, job, ranks=ranks, folder=world.root / "logs" / job.name)

    return run


@pytest.fixture(scope="module")
def elsewhere(world, tmp_path_factory):
    """The settings of each source, whose teacher's states come from a replica, and from a folder for each packing."""
    from service import Service
    from states import fill_states

    from nemo_xtoken.teachers.source_settings import CacheConfig, ServiceConfig

    base = tmp_path_factory.mktemp("four")
    made = Service(base / "service", world.teacher)
    made.start("one")
    service = ServiceConfig(str(made.folder))
    for pack in (False, True):
        job = world.distillation(f"fill_four_{pack}", text={"pack": pack})
        work = functools.partial(fill_states, job, base / f"states_{pack}")
        launch(work, folder=world.root / "logs" / job.name)

    def settings(pack, kept):
        return {
            "colocated": {},
            "remote": {"source": "remote", "service": service},
            "cached": {"source": "cached", "cache": CacheConfig(str(base / f"states_{pack}"))},
            "remote+cached": {"source": "remote+cached", "service": service, "cache": CacheConfig(str(base / kept))},
        }

    yield settings
    made.close()


def teachers(world, sources):
    """One of each; by its weight and temperature each W has a gradient of its own."""
    return {
        name.replace("+", "_"): {
            **{"path": world.teacher, "loss": "p_kl", "learned": True, "weight": 1 / (2 + n)},
            **{"learned_lr": 300.0, "chunks": ChunkLossConfig(temperature=1 + n / 4), **sources.get(name, {})},
        }
        for n, name in enumerate(SOURCES)
    }


@pytest.fixture(scope="module")
def beside(course, world):
    """``beside(pack)``: the run whose teachers are all in its own processes; each once."""
    mine = teachers(world, {})
    return functools.cache(lambda pack: course(f"beside_{pack}", micro=4, text={"pack": pack}, teachers=mine))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_in_any_layout(course, world, elsewhere, beside, layout):
    from watchers import assert_same

    pack, ranks, settings = LAYOUTS[layout]
    job, [one] = beside(pack)
    mixed = teachers(world, elsewhere(pack, kept=f"kept_{layout}"))
    other, found = course(layout, ranks, text={"pack": pack}, teachers=mixed, **settings)
    assert_same(one, [without_padding(rank, one, STEPS) for rank in found], STEPS, RELATIVE)
    assert list(Path(mixed["remote_cached"]["cache"].folder).rglob("states-*"))  # they have come, and were kept
    assert_same_learned((job.folder, other.folder), mixed, RELATIVE)

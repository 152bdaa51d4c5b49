"""A teacher of each source in one run under Megatron-Bridge, each with a W that is learned: as all beside the student.

The matrix of ``teachers/test_four_sources.py``, which has the same tolerances under NeMo 2.
"""

from pathlib import Path

import pytest
from launcher import launch
from learned_runs import assert_same_learned, without_padding

from nemo_xtoken.losses.base import ChunkLossConfig
from nemo_xtoken.teachers.source_settings import CacheConfig, ServiceConfig

pytestmark = pytest.mark.usefixtures("megatron", "bridge")
pytest.importorskip("zmq")

RELATIVE = 1e-5
STEPS, KEPT = 3, (1, 3)
SOURCES = ("colocated", "remote", "cached", "remote+cached")
#: Ranks, and the student's layout; documents share samples.
LAYOUTS = {
    "one": (1, {}),
    "tensor": (2, {"strategy": {"tensor_model_parallel_size": 2, "sequence_parallel": True}}),
    "pipeline": (2, {"strategy": {"pipeline_model_parallel_size": 2}}),
    "context": (2, {"strategy": {"context_parallel_size": 2}}),
    "data": (2, {"micro": 1}),
}
SETTINGS = {"sgd": True, "steps": STEPS, "keep": KEPT}


def teachers(sources):
    """One of each; by its weight and temperature each W has a gradient of its own."""
    return {
        name.replace("+", "_"): {
            **{"path": "teacher", "loss": "p_kl", "learned": True, "weight": 1 / (2 + n)},
            **{"learned_lr": 3e4, "chunks": ChunkLossConfig(temperature=1 + n / 4), **sources.get(name, {})},
        }
        for n, name in enumerate(SOURCES)
    }


@pytest.fixture(scope="module")
def beside(bridge_world):
    """A run whose teachers are all in its own process."""
    [one] = bridge_world.courses("four_beside", micro=4, teachers=teachers({}), **SETTINGS)
    return one


@pytest.fixture(scope="module")
def elsewhere(bridge_world, tmp_path_factory):
    """``elsewhere(name)``: the settings of each source, whose states come from a replica and from a folder."""
    from bridge_jobs import cache, on_cpu
    from service import Service

    base = tmp_path_factory.mktemp("four")
    made = Service(base / "service", bridge_world.root / "teacher", on_cpu)
    made.start("one")
    states, service = base / "states", ServiceConfig(str(made.folder))
    launch(cache, str(bridge_world.root), str(states), folder=bridge_world.root / "logs/four_cache")
    yield lambda name: {
        "remote": {"source": "remote", "service": service},
        "cached": {"source": "cached", "cache": CacheConfig(str(states))},
        "remote+cached": {"source": "remote+cached", "service": service, "cache": CacheConfig(str(base / name))},
    }
    made.close()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_in_any_layout(bridge_world, beside, elsewhere, layout):
    from gradients import assert_same_gradients

    ranks, settings = LAYOUTS[layout]
    mixed, name = teachers(elsewhere(layout)), f"four_{layout}"
    found = bridge_world.courses(name, ranks, teachers=mixed, **SETTINGS, **settings)
    for rank in found:
        steps = [[record for record in each["records"] if "ce" in record] for each in (beside, rank)]
        assert [len(records) for records in steps] == [STEPS, STEPS]
        for expected, record in zip(*steps, strict=True):
            for key in ("ce", "kd", "scale", "chunks", *(f"kd/{teacher}" for teacher in mixed)):
                assert record[key] == pytest.approx(expected[key], rel=RELATIVE), key
    assert_same_gradients(beside, [without_padding(rank, beside, KEPT) for rank in found], KEPT, RELATIVE)
    assert list(Path(mixed["remote_cached"]["cache"].folder).rglob("states-*"))  # they have come, and were kept
    runs = [bridge_world.root / "runs" / run for run in ("four_beside", name)]
    assert_same_learned(runs, mixed, RELATIVE)

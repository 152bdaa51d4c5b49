"""Learned W under Megatron-Bridge: it moves, in every layout alike; it is saved, resumed and used again."""

import json

import numpy as np
import pytest

from nemo_xtoken.projection.matrix import ProjectionMatrix

pytestmark = pytest.mark.usefixtures("megatron", "bridge")

LEARNED = {"learned": True, "learned_lr": 3e4}
FILE = "learned_projection.safetensors"
RELATIVE = 1e-5


@pytest.fixture(scope="module")
def w(bridge_world):
    """W at the start."""
    from nemo_xtoken.projection.build import build_projection
    from nemo_xtoken.vocab.loading import load_vocabulary

    return build_projection(*(load_vocabulary(str(bridge_world.root / side)) for side in ("student", "teacher")))


@pytest.fixture(scope="module")
def one(bridge_world):
    return _steps(bridge_world.run("learned", sgd=True, teacher=LEARNED))


def _steps(records):
    return [record for record in records if "ce" in record]


def _learned(bridge_world, name):
    return ProjectionMatrix.load(bridge_world.root / "runs" / name / FILE)


def test_it_moves_and_is_a_w_file(one, bridge_world, w):
    learned = _learned(bridge_world, "learned")
    np.testing.assert_array_equal(learned.ids, w.ids)
    several = (w.ids >= 0).sum(axis=1) > 1
    np.testing.assert_array_equal(learned.weights[~several], w.weights[~several])
    assert np.abs(learned.weights - w.weights).max() > 0.01
    assert learned.rule == w.rule | {"learned_steps": 4}
    rows = json.loads((bridge_world.root / "runs/learned/learned_projection.json").read_text())
    assert rows["count"] > 0


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("tp", {"strategy": {"tensor_model_parallel_size": 2, "sequence_parallel": True}}),
        ("pp", {"strategy": {"pipeline_model_parallel_size": 2}}),
        ("cp", {"strategy": {"context_parallel_size": 2}}),
        ("dp", {"micro": 1}),
    ],
    ids=["tensor", "pipeline", "context", "data"],
)
def test_a_layout_changes_nothing(one, bridge_world, name, settings):
    found = _steps(bridge_world.run(f"learned_{name}", ranks=2, sgd=True, **{"teacher": LEARNED, **settings}))
    for a, b in zip(found, one, strict=True):
        for key in ("ce", "kd", "scale"):
            assert a[key] == pytest.approx(b[key], rel=RELATIVE), key
    weights = [_learned(bridge_world, run).weights for run in ("learned", f"learned_{name}")]
    np.testing.assert_allclose(*weights, rtol=0, atol=RELATIVE)


def test_its_rate_follows_the_schedule_and_it_goes_on_exactly(bridge_world):
    """By Adam in bfloat16, whose logits stay float32; the student of such a run starts another without W."""
    settings = {"precision": "bf16-mixed", "teacher": {"learned": True, "learned_lr": 0.1}}
    whole = _steps(bridge_world.run("learned_whole", **settings))
    bridge_world.run("learned_again", stop=2, **settings)
    assert not (bridge_world.root / "runs/learned_again" / FILE).exists()
    again = _steps(bridge_world.run("learned_again", **settings))
    assert [(r["ce"], r["kd"]) for r in again] == [(r["ce"], r["kd"]) for r in whole]
    weights = [_learned(bridge_world, run).weights for run in ("learned_whole", "learned_again")]
    np.testing.assert_array_equal(*weights)
    started = bridge_world.run("learned_from", start="runs/learned_whole/checkpoints", steps=1)
    assert _steps(started)[0]["ce"] < whole[0]["ce"]


@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        ({"learned": False}, "with no learned W, its checkpoint .* with learned W for teacher"),
        ({"learned": True, "learned_lr": 200.0}, "another learned_lr"),
        ({"learned": True, "loss": "h_kl"}, "teacher.learned with loss=h_kl"),
        ({"learned": True, "learned_lr": 0.0}, "learned_lr=0.0"),
    ],
    ids=["not learned", "rate", "loss", "no rate"],
)
def test_what_cannot_be_is_refused(one, bridge_world, teacher, message):
    with pytest.raises(AssertionError, match=message):
        bridge_world.run("learned", sgd=True, steps=6, teacher=teacher)

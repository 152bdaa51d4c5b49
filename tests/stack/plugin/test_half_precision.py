"""Training in bfloat16 on a CPU: what has to be float32 is, and no learning is lost by rounding."""

import json

import pytest

pytestmark = pytest.mark.usefixtures("nemo")

HALF = {"precision": "bf16-mixed"}


def test_a_learning_rate_below_what_bfloat16_can_show_still_teaches(world):
    """A step moves a weight by a thousandth of what separates it from its neighbour in bfloat16."""
    from watchers import Masters

    job = world.distillation("tiny_rate", lr=1e-6, steps=3, micro=1, watchers=(Masters(),), **HALF)
    [found] = world.run(job)
    assert found["kinds"] == ["torch.float32"]
    assert found["rounded"]
    assert found["moved"] > 0.5 > 0.05 > found["seen"]


def test_the_folder_says_in_which_precision_it_was(world):
    from nemo_xtoken.launch.precision import FULL, begun_in
    from nemo_xtoken.launch.precision import HALF as VALUE

    for name, settings, value in (("half", HALF, VALUE), ("full", {}, FULL)):
        job = world.distillation(f"written_{name}", steps=1, **settings)
        world.run(job)
        assert begun_in(job.folder, gpu=value == FULL) == value  # not what it would be without the file
        [entry] = json.loads((job.folder / "trained_with.json").read_text())
        assert entry["settings"]["trainer.plugins.precision"] == value

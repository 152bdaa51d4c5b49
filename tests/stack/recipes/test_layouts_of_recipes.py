"""What a preflight reads of a recipe without NeMo is what the recipe gives with it, on any number of nodes."""

import pytest
from launcher import launch

from nemo_xtoken.recipes import available_recipes
from nemo_xtoken.run.settings import Settings

pytestmark = pytest.mark.usefixtures("nemo")

NODES = (1, 2, 8, 16)
AXES = ("tensor_model_parallel_size", "pipeline_model_parallel_size", "context_parallel_size", "sequence_parallel")


def _real():
    found = {}
    for name, recipe in available_recipes().items():
        for nodes in NODES if recipe.layouts else ():
            run = recipe.load()(nodes=nodes)
            strategy = [getattr(run.trainer.strategy, axis) for axis in AXES]
            found[name, nodes] = [run.trainer.num_nodes, run.data.micro_batch_size, *strategy]
    return found


def _read():
    found = {}
    for name, recipe in available_recipes().items():
        for nodes in NODES if recipe.layouts else ():
            assert recipe.yaml is not None
            settings = Settings.read(recipe.yaml)
            settings.lay_out(nodes, recipe.layouts)
            strategy = [settings.get(f"trainer.strategy.{axis}") for axis in AXES]
            found[name, nodes] = [settings.get("trainer.num_nodes"), settings.get("data.micro_batch_size"), *strategy]
    return found


def test_layouts(tmp_path):
    [real] = launch(_real, folder=tmp_path / "logs")
    assert _read() == real

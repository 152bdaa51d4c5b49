"""A student with LoRA adapters under Megatron-Bridge: what is trained, resumed, exported, and refused."""

import json
import shutil

import numpy as np
import pytest
from gradients import assert_same_gradients

pytestmark = pytest.mark.usefixtures("megatron", "bridge")

LORA = {"rank": 4, "alpha": 16.0}
LAYERS = ("mlp.linear_fc1", "mlp.linear_fc2", "self_attention.linear_proj", "self_attention.linear_qkv")
VOCABULARY = ["embedding.word_embeddings.weight", "output_layer.weight"]
RELATIVE = 1e-5


def adapters(targets=LAYERS):
    return sorted(
        f"decoder.layers.{n}.{target}.adapter.linear_{side}.weight"
        for n in range(2)
        for target in targets
        for side in ("in", "out")
    )


@pytest.fixture(scope="module")
def straight(bridge_world):
    """What four steps of one rank give."""
    return bridge_world.courses("lora", lora=LORA)[0]


def _steps(records):
    return [record for record in records if "ce" in record]


def test_the_adapters_alone_are_trained(straight, bridge_world):
    assert straight["changed"] == straight["trained"] == adapters()
    assert straight["of_teacher"] == []
    held_out = [r["held_out_ce"] for r in straight["records"] if "held_out_ce" in r]
    assert held_out[0] > held_out[1] > held_out[2]


def test_targets_and_the_vocabulary(bridge_world):
    lora = LORA | {"targets": "linear_qkv", "embeddings": True}
    result = bridge_world.courses("lora_targets", steps=2, lora=lora)[0]
    assert result["changed"] == sorted([*adapters(["self_attention.linear_qkv"]), *VOCABULARY])


def test_resumed_it_ends_the_same(straight, bridge_world):
    bridge_world.courses("lora_halves", stop=2, lora=LORA)
    result = bridge_world.courses("lora_halves", lora=LORA)[0]
    assert result["weights"] == straight["weights"]
    assert result["changed"] == adapters()
    seconds = {"seconds"}
    last = [{k: v for k, v in r["records"][-1].items() if k not in seconds} for r in (result, straight)]
    assert last[0] == last[1]


@pytest.fixture(scope="module")
def goes_on(bridge_world):
    """``goes_on(name, ranks, **settings)``: what every rank gives in two steps after two of one process: what the
    adapters begin with is drawn by each rank for itself, as Megatron draws random weights."""
    settings = {"lora": LORA}
    bridge_world.courses("lora_begun", stop=2, **settings)

    def run(name, ranks=1, **layout):
        shutil.copytree(bridge_world.root / "runs/lora_begun", bridge_world.root / "runs" / name)
        return bridge_world.courses(name, ranks, keep=(3,), anew=True, **settings, **layout)

    return run


@pytest.fixture(scope="module")
def one(goes_on):
    return goes_on("lora_one")[0]


@pytest.mark.parametrize(
    "strategy",
    [
        {"tensor_model_parallel_size": 2},
        {"tensor_model_parallel_size": 2, "sequence_parallel": True},
        {"pipeline_model_parallel_size": 2},
    ],
    ids=["tensor", "tensor, with sequence", "pipeline"],
)
def test_a_layout_changes_nothing(one, goes_on, strategy):
    """In the step after the checkpoint: Adam turns rounding into steps where a gradient is about 0."""
    others = goes_on("_".join(["lora", *strategy]), 2, strategy=strategy)
    for a, b in zip(_steps(others[0]["records"])[:3], _steps(one["records"])[:3], strict=True):
        for key in ("ce", "kd", "scale"):
            assert a[key] == pytest.approx(b[key], rel=RELATIVE), key
    assert sorted(one["gradients"][3]) == adapters()
    assert_same_gradients(one, others, (3,), RELATIVE)


def test_exports_compute_what_was_trained(straight, bridge_world):
    """In float32.  A merged weight is rounded once, where its adapter's product was added to a row's, and transformers
    adds in another order than Megatron: some ten roundings on the way to a logit, each of 1e-7 of its size.  The bound
    is 1e-5 of the largest logit; what training has moved is a hundred times as much."""
    from bridge_jobs import export_adapters
    from launcher import launch

    root = bridge_world.root
    [found] = launch(export_adapters, str(root), "lora", str(root / "student"), folder=root / "logs/lora_exports")
    beside, base, merged, peft, files = found
    bound = 1e-5 * np.abs(beside).max()
    assert np.abs(beside - base).max() > 100 * bound
    assert np.abs(merged - beside).max() < bound
    assert np.abs(peft - beside).max() < bound
    assert {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json"} <= set(files)
    written = json.loads((root / "exported/lora_adapter/adapter_config.json").read_text())
    assert (written["r"], written["lora_alpha"]) == (4, 16.0)
    assert written["base_model_name_or_path"] == str(root / "student")


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("lora", {}, "this run with no LoRA, its checkpoint .* with lora.rank=4"),
        ("lora", {"lora": LORA | {"rank": 8}}, "this run with lora.rank=8, its checkpoint .* with lora.rank=4"),
        ("lora_wide", {"lora": LORA | {"rank": 4096}}, "lora.rank=4096 in a student whose hidden size is"),
        ("lora_start", {"start": "runs/lora/checkpoints"}, "path=.* has LoRA adapters beside its layers"),
        ("lora_learn", {"learn": "runs/lora/checkpoints"}, "teacher.path=.* has LoRA adapters beside its layers"),
    ],
)
def test_refused(straight, bridge_world, name, settings, message):
    with pytest.raises(AssertionError, match=message):
        bridge_world.courses(name, steps=6, **settings)

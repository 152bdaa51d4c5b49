"""A checkpoint with fewer layers is the model with those layers, to the bit."""

import json

import pytest
import torch
from toy_models import write_model

from nemo_xtoken.commands.cli import main
from nemo_xtoken.errors import InputError
from nemo_xtoken.weights.pruning import chosen_layers, prune

WINDOWS = ["sliding_attention", "sliding_attention", "full_attention"]


@pytest.mark.parametrize(
    ("chosen", "layers"),
    [
        ("1", (0,)),
        ("2", (0, 6)),
        ("4", (0, 2, 4, 6)),
        ("7", tuple(range(7))),
        ("0,1,4-6", (0, 1, 4, 5, 6)),
        ("2-2", (2,)),
        ("::3", (0, 3, 6)),
        ("1::3", (1, 4)),
    ],
)
def test_layers_are_chosen(chosen, layers):
    assert chosen_layers(chosen, 7) == layers


@pytest.mark.parametrize(
    "chosen", ["0", "8", "", "a", "1,1", "3,2", "0,7", "5-4", "::0", "7::1", "-1", "1,", "0-99999999999"]
)
def test_layers_that_there_are_not(chosen):
    with pytest.raises(InputError, match="7 layers"):
        chosen_layers(chosen, 7)


@pytest.mark.parametrize(
    ("kind", "settings", "layers"),
    [
        ("llama", {"num_hidden_layers": 4}, "0,2,3"),
        ("qwen3-tied", {"num_hidden_layers": 5}, "2"),
        ("gemma3", {"num_hidden_layers": 6, "layer_types": WINDOWS * 2}, "0,4,5"),
        (
            "qwen2",
            {"num_hidden_layers": 4, "use_sliding_window": True, "sliding_window": 8, "max_window_layers": 2},
            "0,1,3",
        ),
    ],
)
def test_logits_are_those_of_the_model_with_these_layers(kind, settings, layers, tmp_path):
    from transformers import AutoModelForCausalLM

    source = write_model(kind, tmp_path / "source", shard="100KB", **settings)
    done = prune(source, layers, tmp_path / "out")
    wanted = AutoModelForCausalLM.from_pretrained(source).eval()
    kept = torch.nn.ModuleList(wanted.model.layers[i] for i in done.layers)
    wanted.model.layers, wanted.config.num_hidden_layers = kept, len(kept)
    wanted.model.config.num_hidden_layers = len(kept)
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    assert sum(p.numel() for p in found.parameters()) == sum(p.numel() for p in wanted.parameters()) == done.parameters
    ids = torch.arange(40).remainder(31).unsqueeze(0)
    with torch.no_grad():
        assert torch.equal(found(ids, use_cache=False).logits, wanted(ids, use_cache=False).logits)


def test_a_layer_at_the_place_of_another_kind(tmp_path):
    source = write_model("gemma3", tmp_path / "source", num_hidden_layers=6, layer_types=WINDOWS * 2)
    with pytest.raises(InputError, match=r"(?s)layer 2 would be at the place of layer 1.*layers=3,4,5"):
        prune(source, "0,2,4", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_command(tmp_path, capsys):
    source = write_model("llama", tmp_path / "source", num_hidden_layers=3)
    assert main(["prune", f"model={source}", "layers=2", f"out={tmp_path}/out"]) == 0
    assert "2 of 3 layers (0, 2)" in capsys.readouterr().out
    assert json.loads((tmp_path / "out" / "config.json").read_text())["num_hidden_layers"] == 2
    assert (tmp_path / "out" / "tokenizer.json").is_file()
    assert main(["prune", f"model={source}", "layers=9", f"out={tmp_path}/other"]) == 2
    assert "of the model's 3 layers" in capsys.readouterr().err

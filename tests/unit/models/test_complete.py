"""A checkpoint whose weights are not those of its configuration is refused before it is converted."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from toy_models import write_model

from nemo_xtoken.errors import InputError
from nemo_xtoken.plugin.nemo2.hf.complete import check_complete
from nemo_xtoken.plugin.nemo2.hf.state import HFState
from nemo_xtoken.weights.configuration import check_numbers, configured, understood
from nemo_xtoken.weights.dtypes import widest
from nemo_xtoken.weights.folder import ModelFolder

HEAD, NORM, QUERY = "lm_head.weight", "model.norm.weight", "model.layers.1.self_attn.q_proj.weight"
KEY = "model.layers.2.self_attn.k_proj.weight"


@pytest.fixture(scope="module")
def toys(tmp_path_factory):
    """A folder by kind of model, made once."""
    made = {}

    def toy(kind):
        if kind not in made:
            made[kind] = write_model(kind, tmp_path_factory.mktemp("complete") / kind)
        return made[kind]

    return toy


def check(folder):
    """What an import looks at."""
    source = ModelFolder(folder)
    hf = configured(understood(source.text_config, str(folder)), str(folder))
    check_numbers(hf, str(folder))
    state = HFState(source)
    check_complete(state, hf)
    return state


def changed(toy, folder, weights=None, **config):
    """A copy with other weights (a function of the old ones; None: taken out) and another configuration."""
    shutil.copytree(toy, folder)
    tensors = load_file(toy / "model.safetensors")
    for name, change in (weights or {}).items():
        old = tensors.pop(name, None)
        if (new := change(old)) is not None:
            tensors[name] = new.contiguous()
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    content = json.loads((toy / "config.json").read_text()) | config
    (folder / "config.json").write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize("kind", ["llama", "llama-tied", "qwen2", "qwen3-tied", "phi3", "gemma3", "mistral", "gpt_oss"])
def test_what_transformers_has_saved_is_complete(toys, kind):
    check(toys(kind))


def none(_):
    return None


WRONG = {
    # kind of model, changes of weights, changes of config.json, message
    "no final norm": ("llama", {NORM: none}, {}, f"has no {NORM}"),
    "no output layer": ("llama", {HEAD: none}, {}, f"has no {HEAD}"),
    "tied by config.json": ("llama", {}, {"tie_word_embeddings": True}, f"{HEAD} differs from"),
    "untied by config.json": ("llama-tied", {}, {"tie_word_embeddings": False}, f"has no {HEAD}"),
    "no query": ("qwen3", {QUERY: none}, {}, f"has no {QUERY}"),
    "a layer declared": ("llama", {}, {"num_hidden_layers": 4}, r"has no model\.layers\.3.* \(9 of 39"),
    "a layer too many": ("llama", {}, {"num_hidden_layers": 2}, "without a counterpart: model.layers.2"),
    "half a layer": ("phi3", {"model.layers.2.mlp.down_proj.weight": none}, {}, "has no model.layers.2.mlp"),
    "key heads": ("llama", {}, {"num_key_value_heads": 4}, "as the configuration says"),
    "key heads of a tensor": ("llama", {KEY: lambda t: t[:12]}, {}, f"{KEY} of shape"),
    "head width": ("qwen3", {}, {"head_dim": 8}, "as the configuration says"),
    "width of the layers": ("mistral", {}, {"intermediate_size": 96}, "as the configuration says"),
    "width of the model": ("llama", {}, {"hidden_size": 96}, "as the configuration says"),
    "no biases": ("qwen2", {QUERY.replace("weight", "bias"): none}, {}, "has no .*q_proj.bias"),
    "biases too many": ("llama", {QUERY.replace("weight", "bias"): lambda _: torch.ones(48)}, {}, "without a counterp"),
    "an expert less": ("gpt_oss", {}, {"num_local_experts": 5}, "as the configuration says"),
    "no sinks": ("gpt_oss", {"model.layers.0.self_attn.sinks": none}, {}, "has no .*sinks"),
    "no heads": ("llama", {}, {"num_attention_heads": 0}, "num_attention_heads=0"),
    "heads that are null": ("llama", {}, {"num_attention_heads": None}, "num_attention_heads|not accepted"),
    "negative heads": ("llama", {}, {"num_attention_heads": -4}, "num_attention_heads|not accepted"),
    "heads that do not divide": ("qwen2", {}, {"num_key_value_heads": 3}, "num_key_value_heads=3"),
    "half a head": ("llama", {}, {"num_attention_heads": 4.5}, "num_attention_heads|not accepted"),
    "no width": ("mistral", {}, {"hidden_size": None}, "hidden_size|not accepted"),
    "numbers as text": ("llama", {}, {"num_hidden_layers": "3"}, "num_hidden_layers|not accepted"),
    "8-bit weights": ("llama", {QUERY: lambda t: t.to(torch.float8_e4m3fn)}, {}, f"{QUERY} of type F8_E4M3"),
    "integers": ("llama", {NORM: lambda t: t.to(torch.int8)}, {}, f"{NORM} of type I8"),
    "half of what is packed": (
        "gpt_oss",
        {"model.layers.0.mlp.experts.down_proj_blocks": lambda _: torch.ones(4, 4, dtype=torch.uint8)},
        {},
        "down_proj_blocks of type U8",
    ),
    "embeddings that are flat": ("llama-tied", {"model.embed_tokens.weight": lambda t: t[0]}, {}, "of shape"),
    "no embeddings": ("llama-tied", {"model.embed_tokens.weight": none}, {}, "has no model.embed_tokens.weight"),
}


@pytest.mark.parametrize("name", WRONG)
def test_missing_or_inconsistent_weights_are_refused(toys, name, tmp_path):
    kind, weights, config, message = WRONG[name]
    with pytest.raises(InputError, match=message):
        check(changed(toys(kind), tmp_path / "changed", weights, **config))


def test_an_output_layer_that_repeats_the_embeddings_is_no_other(toys, tmp_path):
    toy = toys("llama-tied")
    embeddings = load_file(toy / "model.safetensors")["model.embed_tokens.weight"]
    check(changed(toy, tmp_path / "changed", {HEAD: lambda _: embeddings.clone()}))


# --- types


@pytest.mark.parametrize(
    ("codes", "expected"),
    [
        (["BF16"], "BF16"),
        (["F16", "F16"], "F16"),
        (["BF16", "F32"], "F32"),
        (["F16", "BF16"], "F32"),
        (["F32", "F64", "F16"], "F64"),
        (["I64", "BF16"], "BF16"),
        (["U8"], None),
        ([], None),
    ],
)
def test_the_type_that_holds_them_all(codes, expected):
    assert widest(codes) == expected
    types = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32, "F64": torch.float64}
    if expected is not None:
        for code in (code for code in codes if code in types):
            numbers = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
            values = numbers.view(types[code]) if types[code].itemsize == 2 else numbers.to(types[code])
            kept = values.to(types[expected])
            assert torch.equal(kept.to(types[code])[~values.isnan()], values[~values.isnan()])


@pytest.mark.parametrize(
    ("narrow", "told"),
    [
        ({"model.embed_tokens.weight": torch.bfloat16}, "1 weights in bfloat16"),
        ({NORM: torch.float16, QUERY: torch.float16}, "2 weights in float16"),
        ({HEAD: torch.bfloat16, NORM: torch.float16}, "1 weights in bfloat16, 1 weights in float16"),
    ],
)
def test_weights_of_several_types_are_kept_and_told(toys, narrow, told, tmp_path):
    folder = changed(
        toys("llama"), tmp_path / "mixed", {k: lambda t, kind=kind: t.to(kind) for k, kind in narrow.items()}
    )
    state = check(folder)
    assert state.dtype == torch.float32
    assert told in state.mixed
    assert state.mixed.endswith("all are written as float32")
    stored = load_file(folder / "model.safetensors")
    assert all(torch.equal(state[name], stored[name].float()) for name in state)
    assert HFState(ModelFolder(folder), torch.bfloat16).dtype == torch.bfloat16


def test_weights_of_one_type_need_no_word(toys):
    assert check(toys("llama")).mixed == ""

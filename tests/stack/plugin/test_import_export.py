"""Hugging Face -> NeMo -> Hugging Face: the logits of every architecture stay what transformers computes."""

import json
import re
import shutil

import pytest
import torch
from launcher import launch
from real_tokenizers import ASSETS
from safetensors.torch import load_file, save_file
from tokenizer_zoo import zoo
from toy_models import KINDS, OF_BRIDGE, SEEING, logits, nemo_logits, write_model, write_seeing

from nemo_xtoken.weights.configuration import writer_version

pytestmark = pytest.mark.usefixtures("nemo")
LENGTH = 80  # longer than windows and original lengths of the toys


def in_rank(folder, function, *args):
    """The result of a function in a process of its own."""
    [result] = launch(function, *args, folder=folder / "logs")
    return result


def some_tokens(size):
    torch.set_num_threads(1)
    return torch.randint(0, size, (2, LENGTH), generator=torch.Generator().manual_seed(5))


def read(file):
    return json.loads(file.read_text())


# --- there and back


def _round_trip(source, folder):
    """In one process; the largest differences of the logits, there and back."""
    from nemo_xtoken.plugin.nemo2.conversion import export_model, import_model

    imported = import_model(source, folder / "nemo")
    exported = export_model(imported, folder / "hf")
    size = read(source / "config.json")["vocab_size"]
    tokens = some_tokens(size)
    there, here, back = logits(source, tokens), nemo_logits(imported, tokens), logits(exported, tokens)
    assert here.shape[-1] % 128 == 0
    assert back.shape == there.shape
    assert there.std() > 1
    return float((here[..., :size] - there).abs().max()), float((back - there).abs().max()), _extra_states(imported)


def _extra_states(checkpoint):
    """The layers of a checkpoint that have an extra state, each once."""
    from torch.distributed.checkpoint import FileSystemReader

    keys = FileSystemReader(checkpoint / "weights").read_metadata().state_dict_metadata
    found = {key.partition("._extra_state")[0] for key in keys if "._extra_state" in key}
    return {re.sub(r"^module\.|\.\d+(?=\.|$)", "", name) for name in found}


def _asked_for(kind):
    """The extra states that Transformer Engine's layers ask a checkpoint for, by megatron-core's layer specifications:
    those of linear layers, of norms (operations with a state of their own), and of attention with a learned sink."""
    attention = {"linear_qkv", "linear_proj"}
    if kind.startswith(("qwen3", "gemma3")):
        attention |= {"q_layernorm", "k_layernorm"}
    mlp = {"linear_fc1", "linear_fc2"}
    if kind.startswith("gemma3"):  # norms after attention and after the feed-forward network
        attention, mlp = attention | {"linear_proj.post_layernorm"}, mlp | {"linear_fc2.post_layernorm"}
    if kind.startswith("gpt"):
        attention |= {"core_attention"}
    layer = {f"self_attention.{name}" for name in attention} | {f"mlp.{name}" for name in mlp}
    if "moe" in kind or kind.startswith(("gpt", "mixtral")):
        layer = {name for name in layer if not name.startswith("mlp")} | {"pre_mlp_layernorm"}
        layer |= {f"mlp.experts.experts.{name}" for name in mlp}
    return {"decoder.final_layernorm"} | {f"decoder.layers.{name}" for name in layer}


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in OF_BRIDGE])
def test_logits_are_kept_there_and_back(kind, tmp_path):
    source = write_model(kind, tmp_path / "source")
    there, back, written = in_rank(tmp_path, _round_trip, source, tmp_path)
    assert there < 1e-4
    assert _asked_for(kind) - written == set()  # a key that is missing stops a run on a GPU
    assert back == 0  # the same weights under the same names
    written = read(tmp_path / "hf" / "config.json")
    assert differences(written, read(source / "config.json")) == {}
    assert written["transformers_version"] == writer_version(written["model_type"])
    assert read(tmp_path / "hf" / "generation_config.json") == read(source / "generation_config.json")
    assert (tmp_path / "hf" / "tokenizer.json").read_bytes() == (source / "tokenizer.json").read_bytes()


def test_the_family_that_the_documents_add(tmp_path, monkeypatch):
    from adding import module
    from toy_models import KINDS

    from nemo_xtoken.plugin.nemo2.hf import families

    added = module("A model family", "my_family", tmp_path, monkeypatch)
    monkeypatch.setattr(families, "FAMILIES", (added.MINISTRAL, *families.FAMILIES))
    window, full = "sliding_attention", "full_attention"
    windows = {"sliding_window": 16, "layer_types": [window, full, window], "head_dim": 16}
    monkeypatch.setitem(KINDS, "ministral", ("ministral", "sp_bpe", windows))
    source = write_model("ministral", tmp_path / "source")
    there, back, _ = in_rank(tmp_path, _round_trip, source, tmp_path)
    assert there < 1e-4
    assert back == 0
    assert differences(read(tmp_path / "hf" / "config.json"), read(source / "config.json")) == {}


def differences(one, other):
    """What two configurations say differently, defaults filled in."""
    from transformers import CONFIG_MAPPING

    one, other = (CONFIG_MAPPING[c["model_type"]].from_dict(c).to_dict() for c in (one, other))
    return {k: (one.get(k), other.get(k)) for k in {*one, *other} if one.get(k) != other.get(k)}


def _of_types(folder):
    """An import in bfloat16 of a model in several files, and exports in its type and another."""
    from nemo_xtoken.plugin.nemo2.conversion import export_model, import_model

    stages = []
    import_model(folder / "source", folder / "nemo", say=stages.append)
    export_model(folder / "nemo", folder / "same")
    export_model(folder / "nemo", folder / "float32", dtype="float32")
    return stages


def test_types_and_files(tmp_path):
    source = write_model("qwen3-tied", tmp_path / "source", torch.bfloat16, shard="100KB")
    assert len(list(source.glob("*.safetensors"))) > 2
    stages = in_rank(tmp_path, _of_types, tmp_path)
    assert "converting the weights" in stages
    before = {k: v for file in source.glob("*.safetensors") for k, v in load_file(file).items()}
    same, wide = (load_file(tmp_path / name / "model.safetensors") for name in ("same", "float32"))
    assert same.keys() == before.keys() == wide.keys()
    assert all(torch.equal(same[name], tensor) for name, tensor in before.items())
    assert all(torch.equal(wide[name], tensor.float()) for name, tensor in before.items())
    assert read(tmp_path / "float32" / "config.json")["dtype"] == "float32"


@pytest.mark.parametrize("kind", ["gemma3", "mistral3"])
def test_the_language_model_inside_a_model_that_sees(tmp_path, kind):
    """As transformers saves it; the student is exported as a language model alone."""
    alone = write_model(SEEING[kind][1], tmp_path / "alone")
    said = in_rank(tmp_path, _convert, write_seeing(kind, tmp_path / "source", alone), tmp_path)
    [aside] = [line for line in said if "its language model alone is used" in line]
    assert re.search(r"\d+ other weights \(.*vision_tower\) left aside", aside)
    exported, weights = (load_file(tmp_path / name / "model.safetensors") for name in ("hf", "alone"))
    assert exported.keys() == weights.keys()
    assert all((exported[name] == weights[name]).all() for name in weights)
    assert read(tmp_path / "hf" / "config.json")["architectures"] == read(alone / "config.json")["architectures"]


def test_what_preflight_takes_for_importable_is():
    from nemo_xtoken.plugin.nemo2.hf.families import FAMILIES
    from nemo_xtoken.run.hf_models import IMPORTED

    assert tuple(sorted(family.model_type for family in FAMILIES)) == IMPORTED


def _convert(source, folder):
    from nemo_xtoken.plugin.nemo2.conversion import export_model, import_model

    stages = []
    export_model(import_model(source, folder / "nemo", say=stages.append), folder / "hf")
    return stages


def test_quantised_experts_are_read(tmp_path):
    from nemo_xtoken.plugin.nemo2.hf.state import HFState
    from nemo_xtoken.weights.folder import ModelFolder

    source = write_model("gpt_oss", tmp_path / "source", torch.bfloat16)
    weights = load_file(source / "model.safetensors")
    name = "model.layers.0.mlp.experts.down_proj"
    experts, inner, hidden = weights.pop(name).shape
    blocks = torch.full((experts, hidden, inner // 16, 8), 0x21, dtype=torch.uint8)  # 0.5 and 1.0, two to a byte
    scales = torch.full((experts, hidden, inner // 16), 128, dtype=torch.uint8)  # times 2
    save_file({**weights, f"{name}_blocks": blocks, f"{name}_scales": scales}, source / "model.safetensors")
    state = HFState(ModelFolder(source))
    assert set(state) == {*weights, name}
    assert state[name].shape == (experts, inner, hidden)
    assert state[name][0, :4, 0].tolist() == [1.0, 2.0, 1.0, 2.0]


# --- a trained student


def _exported(run, folder):
    """The largest difference between the logits of the trained model and those of its export; its embeddings' rows."""
    from nemo_xtoken.plugin.nemo2.conversion import export_model
    from nemo_xtoken.plugin.nemo2.hf.exporting import find_checkpoint

    exported = export_model(run, folder)
    size = read(exported / "config.json")["vocab_size"]
    tokens = some_tokens(size)
    here, back = nemo_logits(find_checkpoint(run), tokens), logits(exported, tokens)
    return float((here[..., :size] - back).abs().max()), back.shape[-1]


@pytest.mark.parametrize("tied", [False, True])
def test_a_trained_student_is_exported(world, tied, tmp_path):
    from transformers import AutoTokenizer

    start = world.tied if tied else world.student
    # on two ranks the vocabulary is rounded up to another size than on one
    job = world.distillation(f"export-{tied}", tied=tied, start=start, tp=2, steps=2, save_every=2, lr=1e-2)
    world.run(job, ranks=2)
    assert (job.folder / "checkpoints").is_dir()
    difference, rows = in_rank(tmp_path, _exported, job.folder, tmp_path / "hf")
    vocabulary = zoo()["llama"]
    assert difference < 1e-4
    assert rows == vocabulary.size
    assert ("lm_head.weight" in load_file(tmp_path / "hf" / "model.safetensors")) == (not tied)
    config = read(tmp_path / "hf" / "config.json")
    assert (config["bos_token_id"], config["eos_token_id"]) == (vocabulary.bos_id, vocabulary.eos_id)
    assert read(tmp_path / "hf" / "generation_config.json")["eos_token_id"] == vocabulary.eos_id
    ids = AutoTokenizer.from_pretrained(tmp_path / "hf")("It was 201", add_special_tokens=False).input_ids
    assert ids == vocabulary.encode("It was 201").tolist()


def _train_imported(job, imported):
    from jobs import train

    from nemo_xtoken.plugin.nemo2.hf.exporting import load_config
    from nemo_xtoken.plugin.nemo2.model import DistillationModel
    from nemo_xtoken.plugin.nemo2.tokenizer import XTokenTokenizer

    model = DistillationModel(load_config(imported), XTokenTokenizer(str(imported / "context" / "tokenizer")))
    return train(job, model=model)


def _import(source, out):
    from nemo_xtoken.plugin.nemo2.conversion import import_model

    return import_model(source, out)


def test_a_student_that_was_imported_is_exported_like_the_original(world, tmp_path):
    source = write_model("llama-tied", tmp_path / "source")
    imported = in_rank(tmp_path, _import, source, tmp_path / "nemo")
    job = world.distillation("imported", start=str(imported), steps=2, save_every=2, lr=1e-2)
    launch(_train_imported, job, imported, folder=tmp_path / "logs")
    difference, rows = in_rank(tmp_path, _exported, job.folder, tmp_path / "hf")
    assert difference < 1e-4
    assert rows == read(source / "config.json")["vocab_size"]
    written = read(tmp_path / "hf" / "config.json")
    assert differences(written, read(source / "config.json")) == {}
    assert written["transformers_version"] == writer_version(written["model_type"])
    assert read(tmp_path / "hf" / "generation_config.json")["temperature"] == 0.5
    before, after = (load_file(folder / "model.safetensors") for folder in (source, tmp_path / "hf"))
    assert not (before["model.norm.weight"] == after["model.norm.weight"]).all()  # it has learnt


# --- NeMo's own commands


def _nemo(*commands):
    """Runs ``nemo ..`` commands with this package installed; their output."""
    import sys

    from nemo_xtoken.training.cpu import runtime as cpu_runtime

    cpu_runtime.enable()
    sys.argv = ["nemo", "llm"]
    from nemo.lightning import base
    from nemo_run.__main__ import app
    from typer.testing import CliRunner

    out = []
    for words in commands:
        result = CliRunner().invoke(app, ["llm", *words])
        assert result.exit_code == 0, (words, result.stdout, result.exception)
        out.append(result.stdout)
        import torch.distributed as dist

        if dist.is_initialized():  # NeMo's export leaves them
            base.teardown(_NoTrainer())
    return out


class _NoTrainer:
    def _teardown(self):
        pass


def test_nemo_llm_import_and_export_work_with_the_plugin(tmp_path):
    source = write_model("llama", tmp_path / "source")
    in_rank(
        tmp_path,
        _nemo,
        ["import", "-y", "model=llama32_1b", f"source=hf://{source}", f"output_path={tmp_path / 'nemo'}"],
        ["export", "-y", f"path={tmp_path / 'nemo'}", "target=hf", f"output_path={tmp_path / 'hf'}"],
    )
    before, after = (load_file(folder / "model.safetensors") for folder in (source, tmp_path / "hf"))
    assert before.keys() == after.keys()
    rows = after["model.embed_tokens.weight"].shape[0]  # NeMo keeps as many as its tokenizer has ids
    assert all((before[name][:rows] == after[name][:rows]).all() for name in before)


def test_nemo_llm_export_takes_a_distilled_student(world, tmp_path):
    in_rank(
        tmp_path,
        _nemo,
        ["export", "-y", f"path={world.student}", "target=hf", f"output_path={tmp_path / 'hf'}"],
    )
    assert load_file(tmp_path / "hf" / "model.safetensors")["lm_head.weight"].shape[0] == zoo()["llama"].size


# --- what is wrong

WRONG = [
    ({"model_type": "mamba"}, "a model of type 'mamba'"),
    ({"model_type": None}, "no config.json with a model_type"),
    ({"attention_bias": True}, "attention_bias=true"),
    ({"hidden_act": "relu"}, "the activation function relu"),
    ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "rope_scaling of type dynamic"),
    ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope_scaling of type dynamic"),
    ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, "rope_scaling of type dynamic"),
    ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope_scaling of type yarn"),
    ({"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "beta_fast": 32}}, "rope_scaling of type yarn"),
    (
        {"rope_scaling": {"rope_type": "longrope", "factor": 4.0, "short_factor": [1.0] * 6, "long_factor": [2.0] * 6}},
        "rope_scaling of type longrope",
    ),
    ({"vocab_size": 99}, "vocab_size 99"),
    ({"num_hidden_layers": 2}, "weights without a counterpart: model.layers.2"),
    ({"num_hidden_layers": 31}, "has no model.layers.10.input_layernorm.weight"),
    ({"num_key_value_heads": 4}, "as the configuration says"),
    ({"num_attention_heads": 0}, "num_attention_heads=0"),
    ({"tie_word_embeddings": True}, "lm_head.weight differs from model.embed_tokens.weight"),
    ({"intermediate_size": 96}, "as the configuration says"),
    ({"quantization_config": {"quant_method": "gptq"}}, "is quantised (gptq)"),
    ({"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}}, "is quantised (fp8)"),
    ({"quantization_config": {"quant_method": "compressed-tensors"}}, "is quantised (compressed-tensors)"),
]


def _refusals(sources, out, run):
    """What is said about each source, about a run without checkpoints, and about an ``out`` that exists."""
    from nemo_xtoken.errors import InputError
    from nemo_xtoken.plugin.nemo2.conversion import export_model, import_model

    calls = [(import_model, source, out) for source in sources]
    calls += [(export_model, run, out), (export_model, run, sources[0])]
    said = []
    for function, *arguments in calls:
        try:
            function(*arguments)
            said.append("nothing")
        except InputError as error:
            said.append(str(error))
    return said


def test_what_cannot_be_converted_is_refused(tmp_path):
    toy = write_model("llama", tmp_path / "toy")
    sources = []
    for i, (changes, _) in enumerate(WRONG):
        sources.append(shutil.copytree(toy, tmp_path / f"source{i}"))
        config = {**read(toy / "config.json"), **changes}
        (sources[-1] / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
    sources.append(shutil.copytree(toy, tmp_path / "scales"))  # as fp8 is stored, without a word in the configuration
    weights = load_file(toy / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    scales = {name: weights[name].to(torch.float8_e4m3fn), f"{name}_scale_inv": torch.ones(1, 1)}
    save_file(weights | scales, sources[-1] / "model.safetensors", {"format": "pt"})
    (tmp_path / "empty").mkdir()
    said = in_rank(tmp_path, _refusals, sources, tmp_path / "out", tmp_path / "empty")
    for (changes, message), text in zip(WRONG, said, strict=False):
        assert message in text, changes
    assert f"{name} of type F8_E4M3 in" in said[len(WRONG)]
    assert "no finished checkpoint" in said[-2]
    assert "exists" in said[-1]
    assert not list(tmp_path.glob("*out*"))


# --- a real model


def test_a_real_model(tmp_path):
    source = ASSETS / "models" / "smollm2-135m-instruct"
    if not source.is_dir():
        pytest.skip(f"no {source}")
    difference, largest = in_rank(tmp_path, _real, source, tmp_path)
    assert largest > 10
    assert difference < 1e-4


def _real(source, folder):
    from nemo_xtoken.plugin.nemo2.conversion import import_model

    imported = import_model(source, folder / "nemo", dtype="float32")
    tokens = some_tokens(49152)
    there, here = logits(source, tokens), nemo_logits(imported, tokens)
    return float((here - there).abs().max()), float(there.abs().max())


# --- configurations in the form of transformers 5


def _in_the_new_form(config):
    """A configuration with ``rope_parameters`` in place of the classic keys."""
    config = dict(config)
    scaling = config.pop("rope_scaling", None) or {}
    new = {"rope_theta": config.pop("rope_theta"), "rope_type": scaling.get("type", "default"), **scaling}
    new.pop("type", None)
    if "partial_rotary_factor" in config:
        new["partial_rotary_factor"] = config.pop("partial_rotary_factor")
    if "rope_local_base_freq" in config:
        local = {"rope_type": "default", "rope_theta": config.pop("rope_local_base_freq")}
        new = {"full_attention": new, "sliding_attention": local}
    return {**config, "rope_parameters": new}


@pytest.mark.parametrize("kind", ["llama-tied", "gemma3", "phi3"])
def test_a_configuration_of_transformers_5_is_the_same_model(kind, tmp_path):
    source, classic = write_model(kind, tmp_path / "source"), tmp_path / "classic"
    shutil.copytree(source, classic)
    config = read(classic / "config.json")
    (source / "config.json").write_text(json.dumps(_in_the_new_form(config)))
    there = in_rank(tmp_path, _imports_like, source, classic, tmp_path)
    assert there < 1e-4
    assert differences(read(tmp_path / "hf" / "config.json"), config) == {}
    assert "rope_parameters" not in read(tmp_path / "hf" / "config.json")


def _imports_like(source, classic, folder):
    from nemo_xtoken.plugin.nemo2.conversion import export_model, import_model

    imported = import_model(source, folder / "nemo")
    export_model(imported, folder / "hf")
    size = read(source / "config.json")["vocab_size"]
    tokens = some_tokens(size)
    return float((nemo_logits(imported, tokens)[..., :size] - logits(classic, tokens)).abs().max())

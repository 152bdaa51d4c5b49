"""A checkpoint with another tokenizer: every row is what it must be, everything else is what it was."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tokenizer_zoo import write_folder, zoo
from toy_models import write_model

from nemo_xtoken.commands.cli import main
from nemo_xtoken.errors import InputError
from nemo_xtoken.weights import transplant as transplant_module
from nemo_xtoken.weights.configuration import writer_version
from nemo_xtoken.weights.transplant import transplant

TOY = {"num_hidden_layers": 1}


def weights(folder):
    return {k: v for file in sorted(Path(folder).glob("*.safetensors")) for k, v in load_file(file).items()}


def read(file):
    return json.loads(file.read_text())


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """The new tokenizer's folder."""
    return write_folder("llama", tmp_path_factory.mktemp("llama") / "tokenizer")


@pytest.fixture(scope="module")
def made(llama, tmp_path_factory):
    """An untied bfloat16 model in several files, and it with the other tokenizer."""
    folder = tmp_path_factory.mktemp("transplant")
    source = write_model("qwen3", folder / "source", torch.bfloat16, shard="100KB", **TOY)
    config = read(source / "generation_config.json")
    vocabulary = zoo()["qwen"]
    ends = [vocabulary.eos_id, vocabulary.id_of_role["eos"], vocabulary.id_of_bytes[b"a"]]
    (source / "generation_config.json").write_text(
        json.dumps({**config, "eos_token_id": ends, "suppress_tokens": [1], "max_new_tokens": 9})
    )
    told = []
    done = transplant(source, llama, folder / "out", progress=lambda *numbers: told.append(numbers))
    return source, folder / "out", done, told


@pytest.mark.parametrize("name", ["model.embed_tokens.weight", "lm_head.weight"])
def test_every_row(made, name):
    source, out, done, _ = made
    old, new = zoo()["qwen"], zoo()["llama"]
    before, after = weights(source)[name], weights(out)[name]
    assert after.shape == (new.size, before.shape[1])
    assert after.dtype == torch.bfloat16
    real = [i for i in range(old.size) if old.token_bytes[i] is not None or i in old.roles]
    mean = before[real].float().mean(0)
    counts = {"exact": 0, "pieces": 0, "mean": 0}
    for i, data in enumerate(new.token_bytes):
        same = old.id_of_role.get(new.roles[i]) if i in new.roles else old.id_of_bytes.get(data)
        if same is not None:
            counts["exact"] += 1
            assert torch.equal(after[i], before[same])
            continue
        try:
            pieces = old.encode(data.decode()).tolist() if data else []
        except UnicodeDecodeError:
            continue  # a fragment of a character: cut by bytes
        counts["pieces" if pieces else "mean"] += 1
        wanted = before[pieces].float().mean(0) if pieces else mean
        assert torch.allclose(after[i].float(), wanted, rtol=2**-8, atol=1e-3), new.display(i)
    assert counts["exact"] == done.exact > 300
    assert 0 < counts["pieces"] <= done.pieces
    assert 0 < counts["mean"] <= done.mean
    assert done.exact + done.pieces + done.mean == done.rows == new.size


def test_the_rest_is_copied(made):
    source, out, done, told = made
    before, after = weights(source), weights(out)
    assert before.keys() == after.keys()
    others = before.keys() - set(done.tensors)
    assert len(others) == len(before) - 2
    assert all(torch.equal(before[name], after[name]) for name in others)
    index, old_index = (read(folder / "model.safetensors.index.json") for folder in (out, source))
    assert index["weight_map"] == old_index["weight_map"]
    size = sum(t.numel() * t.element_size() for t in after.values())
    assert index["metadata"]["total_size"] == size
    assert told[-1] == (size, size)
    assert [n for n, _ in told] == sorted(n for n, _ in told)


def test_configurations(made, llama):
    source, out, _, _ = made
    new = zoo()["llama"]
    config, before = read(out / "config.json"), read(source / "config.json")
    assert config["vocab_size"] == new.size
    assert [config[f"{r}_token_id"] for r in ("bos", "eos", "pad")] == [new.bos_id, new.eos_id, new.pad_id]
    assert config["transformers_version"] == writer_version(config["model_type"])
    kept = before.keys() - {"transformers_version", "vocab_size", "bos_token_id", "eos_token_id", "pad_token_id"}
    assert {k: config[k] for k in kept} == {k: before[k] for k in kept}
    generation = read(out / "generation_config.json")
    assert generation["eos_token_id"] == [new.eos_id, new.id_of_role["eot"]] or generation["eos_token_id"] == [
        new.eos_id
    ]
    assert generation["temperature"] == 0.5
    assert generation["max_new_tokens"] == 9
    assert "suppress_tokens" not in generation
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (out / name).read_bytes() == (llama / name).read_bytes()


def test_transformers_loads_it(made):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    _, out, _, _ = made
    model, tokenizer = AutoModelForCausalLM.from_pretrained(out, dtype="auto"), AutoTokenizer.from_pretrained(out)
    assert model.dtype == torch.bfloat16
    ids = tokenizer("It was 201 BC.", return_tensors="pt").input_ids
    assert ids[0, 0] == zoo()["llama"].bos_id
    assert model(ids).logits.shape[-1] == zoo()["llama"].size


def test_a_tied_model_and_spare_rows(llama, tmp_path):
    source = write_model("gemma3", tmp_path / "source", **TOY, layer_types=["full_attention"])
    done = transplant(source, llama, tmp_path / "out", multiple_of=64)
    after = weights(tmp_path / "out")
    size = zoo()["llama"].size
    assert done.tensors == ("model.embed_tokens.weight",)
    assert (
        after["model.embed_tokens.weight"].shape[0] == read(tmp_path / "out" / "config.json")["vocab_size"] == done.rows
    )
    assert done.rows % 64 == 0
    assert size < done.rows < size + 64
    spare = after["model.embed_tokens.weight"][size:]
    assert torch.equal(spare, spare[:1].expand_as(spare))


def test_its_own_tokenizer_changes_nothing_of_what_it_uses(tmp_path):
    source = write_model("llama", tmp_path / "source", **TOY)
    transplant(source, source, tmp_path / "out")
    before, after = weights(source), weights(tmp_path / "out")
    vocabulary = zoo()["llama"]
    used = sorted({*vocabulary.id_of_bytes.values(), *vocabulary.id_of_role.values()})
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        assert torch.equal(before[name][used], after[name][used])


def test_a_lone_tokenizer_file_gets_a_configuration(llama, tmp_path):
    from transformers import AutoTokenizer

    lone = tmp_path / "other.json"
    lone.write_bytes((llama / "tokenizer.json").read_bytes())
    renamed = tmp_path / "lone" / "tokenizer.json"
    renamed.parent.mkdir()
    lone.rename(renamed)
    source = write_model("qwen3", tmp_path / "source", **TOY)
    transplant(source, renamed, tmp_path / "out")
    assert AutoTokenizer.from_pretrained(tmp_path / "out").eos_token == "<|end_of_text|>"


# --- what is wrong


@pytest.mark.parametrize("multiple", [0, -1, -64, 65_537, 10**12, 10**30])
def test_a_multiple_that_no_layout_needs(multiple, tmp_path):
    with pytest.raises(InputError, match=f"multiple_of={multiple}"):
        transplant(tmp_path / "none", tmp_path / "none", tmp_path / "out", multiple_of=multiple)


@pytest.fixture
def toy(tmp_path):
    return write_model("qwen2", tmp_path / "source", **TOY)


def edit(folder, **changes):
    (folder / "config.json").write_text(json.dumps({**read(folder / "config.json"), **changes}))


def other_vocabulary(folder):
    edit(folder, vocab_size=7)


def no_weights(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def short_weights(folder):
    os.truncate(folder / "model.safetensors", 5000)


def missing_shard(folder):
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "model-1.safetensors"}}))


def no_tokenizer(folder):
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").unlink()


def no_config(folder):
    (folder / "config.json").unlink()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (other_vocabulary, "vocab_size 7 in config.json"),
        (no_weights, "no safetensors in .*, but pytorch_model.bin"),
        (short_weights, "cannot be read as safetensors"),
        (missing_shard, "1 of 1 files missing"),
        (no_tokenizer, "no tokenizer in the folder"),
        (no_config, "no config.json with a model_type"),
    ],
)
def test_a_bad_checkpoint_is_refused(spoil, message, toy, llama, tmp_path):
    spoil(toy)
    with pytest.raises(InputError, match=message):
        transplant(toy, llama, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_other_bad_input_is_refused(toy, llama, tmp_path, capsys):
    with pytest.raises(InputError, match="is not a folder"):
        transplant(tmp_path / "absent", llama, tmp_path / "out")
    with pytest.raises(InputError, match="check the path"):
        transplant(toy, tmp_path / "absent", tmp_path / "out")
    ranks = write_folder("tiktoken", tmp_path / "ranks")
    with pytest.raises(InputError, match="save_pretrained"):
        transplant(toy, ranks, tmp_path / "out")
    words = ["transplant", f"model={toy}", f"tokenizer={llama}", f"out={tmp_path / 'out'}"]
    assert main(words) == 0
    assert "tokens of both tokenizers" in capsys.readouterr().out
    assert main(words) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert main([*words, "--overwrite"]) == 0
    assert not list(tmp_path.glob(".*"))


def test_the_verb_loads_no_torch(toy, llama, tmp_path):
    program = (
        "import sys\nfrom nemo_xtoken.commands.cli import main\nstatus = main(sys.argv[1:])\n"
        "heavy = {'torch', 'nemo', 'megatron', 'lightning', 'nemo_run', 'transformers'} & set(sys.modules)\n"
        "print('LOADED', status, sorted(heavy))\n"
    )
    words = ["transplant", f"model={toy}", f"tokenizer={llama}", f"out={tmp_path / 'out'}"]
    run = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True, timeout=120)
    assert "LOADED 0 []" in run.stdout, run.stdout + run.stderr


def test_how_many_ids_may_have_no_row_is_said_in_one_place():
    """An import and a transplant take the same models."""
    package = Path(transplant_module.__file__).parents[1]
    told = re.compile(r"^SPARE_IDS\b.*=", re.MULTILINE)
    assert [p.name for p in package.rglob("*.py") if told.search(p.read_text("utf-8"))] == ["tokenizer_files.py"]

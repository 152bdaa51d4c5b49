"""The recipes ``xtoken_swap`` and ``xtoken_compress``, from one Hugging Face folder to another, at toy width."""

import json
import os
from pathlib import Path

import pytest
import torch
import yaml
from launcher import launch
from tokenizer_zoo import TEXT, write_folder
from toy_models import write_model
from warm_commands import distil

ROOT = Path(__file__).parents[2]
SMALL = [
    "data.text.student_length=32", "data.text.teacher_length=64", "data.text.held_out=3", "data.text.workers=0",
    "data.micro_batch_size=2", "data.global_batch_size=4", "optim.config.lr=1e-2", "optim.lr_scheduler.warmup_steps=1",
    "log.ckpt.every_n_train_steps=2", "trainer.val_check_interval=2", "samples.new_tokens=2",
]  # fmt: skip


def swap(folder, *lines):
    """``nemo llm distill --recipe xtoken_swap WORDS`` for each line: (status, output, the commands that it started)."""
    return distil(folder, *(["--recipe", "xtoken_swap", *words] for words in lines))


def compress(folder, *lines):
    """The same by the recipe xtoken_compress."""
    return distil(folder, *(["--recipe", "xtoken_compress", *words] for words in lines))


@pytest.fixture(scope="module")
def swapped(command_line, tmp_path_factory):
    """The folder after the YAML, a run without a model, a run of 2 steps, and the same command in another process."""
    folder = tmp_path_factory.mktemp("swap")
    write_model("llama-tied", folder / "model", tokenizer="qwen", dtype=torch.bfloat16)
    write_folder("llama", folder / "tokenizer")
    texts = [TEXT[i : i + 200] for i in range(0, len(TEXT), 200)]
    (folder / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    given = [f"model={folder / 'model'}", f"tokenizer={folder / 'tokenizer'}", "ce_only=true"]
    words = [*given, f'data.text.paths=["{folder / "text.jsonl"}"]', "trainer.max_steps=2", *SMALL]
    [results] = launch(swap, folder, ["--to-yaml", "swap.yaml"], ["model=x"], words, folder=folder / "logs")
    [again] = launch(swap, folder, words, folder=folder / "logs")
    return folder, texts, results + again


@pytest.fixture(scope="module")
def compressed(swapped):
    """(status, output, commands) of the YAML, of layers that are not there, and of a run of 1 step with 2 of 3."""
    folder, _, _ = swapped
    words = [f"model={folder / 'model'}", f"tokenizer={folder / 'tokenizer'}", "trainer.max_steps=1", *SMALL]
    words += [f'data.text.paths=["{folder / "text.jsonl"}"]']
    lines = [["--to-yaml", "compress.yaml"], [*words, "layers=0,5"], [*words, "layers=2"]]
    [results] = launch(compress, folder, *lines, folder=folder / "logs")
    return results


def test_layers_that_there_are_not_are_refused(compressed):
    status, output, started = compressed[1]
    assert (status, started) == (2, [])
    assert "layers=0,5" in output
    assert "of the model's 3 layers, 0 to 2" in output


def test_a_compressed_student_has_the_layers_that_stay(swapped, compressed):
    """Its own, to the bit, before training; the teacher is the whole model."""
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    folder, _, _ = swapped
    status, output, started = compressed[2]
    assert status == 0, output[-6000:]
    assert started == ["import", "import", "export", "bits", "bits", "bits"]
    run = folder / "runs" / "xtoken_compress"
    assert list(json.loads((run / "bits.json").read_text())) == ["original", "pruned and transplanted", "distilled"]
    assert "layers 0, 2 of 3 stay" in output
    student = AutoModelForCausalLM.from_pretrained(run / "student")
    assert student.config.num_hidden_layers == 2
    [start] = [
        path
        for path in (folder / "cache" / "swap").glob("*/transplanted")
        if json.loads((path / "config.json").read_text())["num_hidden_layers"] == 2
    ]
    was, own = load_file(start / "model.safetensors"), load_file(folder / "model" / "model.safetensors")
    for part in ("mlp.down_proj", "self_attn.q_proj"):
        assert torch.equal(was[f"model.layers.1.{part}.weight"], own[f"model.layers.2.{part}.weight"])
    assert not any(".layers.2." in name for name in was)
    history = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    assert any(record.get("kd", 0) > 0 for record in history)


@pytest.fixture(scope="module")
def adapted(swapped):
    """(status, output, commands) of a swap with LoRA adapters, and of one that is to write them alone."""
    folder, _, _ = swapped
    words = [f"model={folder / 'model'}", f"tokenizer={folder / 'tokenizer'}", "trainer.max_steps=2", *SMALL]
    words += [f'data.text.paths=["{folder / "text.jsonl"}"]', "log.name=adapted", "lora.rank=4", "measure_bytes=0"]
    [results] = launch(swap, folder, words, [*words, "lora.export=adapter"], folder=folder / "logs")
    return results


def test_a_swap_with_lora_trains_the_rows_of_the_vocabulary_too(swapped, adapted):
    """To a model like any other: adapters merged, the vocabulary's rows trained in full, and nothing else."""
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    folder, _, _ = swapped
    status, output, started = adapted[0]
    assert status == 0, output[-6000:]
    assert started == ["export"]  # original and transplanted model are there already
    assert "LoRA adapters of rank 4" in output
    assert "embeddings and output layer, whole, whose rows for new tokens are guesses before" in output
    student = folder / "runs" / "adapted" / "student"
    [start] = [
        path
        for path in (folder / "cache" / "swap").glob("*/transplanted")
        if json.loads((path / "config.json").read_text())["num_hidden_layers"] == 3
    ]
    before, after = (load_file(path / "model.safetensors") for path in (start, student))
    assert before.keys() == after.keys()
    for name, was in before.items():
        changed = (after[name] != was).float()
        if name.endswith("embed_tokens.weight"):
            assert changed.amax(dim=1).all()  # every row: the output layer is tied
        else:
            assert bool(changed.any()) == name.endswith("_proj.weight"), name
    assert AutoModelForCausalLM.from_pretrained(student).config.vocab_size == len(before["model.embed_tokens.weight"])


def test_adapters_alone_are_refused_in_a_swap(adapted):
    status, output, started = adapted[1]
    assert (status, started) == (2, [])
    assert "lora.export=adapter in a swap of tokenizers" in output


@pytest.mark.parametrize("recipe", ["swap", "compress"])
def test_the_yaml_beside_it_is_the_recipe(swapped, compressed, recipe):
    folder, _, _ = swapped
    name = f"xtoken_{recipe}"
    path, made = ROOT / "conf" / f"{name}.yaml", folder / f"{recipe}.yaml"
    if os.environ.get("WRITE_CONF"):
        head = f"# The recipe {name} as a file: nemo llm distill --yaml {name}.yaml\n"
        head += f"# Made by: nemo llm distill --recipe {name} --to-yaml {name}.yaml\n"
        path.write_text(head + made.read_text())
    assert yaml.safe_load(path.read_text()) == yaml.safe_load(made.read_text())


def test_what_is_left_out_is_named_at_once(swapped):
    _, _, results = swapped
    status, output, started = results[1]
    assert (status, started) == (2, [])
    assert "not set: tokenizer (the one it is to have), data.text.paths (the text)" in output


def test_one_command_does_everything(swapped):
    folder, texts, results = swapped
    status, output, started = results[2]
    assert status == 0, output[-6000:]
    assert started == ["import", "import", "export", "export", "bits", "bits", "bits", "bits"]
    run = folder / "runs" / "xtoken_swap"
    found = json.loads((run / "bits.json").read_text())
    assert list(found) == ["original", "transplanted", "cross-entropy only", "distilled"]
    held_out = [json.loads(line)["text"] for line in (run / "held_out.jsonl").read_text().splitlines()]
    assert len(held_out) == 3
    assert set(held_out) < set(texts)
    assert {row["size"] for row in found.values()} == {sum(len(text.encode()) for text in held_out)}
    own, *others = (row["tokens"] for row in found.values())
    assert set(others) == {others[0]} != {own}
    for row in found.values():
        assert f"{row['per_byte']:.3f}" in output
    assert len({row["per_byte"] for row in found.values()}) == 4


def test_the_student_learns_from_the_original_and_not_only_from_text(swapped):
    run = swapped[0] / "runs" / "xtoken_swap"
    both, alone = (
        [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
        for folder in (run, run / "ce_only")
    )
    assert both[0].items() > alone[0].items()  # held-out text, before the first step
    assert both[0].keys() - alone[0].keys() == {"held_out_kd", "held_out_kd/teacher"}
    first, plain = (next(r for r in records if r["step"] == 1) for records in (both, alone))
    assert first["ce"] == plain["ce"]  # the same start, the same batch
    assert first["kd"] > 0
    assert "kd" not in plain


def test_the_result_loads_in_transformers_with_the_new_tokenizer(swapped):
    from transformers import AutoModelForCausalLM

    from nemo_xtoken.vocab.loading import load_vocabulary

    folder = swapped[0]
    out = folder / "runs" / "xtoken_swap" / "student"
    model = AutoModelForCausalLM.from_pretrained(out, dtype="auto")
    assert model.dtype == torch.bfloat16  # as the original
    new = load_vocabulary(str(folder / "tokenizer"))
    assert model.config.vocab_size == new.size
    assert model.config.bos_token_id == new.bos_id
    assert load_vocabulary(str(out)).digest == new.digest


def test_held_out_text_is_not_trained_on(swapped):
    """What is measured on are the documents that the data's own split holds out."""
    from nemo_xtoken.alignment.cache import text_digest
    from nemo_xtoken.data.config import DataConfig
    from nemo_xtoken.plugin.swapping import held_out_texts
    from nemo_xtoken.vocab.loading import load_vocabulary

    folder = swapped[0]
    sides = load_vocabulary(str(folder / "tokenizer")), load_vocabulary(str(folder / "model"))
    text = DataConfig([str(folder / "text.jsonl")], held_out=3, progress=False, cache_dir=str(folder / "cache"))
    training, held_out = text.prepare(sides[0], [sides[1]])
    found = list(held_out_texts(text, *sides))
    assert {text_digest(document) for document in found} == set(held_out[0].digests.tolist())
    assert not {text_digest(document) for document in found} & set(training[0].digests.tolist())
    written = (folder / "runs" / "xtoken_swap" / "held_out.jsonl").read_text().splitlines()
    assert found == [json.loads(line)["text"] for line in written]


def test_the_same_command_goes_on_from_what_is_there(swapped):
    status, output, started = swapped[2][3]
    assert status == 0, output[-6000:]
    assert "import" not in started


def test_the_benchmark_shows_the_run(swapped, tmp_path, capsys, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import swap as benchmark

    folder, texts, _ = swapped
    (tmp_path / "sums.jsonl").write_text(json.dumps({"text": texts[-1]}) + "\n")
    monkeypatch.chdir(folder)  # where the run was started
    words = ["runs/xtoken_swap", "--on", f"sums={tmp_path / 'sums.jsonl'}", "--figure", str(tmp_path / "bits.png")]
    benchmark.main(words)
    table = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert [line.split("|")[1].strip() for line in table[2:]] == [
        "original",
        "transplanted",
        "cross-entropy only",
        "distilled",
    ]
    assert (tmp_path / "bits.png").read_bytes()[:4] == b"\x89PNG"
    run = Path("runs/xtoken_swap")
    found = json.loads((run / "bits.json").read_text())
    for name, of in benchmark.runs_of(run).items():
        steps, values = benchmark.curve(run, of)
        assert steps == [0, 2]
        # packed into short samples the same text is a little harder
        assert values == pytest.approx([found["transplanted"]["per_byte"], found[name]["per_byte"]], rel=0.1)

    def never(*_):
        raise AssertionError("measured again")

    monkeypatch.setattr(benchmark, "bits_per_byte", never)
    benchmark.main(words)
    assert [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")] == table

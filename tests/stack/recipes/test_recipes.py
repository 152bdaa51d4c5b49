"""Every recipe of real models: in lists, as its YAML, dry, and at toy width from an import to an export.

The toys have the recipes' own architectures and settings, with fewer and narrower layers, short texts and few steps.
``WRITE_CONF=1`` writes the YAML files again.
"""

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from launcher import launch
from real_tokenizers import ASSETS, real
from remembered import remember_vocabularies
from tokenizer_zoo import TEXT
from toy_models import logits, write_model

from nemo_xtoken.recipes import available_recipes

ROOT = Path(__file__).parents[3]
#: Recipe -> the toys of its student and of its teachers, by the arguments that name them, and what else it is run with.
RECIPES = {
    # the rate of W is that of the student in SMALL
    "xtoken_qwen3_llama1b": ("llama1b", {"teacher": "qwen3"}, ["teacher.learned=true", "teacher.learned_lr=1e-2"], 2),
    "xtoken_phi4mini_llama1b": ("llama1b", {"teacher": "phi4mini"}),
    "xtoken_phi4mini_llama3b_llama1b": ("llama1b", {"teachers.phi": "phi4mini", "teachers.llama": "llama3b"}),
    "xtoken_qwen3_14b_llama8b": (
        "llama8b", {"teacher": "qwen3"}, ["trainer.strategy.tensor_model_parallel_size=2"], 2,
    ),
    "xtoken_gold_qwen3_llama1b": ("llama1b", {"teacher": "qwen3"}),
    "xtoken_uld_qwen3_llama1b": ("llama1b", {"teacher": "qwen3"}),
    "xtoken_ce_llama1b": ("llama1b", {}),
}  # fmt: skip
_ROPE = {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0, "factor": 32.0}
_LLAMA: dict[str, Any] = {
    "num_hidden_layers": 2,
    "rope_scaling": {**_ROPE, "original_max_position_embeddings": 8192},
    "rope_theta": 5e5,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 131072,
}
#: Toy -> kind, settings.  All but the widths are those of the models that the recipes are for.
TOYS = {
    "llama1b": ("llama-tied", _LLAMA),
    "llama3b": ("llama-tied", {**_LLAMA, "num_hidden_layers": 3}),
    "llama8b": ("llama", {**_LLAMA, "rope_scaling": {**_LLAMA["rope_scaling"], "factor": 8.0}}),
    "qwen3": ("qwen3-tied", {}),
    "phi4mini": ("phi3", {"tokenizer": "sp_bpe"}),
}
#: What the toys and a test's patience want; everything else is the recipe's.
SMALL = [
    "model.config.num_layers=2", "model.config.hidden_size=48", "model.config.ffn_hidden_size=80",
    "model.config.num_attention_heads=4", "model.config.num_query_groups=2", "model.config.seq_length=64",
    "data.text.student_length=64", "data.text.held_out=1", "data.text.workers=0", "samples.new_tokens=2",
    "data.micro_batch_size=2", "data.global_batch_size=4", "data.loader_workers=0",
    "optim.config.lr=1e-2", "optim.lr_scheduler.warmup_steps=1",
    "log.ckpt.every_n_train_steps=2", "log.ckpt.save_top_k=0", "log.log_dir=runs",
]  # fmt: skip

pytestmark = pytest.mark.usefixtures("command_line")


#: The toys' chat templates; the teacher's has markers of its own.
TEMPLATES = {
    "llama8b": "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
    "{{ m.content }}<|eot_id|>{% endfor %}",
    "qwen3": "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}",
}


def in_rank(folder, function, *args, ranks=1):
    """The result of a function on the first of some processes, which all run it."""
    return launch(function, *args, ranks=ranks, folder=folder / "logs")[0]


def on_a_login_node(folder, *lines):
    """The same where no job has given a number of processes."""
    del os.environ["WORLD_SIZE"], os.environ["LOCAL_WORLD_SIZE"]
    return commands(folder, *lines)


def commands(folder, *lines):
    """``nemo llm distill WORDS`` for each line, in ``folder``, in this process: (exit status, output) of each."""
    os.chdir(folder)
    os.environ.update(NEMO_XTOKEN_CACHE=str(folder / "cache"), COLUMNS="200")
    from nemo_run.__main__ import app
    from typer.testing import CliRunner

    runner = CliRunner()
    return [(r.exit_code, r.output) for r in (runner.invoke(app, ["llm", "distill", *words]) for words in lines)]


# --- as it is


@pytest.fixture(scope="module")
def shown(command_line, tmp_path_factory):
    """For each recipe: its YAML on two sizes, and what a dry run shows."""
    folder = tmp_path_factory.mktemp("shown")
    lines = {}
    for name in RECIPES:
        lines[name, "yaml"] = ["--recipe", name, "--to-yaml", f"{name}.yaml"]
        lines[name, "16"] = ["--recipe", f"{name}(nodes=16)", "--to-yaml", f"{name}_16.yaml"]
        lines[name, "dryrun"] = ["--recipe", name, "--dryrun", "trainer.max_steps=77", "log.name=mine"]
    lines["list"] = ["--list-recipes"]
    results = dict(zip(lines, in_rank(folder, on_a_login_node, folder, *lines.values()), strict=True))
    for key, (status, output) in results.items():
        assert status == 0, (key, output[-3000:])
    return folder, results


def read(file):
    return yaml.safe_load(file.read_text())


def test_all_recipes_are_here():
    others = {"xtoken", "xtoken_tiny", "xtoken_swap", "xtoken_compress"}  # with tests of their own
    assert set(available_recipes()) - others == set(RECIPES)


@pytest.mark.parametrize("name", RECIPES)
def test_it_is_listed_with_a_summary(name, shown):
    _, results = shown
    assert re.search(rf"^  {name} +\S.+\.$", results["list"][1], re.MULTILINE)


@pytest.mark.parametrize("name", RECIPES)
def test_the_yaml_beside_it_is_the_recipe(name, shown):
    folder, _ = shown
    path = ROOT / "conf" / f"{name}.yaml"
    if os.environ.get("WRITE_CONF"):
        head = f"# The recipe {name} as a file: nemo llm distill --yaml {name}.yaml\n"
        head += f"# Made by: nemo llm distill --recipe {name} --to-yaml {name}.yaml\n"
        path.write_text(head + (folder / f"{name}.yaml").read_text())
    assert read(path) == read(folder / f"{name}.yaml")


@pytest.mark.parametrize("name", RECIPES)
def test_a_dry_run_shows_what_was_overridden(name, shown):
    _, results = shown
    output = results[name, "dryrun"][1]
    assert "max_steps=77" in output
    assert "mine" in output


@pytest.mark.parametrize("name", RECIPES)
def test_more_nodes_change_the_layout_alone(name, shown):
    folder, _ = shown
    one, sixteen = (read(folder / f"{name}{end}.yaml") for end in ("", "_16"))
    assert (one["trainer"]["num_nodes"], sixteen["trainer"]["num_nodes"]) == (1, 16)
    for run, nodes in ((one, 1), (sixteen, 16)):
        strategy, data = run["trainer"]["strategy"], run["data"]
        ranks = nodes * 8 // (strategy["tensor_model_parallel_size"] * strategy["context_parallel_size"])
        assert data["global_batch_size"] % (data["micro_batch_size"] * ranks) == 0
        del run["trainer"]["num_nodes"], data["micro_batch_size"]
        del strategy["tensor_model_parallel_size"], strategy["sequence_parallel"]
    assert one == sixteen


def test_the_layout_is_that_of_the_next_smaller_number_of_nodes():
    from nemo_xtoken.errors import InputError
    from nemo_xtoken.recipes.common import Layout, lay_out

    layouts = {1: Layout(tensor=4), 8: Layout(tensor=2)}
    assert [lay_out(n, layouts)[1].tensor for n in (1, 7, 8, 9)] == [4, 4, 2, 2]
    with pytest.raises(InputError, match="nodes=0"):
        lay_out(0, layouts)


def test_the_number_of_nodes_follows_the_job(monkeypatch):
    from nemo_xtoken.recipes.common import Layout, lay_out

    for name, value in {"WORLD_SIZE": "64", "LOCAL_WORLD_SIZE": "8"}.items():
        monkeypatch.setenv(name, value)
    assert lay_out(None, {1: Layout()})[0] == 8
    assert lay_out(2, {1: Layout()})[0] == 2


# --- what they need, on paper


@pytest.fixture(scope="module")
def sizes(nemo):
    """``benchmarks/recipe_sizes.py`` and what it says of each recipe on each number of nodes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "benchmarks")
        import recipe_sizes
    found = recipe_sizes.all_figures({name: available_recipes()[name].load() for name in recipe_sizes.MODELS})
    return recipe_sizes, list(found)


def test_the_table_in_the_docs(sizes):
    recipe_sizes, figures = sizes
    assert set(recipe_sizes.MODELS) == set(RECIPES)
    path = ROOT / "docs" / "recipes.md"
    text, table = path.read_text(), recipe_sizes.markdown(recipe_sizes.HEADINGS, [one.row() for one in figures])
    if os.environ.get("WRITE_CONF"):
        text = re.sub(r"\| recipe \| nodes \|.*?\n\n", lambda _: f"{table}\n\n", text, flags=re.DOTALL)
        path.write_text(text)
    assert table in text


@pytest.mark.parametrize("name", RECIPES)
def test_the_figures_in_its_text(name, sizes):
    _, figures = sizes
    one, *_, most = [figure for figure in figures if figure.recipe == name]
    wanted = f"{one.gib:.0f} GiB of a GPU and {one.time} on 1 node, {most.gib:.0f} GiB and {most.time} on 16."
    assert wanted in (ROOT / "recipes" / f"{name}.py").read_text()
    row = f"| 8 / 128 | {one.gib:.0f} / {most.gib:.0f} | {one.time} / {most.time} |"
    line = next(x for x in (ROOT / "docs" / "recipes.md").read_text().splitlines() if x.startswith(f"| `{name}` |"))
    assert row in line


# --- at toy width


@pytest.fixture(scope="module")
def world(command_line, tmp_path_factory):
    """A folder with text and conversations and, in ``nemo``, every toy imported."""
    folder = tmp_path_factory.mktemp("toys")
    pieces = [TEXT[i : i + 300] for i in range(0, 9000, 300)]
    (folder / "text.txt").write_text("\n\n".join(pieces))
    talks = [[{"role": "user", "content": a[:40]}, {"role": "assistant", "content": a[40:150]}] for a in pieces]
    (folder / "talks.jsonl").write_text("".join(json.dumps({"messages": talk}) + "\n" for talk in talks))
    for name, (kind, settings) in TOYS.items():
        write_model(kind, folder / "hf" / name, **settings)
        if name in TEMPLATES:
            (folder / "hf" / name / "chat_template.jinja").write_text(TEMPLATES[name])
    in_rank(folder, _import, folder, list(TOYS))
    return folder


def _import(folder, names):
    from nemo_xtoken.plugin.nemo2.conversion import import_model

    for name in names:
        import_model(folder / "hf" / name, folder / "nemo" / name)


def _export(run, out):
    """Exports; random tokens, and what the trained student says to them by Megatron's own forward pass in float32."""
    import torch
    from toy_models import nemo_logits

    from nemo_xtoken.plugin.nemo2.conversion import export_model
    from nemo_xtoken.plugin.nemo2.hf.exporting import find_checkpoint

    torch.set_num_threads(1)
    export_model(run, out, dtype="float32")
    size = json.loads((out / "config.json").read_text())["vocab_size"]
    tokens = torch.randint(0, size, (2, 60), generator=torch.Generator().manual_seed(1))
    said = nemo_logits(find_checkpoint(run), tokens, params_dtype=torch.float32, bf16=False, autocast_dtype=None)
    return tokens, said[..., :size]


def _words(folder, name, student, teachers):
    chat = name == "xtoken_qwen3_14b_llama8b"
    text = ["talks.jsonl"] if chat else ["text.txt", "data.text.text_split=paragraph"]
    paths = [f"{where}.path={folder / 'nemo' / toy}" for where, toy in teachers.items()]
    longer = ["data.text.teacher_length=96"] if teachers else []
    start = [f"resume.restore_config.path={folder / 'nemo' / student}", f'data.text.paths=["{folder / text[0]}"]']
    return ["--recipe", name, *SMALL, *longer, *paths, *start, *text[1:]]


def _steps(run):
    lines = (run / "history.jsonl").read_text().splitlines()
    return [record for record in map(json.loads, lines) if "ce" in record]


def _there_and_back(world, name, student, teachers, more, ranks, lengths=(2, 3)):
    """Trains, goes on, exports, and compares what the trained and the exported student say."""
    words = [*_words(world, name, student, teachers), *more]
    run = world / "runs" / next((word.removeprefix("log.name=") for word in more if word.startswith("log.name=")), name)
    for steps in lengths:  # the second run goes on where the first one ended
        [(status, output)] = in_rank(world, commands, world, [*words, f"trainer.max_steps={steps}"], ranks=ranks)
        assert status == 0, output[-6000:]
        records = _steps(run)
        assert [record["step"] for record in records] == list(range(1, steps + 1))
    assert all(record["ce"] > 0 for record in records)
    assert all(("kd" in record and record["kd"] > 0) == bool(teachers) for record in records)
    tokens, trained = in_rank(world, _export, run, run / "student")
    exported, before = logits(run / "student", tokens), logits(world / "hf" / student, tokens)
    assert (trained - exported).abs().max() < 1e-4
    assert (exported - before).abs().max() > 1e-2  # it has learnt


@pytest.mark.parametrize("name", RECIPES)
def test_import_train_resume_export(name, world):
    _there_and_back(world, name, *(*RECIPES[name], [], 1)[:4])


def _refused(folder, lines):
    """What ``lines`` come to on the command line, and whether any of them made a run's folder."""
    done = commands(folder, *lines)
    return done, (folder / "runs" / "wrong").exists()


def test_what_is_missing_or_does_not_fit_is_one_message(world, tmp_path):
    good = [*_words(world, "xtoken_qwen3_llama1b", "llama1b", {"teacher": "qwen3"}), "log.name=wrong"]
    recipe = ["--recipe", "xtoken_qwen3_llama1b"]
    both = ["--recipe", "xtoken_phi4mini_llama3b_llama1b", 'data.text.paths=["a.txt"]']
    wrong = {
        "resume.restore_config.path (the student), teacher.path (a teacher), data.text.paths (the text)": recipe,
        "(the student), teachers.phi.path (a teacher), teachers.llama.path (a teacher)": both,
        "not set: resume.restore_config.path (the student), data.text.paths": ["--recipe", "xtoken_ce_llama1b"],
        "no folder nowhere": [*good, "resume.restore_config.path=nowhere"],
        "model.config.num_layers=2 model.config.rotary_base=500000": [
            *good, "model.config.num_layers=4", "model.config.rotary_base=10000",
        ],
        "no checkpoint in": [*good, f"teacher.path={world / 'hf' / 'qwen3'}"],
    }  # fmt: skip
    done, made = in_rank(tmp_path, _refused, tmp_path, list(wrong.values()))
    for expected, (status, output) in zip(wrong, done, strict=True):
        assert status == 2, output[-3000:]
        assert expected in " ".join(output.split())
        assert "Traceback" not in output
    assert not made


def test_with_real_tokenizers(world, monkeypatch):
    """128,256 and 151,669 tokens, W of both, the output layers as wide as they really are."""
    remember_vocabularies(monkeypatch)
    for toy, name, spare in (("llama1b", "llama3", 0), ("qwen3", "qwen3", 267)):
        real(name)
        kind, settings = TOYS[toy]
        folder = ASSETS / "tokenizers" / name
        write_model(kind, world / "hf" / f"real_{toy}", tokenizer=folder, spare_rows=spare, **settings)
    in_rank(world, _import, world, ["real_llama1b", "real_qwen3"])
    _there_and_back(
        world, "xtoken_qwen3_llama1b", "real_llama1b", {"teacher": "real_qwen3"}, ["log.name=real"], 1, lengths=(2,)
    )

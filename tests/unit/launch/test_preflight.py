"""`xtoken preflight`: each thing that can be wrong, once, on checkpoints as they lie on disk; no NeMo is loaded."""

import dataclasses
import json
import os
import shutil
from collections import namedtuple

import pytest
import yaml
from login_node import on_login_node
from tokenizer_zoo import TEXT, write_folder

from nemo_xtoken.commands.cli import main
from nemo_xtoken.launch import ranks
from nemo_xtoken.launch.slurm_config import SlurmConfig
from nemo_xtoken.preflight import machine
from nemo_xtoken.projection.build import build_projection
from nemo_xtoken.recipes import available_recipes
from nemo_xtoken.vocab.loading import load_vocabulary

LLAMA = {
    "_target_": "nemo.collections.llm.gpt.model.llama.LlamaConfig", "num_layers": 4, "hidden_size": 64,
    "ffn_hidden_size": 96, "num_attention_heads": 8, "num_query_groups": 4, "kv_channels": None, "seq_length": 128,
    "share_embeddings_and_output_weights": False, "gated_linear_unit": True, "add_bias_linear": False,
    "normalization": "RMSNorm", "make_vocab_size_divisible_by": 128, "vocab_size": None, "num_moe_experts": None,
}  # fmt: skip
TOKEN = "hf_" + "a" * 34
SENTENCE = TEXT[:150]


def write_checkpoint(folder, tokenizer, **changes):
    """What NeMo 2 leaves on disk, as far as a preflight reads it."""
    (folder / "weights").mkdir(parents=True)
    (folder / "weights" / "__0_0.distcp").write_bytes(b"")
    write_folder(tokenizer, folder / "context" / "tokenizer")
    content = {
        "_target_": "nemo_xtoken.plugin.nemo2.model.DistillationModel",
        "config": {**LLAMA, **changes},
        "tokenizer": {"_target_": "nemo_xtoken.plugin.nemo2.tokenizer.XTokenTokenizer", "source": "tokenizer"},
    }
    (folder / "context" / "model.yaml").write_text(yaml.safe_dump(content))
    return str(folder)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A student, a teacher, text, and the YAML of a run that has nothing wrong with it."""
    root = tmp_path_factory.mktemp("preflight")
    student = write_checkpoint(root / "student", "llama", vocab_size=1920)
    teacher = write_checkpoint(root / "teacher", "qwen", hidden_size=128)
    write_checkpoint(root / "experts", "qwen", num_moe_experts=4, moe_router_topk=2)
    write_checkpoint(root / "broken", "qwen")
    (root / "broken" / "context" / "model.yaml").write_text("config: [1, 2")
    write_checkpoint(root / "empty", "qwen")
    (root / "empty" / "weights" / "__0_0.distcp").unlink()
    (root / "hugging_face").mkdir()
    (root / "hugging_face" / "config.json").write_text(json.dumps({"model_type": "qwen3", "num_hidden_layers": 2}))
    (root / "wrong").mkdir()
    (root / "wrong" / "tokenizer.json").write_text('{"model": ')
    (root / "text.jsonl").write_text("".join(json.dumps({"text": SENTENCE}) + "\n" for _ in range(1000)))
    vocabularies = [load_vocabulary(f"{path}/context/tokenizer") for path in (student, teacher)]
    build_projection(*vocabularies[::-1]).save(root / "swapped.safetensors")
    (root / "begun" / "checkpoints" / "step_10" / "weights").mkdir(parents=True)
    (root / "begun_by_bridge" / "checkpoints" / "iter_0000010").mkdir(parents=True)
    (root / "begun_by_bridge" / "checkpoints" / "iter_0000010" / "run_config.yaml").touch()
    layout = {f"{n}_parallel_size": 1 for n in ("tensor_model", "pipeline_model", "context")}
    content = {
        "_partial_": True,
        "_target_": "nemo_xtoken.plugin.nemo2.distill.distill",
        "model": {"config": {**LLAMA, "vocab_size": None}},
        "teacher": {"path": teacher, "loss": "p_kl", "options": {"_target_": "x"}, "rule": {"_target_": "x"}},
        "data": {
            "text": {"_target_": "x", "paths": [f"{root}/*.jsonl"], "student_length": 64, "teacher_length": 128},
            "micro_batch_size": 1,
            "global_batch_size": 64,
        },
        "trainer": {"max_steps": 20, "devices": 8, "num_nodes": 1, "strategy": layout},
        "optim": {"config": {"bf16": True, "use_distributed_optimizer": True}, "lr_scheduler": {"warmup_steps": 2}},
        "log": {"log_dir": str(root), "name": "run"},
        "resume": {"restore_config": {"path": student}, "resume_if_exists": True},
    }
    (root / "run.yaml").write_text(yaml.safe_dump(content))
    return root


@pytest.fixture(autouse=True)
def _own_home(tmp_path, monkeypatch, tmp_path_factory):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("NEMO_XTOKEN_CACHE", str(tmp_path_factory.getbasetemp() / "preflight-cache"))
    for name in ("HF_TOKEN", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def look(world, capsys):
    """(exit status, report) of a preflight of the run with some words."""

    def run(*words):
        given = {word.partition("=")[0] for word in words}
        usual = [word for word in (f"yaml={world}/run.yaml", "slurm=none", "gpus=8") if word.split("=")[0] not in given]
        status = main(["preflight", "--json", *usual, *(word.format(world=world) for word in words)])
        return status, json.loads(capsys.readouterr().out)

    return run


def of_status(report, status):
    return [c for c in report["checks"] if c["status"] == status]


def test_a_run_with_nothing_wrong(look, world):
    status, report = look()
    assert (status, report["status"]) == (0, "green"), of_status(report, "red") + of_status(report, "yellow")
    assert of_status(report, "left out") == []
    figures = report["figures"]
    assert figures["tokens_per_step"] == 64 * 64
    assert figures["tokens"] == 20 * 64 * 64
    assert figures["processes"] == 8
    text = (world / "text.jsonl").stat().st_size
    assert figures["data_tokens"] == round(text * figures["tokens_per_byte"])
    encoded = load_vocabulary(f"{world}/student/context/tokenizer").encode_batch([SENTENCE])[0]
    assert figures["tokens_per_byte"] == pytest.approx(len(encoded) / len(SENTENCE.encode()))
    assert figures["projections"]["teacher"]["recommended"] == "p_kl"
    body = 4 * (64 * 8 * (8 + 2 * 4) + 64 * 64 + 3 * 64 * 96 + 2 * 64) + 64
    assert figures["parameters"]["student"] == body + 2 * 1920 * 64


def test_auto_looks_at_a_pair_once(look, monkeypatch):
    from nemo_xtoken.projection import audit

    found = audit._finding
    seen = []
    monkeypatch.setattr(audit, "_finding", lambda *given, **named: seen.append(1) or found(*given, **named))
    status, report = look("teacher.loss=auto")
    assert status == 0
    [said] = [c["found"] for c in report["checks"] if "loss=auto, which is p_kl" in c["found"]]
    assert "student tokens" in said
    assert len(seen) == 1


def test_a_student_made_of_its_teacher_is_known(world, capsys):
    """By the recipes that swap a tokenizer, and with fewer layers: its layers, its rows, its teacher."""
    llama = {
        "model_type": "llama", "num_hidden_layers": 4, "hidden_size": 64, "intermediate_size": 96,
        "num_attention_heads": 8, "num_key_value_heads": 4, "vocab_size": 1000, "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5, "tie_word_embeddings": True,
    }  # fmt: skip
    folder = world / "original"
    write_folder("qwen", folder)
    (folder / "config.json").write_text(json.dumps(llama))

    def checks(recipe, *words):
        usual = [f"model={folder}", f"tokenizer={world}/student/context/tokenizer", "slurm=none", "gpus=1"]
        main(["preflight", "--json", f"recipe={recipe}", *usual, f"data.text.paths={world}/text.jsonl", *words])
        report = json.loads(capsys.readouterr().out)
        said = {(c["check"], c["status"]): json.dumps(c) for c in report["checks"]}
        return said, report["figures"]

    said, figures = checks("xtoken_compress", "layers=0,3")
    assert "2 layers of 64" in said["student", "green"]
    assert "4 layers of 64" in said["teacher", "green"]
    assert set(figures["parameters"]) == {"student", "teacher"}
    whole = checks("xtoken_swap")[1]["parameters"]
    a_layer = 64 * 8 * (8 + 2 * 4) + 64 * 64 + 3 * 64 * 96 + 2 * 64
    assert whole["student"] - figures["parameters"]["student"] == 2 * a_layer
    assert "of the model's 4 layers, 0 to 3" in checks("xtoken_compress", "layers=0,4")[0]["student", "red"]
    assert "tokenizer is not set" in checks("xtoken_swap", "tokenizer=none")[0]["student", "red"]


RED = {
    # words, check, what is said
    "student not set": (["resume.restore_config.path=none"], "student", "resume.restore_config.path is not set"),
    "student missing": (["resume.restore_config.path={world}/nowhere"], "student", "nowhere"),
    "teacher on the hub": (["teacher.path=Qwen/Qwen3-4B"], "teacher", "xtoken import model=Qwen/Qwen3-4B"),
    "teacher not set": (["teacher.path=none"], "teacher", "teacher.path is not set"),
    "second teacher": (["teachers.second.path={world}/nowhere"], "teacher second", "nowhere"),
    "not imported": (["teacher.path={world}/hugging_face"], "teacher", "Hugging Face's format"),
    "no weights": (["teacher.path={world}/empty"], "teacher", "no weights in"),
    "context unreadable": (["teacher.path={world}/broken"], "teacher", "model.yaml cannot be read"),
    "another architecture": (["model.config.num_layers=5"], "student", "num_layers 5 where it has 4"),
    "tokenizer unreadable": (["teacher.tokenizer={world}/wrong"], "vocabularies", "wrong cannot be read"),
    "no tokenizer": (["resume.restore_config=none"], "vocabularies", "no tokenizer for the student"),
    "too few rows": (["model.config.vocab_size=100"], "vocabularies", "output layer has 100 rows"),
    "rows": (
        ["model.config.vocab_size=1921", "trainer.strategy.tensor_model_parallel_size=2"],
        "vocabularies", "tensor_model_parallel_size is 2",
    ),
    "virtual pipeline": (
        ["trainer.strategy.virtual_pipeline_model_parallel_size=2"], "layout", "virtual_pipeline",
    ),
    "processes": (["trainer.strategy.tensor_model_parallel_size=4", "gpus=6"], "layout", "6 processes"),
    "query groups": (["trainer.strategy.tensor_model_parallel_size=8"], "layout", "student has 4 query groups"),
    "heads": (["teacher.tensor_model_parallel_size=16", "nodes=2"], "layout", "teacher has 8 attention heads"),
    "layers": (["trainer.strategy.pipeline_model_parallel_size=8"], "layout", "student has 4 layers"),
    "no experts": (["teacher.expert_model_parallel_size=2"], "layout", "teacher has no experts"),
    "experts": (
        ["teacher.path={world}/experts", "teacher.expert_model_parallel_size=8"], "layout", "teacher has 4 experts",
    ),
    "length": (
        ["trainer.strategy.context_parallel_size=2", "data.text.student_length=66"], "layout", "sequence of 66",
    ),
    "batch": (["data.global_batch_size=60"], "layout", "global batch of 60"),
    "no step": (["trainer.max_steps=0"], "steps", "trainer.max_steps=0"),
    "no such loss": (["teacher.loss=kl"], "W, teacher", "loss='kl'"),
    "loss from nowhere": (["teacher.loss=nowhere_at_all:Loss"], "W, teacher", "cannot be imported"),
    "loss of whole micro-batches": (
        ["teacher.loss=nrl_p_kl", "trainer.strategy.context_parallel_size=2"], "W, teacher",
        "loss=nrl_p_kl with trainer.strategy.context_parallel_size=2",
    ),
    "option of the first version": (["teacher.options.nrl_compat=true"], "W, teacher", "set loss=nrl_p_kl"),
    "loss of one tokenizer": (["teacher.loss=same_tokenizer"], "W, teacher", "whose tokens differ"),
    "option": (["teacher.options.partial_kl=rest"], "W, teacher", "partial_kl='rest' with loss=p_kl"),
    "rule": (["teacher.rule.beta=0"], "W, teacher", "beta=0"),
    "W missing": (["teacher.projection={world}/nowhere"], "W, teacher", "nowhere"),
    "W of another pair": (["teacher.projection={world}/swapped.safetensors"], "W, teacher", "another student"),
    "memory": (["gpu_memory=9"], "memory", "loss: tile 6.0"),
    "no data": (["data.text.paths=[]"], "data", "no data"),
    "data missing": (["data.text.paths={world}/*.parquet"], "data", "matches nothing"),
    "data's check": (["data.text.workers=-1"], "data", "workers=-1"),
    "multi-token prediction": (["model.config.mtp_num_layers=1"], "settings", "model.config.mtp_num_layers=1"),
    "fsdp": (["trainer.strategy.fsdp=megatron"], "settings", "trainer.strategy.fsdp=megatron"),
    "fp8 over context": (
        ["trainer.plugins.fp8=hybrid", "trainer.strategy.context_parallel_size=2"], "settings",
        "trainer.plugins.fp8=hybrid (student) with a context-parallel size of 2",
    ),
    "ahead of stages": (
        ["teacher.ahead=true", "trainer.strategy.pipeline_model_parallel_size=2"], "layout",
        "teacher.ahead=true (teacher) with pipeline_model_parallel_size=2",
    ),
    "ahead in another layout": (
        ["teacher.ahead=true", "teacher.tensor_model_parallel_size=2"], "layout", "with a layout of its own",
    ),
    "ahead with experts": (["teacher.ahead=true", "teacher.path={world}/experts"], "layout", "with 4 experts"),
    "ahead and elsewhere": (
        ["teacher.ahead=true", "teacher.source=cached"], "W, teacher", "teacher.ahead=true with teacher.source=cached",
    ),
    "begun": (
        ["log.name=begun", "resume.resume_if_exists=false"], "run folder",
        "/begun and resume.resume_if_exists=false",
    ),
    "begun by Bridge": (
        ["log.name=begun_by_bridge", "resume.resume_if_exists=false"], "run folder",
        "set log.name=NAME, or remove them",
    ),
    "Slurm": (["slurm=default"], "Slurm", "container_image not set in"),
    "Slurm's file": (["slurm={world}/nowhere.yaml"], "Slurm", "nowhere.yaml"),
}  # fmt: skip


@pytest.mark.parametrize("name", RED)
def test_red(name, look):
    words, check, text = RED[name]
    status, report = look(*words)
    assert (status, report["status"]) == (1, "red")
    found = [c for c in of_status(report, "red") if c["check"] == check]
    assert any(text in c["found"] + c["fix"] for c in found), of_status(report, "red")
    assert all(c["expected"] and c["fix"] for c in of_status(report, "red"))


@pytest.mark.parametrize("name", ["begun", "begun_by_bridge"])
def test_a_run_that_continues_is_green(name, look):
    _, report = look(f"log.name={name}")
    [found] = [c["found"] for c in of_status(report, "green") if c["check"] == "run folder"]
    assert found.endswith("continues from its last checkpoint")


def test_a_loss_from_outside_of_the_package(look, tmp_path, monkeypatch):
    """Is imported here too, and asked what any other is."""
    lines = "from nemo_xtoken.losses.elementwise import ElementwiseDivergence as Base\n\n\nclass Loss(Base):\n    {}\n"
    (tmp_path / "loss_of_mine.py").write_text(lines.format("pass"))
    (tmp_path / "partial_loss_of_mine.py").write_text(lines.format('suits = frozenset({"inside"})'))
    monkeypatch.syspath_prepend(tmp_path)
    status, report = look("teacher.loss=loss_of_mine:Loss")
    assert (status, report["status"]) == (0, "green")
    assert any("loss=loss_of_mine:Loss" in c["found"] for c in of_status(report, "green"))
    _, report = look("teacher.loss=partial_loss_of_mine:Loss")
    assert any("loss=partial_loss_of_mine:Loss" in c["found"] for c in of_status(report, "yellow"))
    status, report = look("teacher.loss=loss_of_mine:Loss", "teacher.options.top_k=5")
    assert status == 1
    assert any("top_k=5 with loss=loss_of_mine:Loss" in c["found"] for c in of_status(report, "red"))


EVERYTHING = "executor.container_mounts=[/:/]"
YELLOW = {
    "longer than trained": (["data.text.student_length=256"], "student", "made for 128"),
    "over nodes": (["nodes=4", "gpus=2", "trainer.strategy.tensor_model_parallel_size=4"], "layout", "a node 2"),
    "bubble": (
        ["trainer.strategy.pipeline_model_parallel_size=4", "data.global_batch_size=8"], "layout", "43% of a step",
    ),
    "copies": (["data.global_batch_size=24", "teacher.tensor_model_parallel_size=1", "nodes=1",
                "trainer.strategy.tensor_model_parallel_size=4", "data.micro_batch_size=2"], "layout", "8 copies"),
    "warm-up": (["optim.lr_scheduler.warmup_steps=20"], "steps", "20 steps of warm-up"),
    "loss": (["teacher.loss=h_kl"], "W, teacher", "loss=h_kl"),
    "loss of common tokens": (["teacher.loss=gold"], "W, teacher", "loss=gold"),
    "loss that leaves chunks out": (["teacher.loss=strict_1to1"], "W, teacher", "scores none of"),
    "memory": (["gpu_memory=9.1"], "memory", "GiB on a GPU"),
    "epochs": (["trainer.max_steps=2000"], "data", "epochs of it"),
    "hub": (["teacher.tokenizer=Qwen/Qwen3-4B"], "hub", "HF_TOKEN is not set"),
    "image": (["slurm=default", "executor.container_image=/nowhere/x.sqsh", EVERYTHING], "versions", "/nowhere/x.sqsh"),
    "sinks in an image": (
        ["slurm=default", "executor.container_image=x", EVERYTHING, "model.config.softmax_type=learnable"], "settings",
        "Transformer Engine of an unknown version",
    ),
    "no Transformer Engine": (["slurm=venv"], "attention", "0.0 GiB of attention scores"),
    "account": (["slurm=venv"], "Slurm", "no account and partition"),
    "secret not set": (["slurm=venv", "executor.pass_env=[ALL, NOT_SET_HERE]"], "Slurm", "NOT_SET_HERE is in pass_env"),
    "time": (
        ["slurm=venv", "trainer.max_steps=2000000000", "executor.requeue=false"], "time", "chain=1 without requeue",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", YELLOW)
def test_yellow(name, look, monkeypatch):
    words, check, text = YELLOW[name]
    if name == "hub":
        monkeypatch.setattr("nemo_xtoken.preflight.tokenizers.vocabularies", lambda plan: [])  # no network
    status, report = look(*words)
    assert (status, report["status"]) == (0, "yellow"), of_status(report, "red")
    found = [c for c in of_status(report, "yellow") if c["check"] == check]
    assert any(text in c["found"] for c in found), of_status(report, "yellow")
    assert all(c["expected"] and c["fix"] for c in of_status(report, "yellow"))


def test_slurm_that_nobody_asked_for_is_no_error(world, capsys):
    words = ["preflight", "--json", f"yaml={world}/run.yaml", "gpus=8"]
    assert main(words) == 0
    report = json.loads(capsys.readouterr().out)
    assert [c["status"] for c in report["checks"] if c["check"] == "Slurm"] == ["yellow"]


def test_nodes_and_gpus_are_the_jobs(look):
    _, report = look("slurm=venv", "executor.nodes=2", "executor.gpus_per_node=4", "gpus=4")
    assert report["figures"]["processes"] == 8
    _, report = look("slurm=none", "nodes=3", "data.global_batch_size=48")
    assert report["figures"]["processes"] == 24


@pytest.mark.parametrize("none", ["0", "0:00", "00:00:00", "0-0"])
def test_a_job_without_a_time_limit_is_one_job(look, none):
    words = ["slurm=venv", "executor.gpus_per_node=8", "executor.requeue=false", "trainer.max_steps=100000000"]
    _, report = look(*words, "executor.time=10")
    assert report["figures"]["jobs"] > 1
    assert [c["status"] for c in report["checks"] if c["check"] == "time"] == ["yellow"]
    _, report = look(*words, f"executor.time={none}")
    assert report["figures"]["jobs"] == 1
    [found] = [c for c in report["checks"] if c["check"] == "time"]
    assert found["status"] == "green"
    assert found["found"].endswith("1 job of no time limit")
    assert any("no time limit" in c["found"] for c in report["checks"] if c["check"] == "Slurm")


# --- what the machine is like


def hub_findings(world, monkeypatch, slurm=None, **environment):
    from nemo_xtoken.preflight.plan import Plan
    from nemo_xtoken.run.settings import Settings
    from nemo_xtoken.run.sides import run_of

    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    settings = Settings.read(world / "run.yaml", ["model.tokenizer.source=meta-llama/Llama-3.2-1B"])
    [finding] = machine.hub(Plan(settings, dataclasses.replace(run_of(settings, 8), teachers=()), 1, 8, 80.0), slurm)
    assert TOKEN not in str(finding)
    return finding


def test_a_token_reaches_the_job(world, monkeypatch):
    assert "is not set" in hub_findings(world, monkeypatch).found
    assert hub_findings(world, monkeypatch, HF_TOKEN=TOKEN).status == "green"
    withheld = hub_findings(world, monkeypatch, SlurmConfig(pass_env=("PATH",)), HF_TOKEN=TOKEN)
    assert (withheld.status, withheld.fix) == ("yellow", "executor.pass_env=[PATH, HF_TOKEN]")
    offline = hub_findings(world, monkeypatch, SlurmConfig(env_vars={"HF_HUB_OFFLINE": "1"}), HF_TOKEN=TOKEN)
    assert "switched off" in offline.found


def test_a_token_is_not_shown(look, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    _, report = look("slurm=venv", "executor.pass_env=[ALL, HF_TOKEN]")
    assert TOKEN not in json.dumps(report)


@pytest.mark.parametrize(("free", "status"), [(1e3, "red"), (1.05, "yellow"), (100, "green")])
def test_space(free, status, look, monkeypatch):
    """Where ``free`` is below 1000, so many times what is needed."""
    _, report = look()
    need = 2 * report["figures"]["checkpoint_bytes"]
    usage = namedtuple("usage", "total used free")
    there = need * free if free < 1000 else free
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(0, 0, there))
    _, report = look()
    assert [c["status"] for c in report["checks"] if c["check"] == "disk"][-1] == status


def test_folders_that_cannot_be_written(look, world, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: not str(world).startswith(str(path)))
    status, report = look()
    assert status == 1
    assert {c["check"] for c in of_status(report, "red")} == {"disk", "run folder"}


def test_versions_that_were_not_tested(look, monkeypatch):
    from nemo_xtoken.environment import COMPONENTS, Found, Stack

    found = [Found(c, "9.9", "tested with 0.15") if c.name == "Megatron-core" else Found(c, "1") for c in COMPONENTS]
    monkeypatch.setattr(machine, "find_stack", lambda: Stack(tuple(found)))
    _, report = look()
    assert "Megatron-core 9.9 (tested with 0.15)" in of_status(report, "yellow")[0]["found"]
    monkeypatch.setattr(machine, "find_stack", lambda: Stack(tuple(Found(c, None) for c in COMPONENTS)))
    _, report = look()
    assert "no NeMo, Megatron-core" in of_status(report, "yellow")[0]["found"]


def test_a_login_node(world):
    """What needs more than the page of clusters installs is left out, the rest is checked; the table is plain text."""
    words = ["gpus=8", "slurm=none", "trainer.strategy.tensor_model_parallel_size=8"]
    run = on_login_node(["preflight", f"yaml={world}/run.yaml", *words])
    assert run.returncode == 1, run.stderr
    assert "[red] layout: the student has 4 query groups" in run.stdout
    assert "    to fix: " in run.stdout
    assert "[left out] vocabularies: needs the package numpy" in run.stdout
    assert "[left out] data" in run.stdout
    assert "[green] student" in run.stdout


# --- recipes, and what is no run


def test_a_recipe_by_name(capsys):
    words = ["recipe=xtoken_tiny", "nodes=1", "gpus=1", "slurm=none", "--json"]
    assert main(["preflight", *words]) == 0
    report = json.loads(capsys.readouterr().out)
    assert not of_status(report, "red")
    assert any("trains it itself" in c["found"] for c in of_status(report, "left out"))
    assert report["figures"]["steps"] == 120


@pytest.mark.parametrize(
    ("word", "gpus"),
    [("devices=2", 2), ("devices=[0, 1, 2]", 3), ("devices=auto", 5), ("devices=-1", 5), ("devices=0", 5)],
)
def test_gpus_are_the_runs_else_those_of_this_machine(word, gpus, capsys, monkeypatch):
    monkeypatch.setattr(ranks, "gpus_here", lambda: 5)
    assert main(["preflight", "recipe=xtoken_tiny", "nodes=1", "slurm=none", "--json", f"trainer.{word}"]) in (0, 1)
    assert json.loads(capsys.readouterr().out)["figures"]["gpus_per_node"] == gpus


def test_a_right_command_is_not_refused(capsys):
    words = ["recipe=xtoken_tiny", "nodes=1", "gpus=1", "slurm=none", "--json", "evaluate.every=120"]
    assert main(["preflight", *words]) == 0
    assert not of_status(json.loads(capsys.readouterr().out), "red")


def test_the_layout_of_a_recipe_follows_the_nodes(tmp_path, monkeypatch):
    from nemo_xtoken.recipes import Recipe
    from nemo_xtoken.run.settings import Settings

    (tmp_path / "of_mine.py").write_text(
        '"""Mine."""\nLAYOUTS = {1: Layout(tensor=4, micro_batch=2), 8: Layout(context=2)}\n'
    )
    monkeypatch.syspath_prepend(tmp_path)
    recipe = Recipe("of_mine", "of_mine", "of_mine")
    assert recipe.layouts == {1: {"tensor": 4, "micro_batch": 2}, 8: {"context": 2}}
    assert recipe.yaml is None
    settings = Settings({"_target_": "x"}, "here")
    settings.lay_out(4, recipe.layouts)
    strategy = settings.part("trainer.strategy")
    assert (strategy["tensor_model_parallel_size"], strategy["sequence_parallel"]) == (4, True)
    assert (settings.get("data.micro_batch_size"), settings.get("trainer.num_nodes")) == (2, 4)
    settings.lay_out(9, recipe.layouts)
    assert settings.part("trainer.strategy")["context_parallel_size"] == 2


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ([], "not one of recipe= and yaml="),
        (["recipe=xtoken_tinny"], "did you mean 'xtoken_tiny'"),
        (["recipe=xtoken_tiny(steps=3)"], "has no argument 'steps'"),
        (["recipe=xtoken_tiny", "nodes=0"], "nodes=0"),
        (["yaml=/nowhere.yaml"], "/nowhere.yaml"),
        (["recipe=xtoken_tiny", "trayner.max_steps=3"], "there is no argument 'trayner'"),
        (["recipe=xtoken_tiny", "trainer.max_steps*=3"], "trainer.max_steps*=3"),
        (["recipe=xtoken_tiny", "data.text.student_length=many"], "data.text.student_length='many'"),
        (["recipe=xtoken_tiny", "trainer.max_steps=many"], "trainer.max_steps='many'"),
        (
            ["recipe=xtoken_tiny", "teacher.options.topk=5"],
            "no argument 'topk' in teacher.options; did you mean 'top_k'",
        ),
        (["recipe=xtoken_tiny", "data.text.lenght=3"], "no argument 'lenght' in data.text"),
        (["recipe=xtoken_tiny", "teacher.los=gold"], "no argument 'los' in teacher; did you mean 'loss'"),
        (["recipe=xtoken_tiny", "objective.tile_mb=3"], "no argument 'tile_mb' in objective; did you mean 'tile_mib'"),
        (["recipe=xtoken_tiny", "optim.lr=1"], "no argument 'lr' in optim; did you mean optim.config.lr"),
    ],
)
def test_what_is_no_run(words, text, capsys):
    assert main(["preflight", "--json", "slurm=none", *words]) == 2
    assert text in capsys.readouterr().err


def test_every_recipe_with_a_file_can_be_looked_at():
    from nemo_xtoken.run.settings import Settings

    recipes = [recipe for recipe in available_recipes().values() if recipe.yaml is not None]
    assert recipes
    for recipe in recipes:
        settings = Settings.read(recipe.yaml)
        settings.lay_out(16, recipe.layouts)
        assert settings.number("data.global_batch_size") >= settings.number("data.micro_batch_size", 1)


def test_the_table(look, world, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "150")
    words = ["preflight", f"yaml={world}/run.yaml", "gpus=8", "slurm=none"]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert "It can run." in out
    assert main([*words, "teacher.path=nowhere"]) == 1
    out = capsys.readouterr().out
    assert "It would fail." in out
    assert "to fix:" in out


@pytest.mark.parametrize(
    ("words", "status"),
    [
        ([], "green"),  # below the folder that the job starts in
        (["executor.env_vars.NEMO_XTOKEN_CACHE=/home/xtoken/.cache"], "red"),
        (["executor.env_vars.NEMO_XTOKEN_CACHE=/shared/cache"], "red"),
        (["executor.env_vars.NEMO_XTOKEN_CACHE=/shared/cache", "executor.container_mounts=[/shared:/shared]"], "green"),
        (["executor.env_vars.NEMO_XTOKEN_CACHE=/sharedcache", "executor.container_mounts=[/shared:/shared]"], "red"),
        (["data.text.cache_dir=/root/cache"], "red"),
        (["data.text.cache_dir=cache"], "red"),
    ],
)
def test_a_cache_inside_of_the_container_is_red(look, words, status, monkeypatch):
    """Each node would prepare the text by itself, for the time of the job."""
    monkeypatch.delenv("NEMO_XTOKEN_CACHE", raising=False)
    _, report = look("slurm=default", "executor.container_image=x", "executor.workdir=/lustre/me", *words)
    found = {finding["status"] for finding in report["checks"] if finding["check"] == "cache"}
    assert status in found
    assert status == "red" or "red" not in found


def test_the_submitters_cache_counts_where_the_job_gets_it(look, monkeypatch):
    monkeypatch.setenv("NEMO_XTOKEN_CACHE", "/home/me/cache")
    words = ["slurm=default", "executor.container_image=x", "executor.workdir=/lustre/me"]
    for more, status in (([], "red"), (["executor.pass_env=[PATH]"], "green")):
        _, report = look(*words, *more)
        assert {f["status"] for f in report["checks"] if f["check"] == "cache"} == {status}


def test_too_few_open_files_are_told(monkeypatch):
    monkeypatch.setattr(machine.resource, "getrlimit", lambda which: (64, 64))
    (finding,) = machine.descriptors()
    assert finding.found.startswith("at most 64")
    monkeypatch.setattr(machine.resource, "getrlimit", lambda which: (64, 65536))
    assert not list(machine.descriptors())


def in_container(world, *mounts):
    """Words of a job in a container, which has these mounts."""
    image = world / "image.sqsh"
    image.touch()
    return [
        "slurm=default", "executor.account=me", "executor.partition=gpu", f"executor.container_image={image}",
        f"executor.workdir={world / 'begun'}", "executor.container_mounts=[" + ", ".join(mounts) + "]",
        f"executor.env_vars.NEMO_XTOKEN_CACHE={world / 'begun' / 'cache'}",
    ]  # fmt: skip


def test_paths_outside_of_the_container_are_named(look, world):
    status, report = look(*in_container(world, f"{world}/student:{world}/student"))
    red = [c for c in of_status(report, "red") if c["check"] == "mounts"]
    assert status == 1
    assert len(red) == 3
    assert {c["found"].partition("=")[0] for c in red} == {"teacher.path", "data.text.paths.0", "log.log_dir"}
    assert all("add" in c["fix"] and "container_mounts" in c["fix"] for c in red)
    assert f"add {world}:{world}" in next(c["fix"] for c in red if c["found"].startswith("data"))

    status, report = look(*in_container(world, f"{world}:{world}"))
    assert not [c for c in of_status(report, "red") if c["check"] == "mounts"]
    assert any(c["check"] == "mounts" for c in of_status(report, "green"))


def test_paths_of_the_container_are_looked_up_on_this_machine(look, world):
    there = [
        "data.text.paths=['/in/data/text.jsonl']", "teacher.path=/in/data/teacher",
        "resume.restore_config.path=/in/student", f"log.log_dir={world}/begun",
    ]  # fmt: skip
    mounts = (f"{world}:/in/data:ro", f"{world}/student:/in/student")
    _, report = look(*in_container(world, *mounts), *there)
    named = {c["check"]: c for c in of_status(report, "red")}
    assert not {"student", "teacher", "data", "mounts", "vocabularies"} & set(named), named
    _, report = look(*in_container(world, mounts[1]), *there)
    assert {"data", "teacher"} & {c["check"] for c in of_status(report, "red")}


def test_paths_below_the_home_folder_are_those_of_the_run(look, world, monkeypatch):
    """Every one of them, as a run has them; in a container they have to be below a mount."""
    monkeypatch.setenv("HOME", str(world))
    words = [
        "teacher.path=~/teacher", "resume.restore_config.path=~/student", "log.log_dir=~/",
        "data.text.paths=['~/*.jsonl']", "teacher.tokenizer=~/teacher/context/tokenizer",
    ]  # fmt: skip
    status, report = look(*words)
    assert (status, of_status(report, "red")) == (0, [])
    assert any(c["check"] == "run folder" and c["found"] == f"{world}/run" for c in of_status(report, "green"))
    _, report = look(*in_container(world, f"{world}/student:{world}/student"), *words)
    named = {c["found"].partition("=")[0] for c in of_status(report, "red") if c["check"] == "mounts"}
    assert {"teacher.path", "log.log_dir", "data.text.paths.0"} <= named

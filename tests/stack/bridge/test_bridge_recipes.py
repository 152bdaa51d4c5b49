"""Recipes where NeMo 2 is absent: their settings for Megatron-Bridge, and what `nemo llm distill` answers."""

import json
import os
import subprocess
import sys
from pathlib import Path

import fiddle as fdl
import numpy as np
import pytest
import yaml

from nemo_xtoken.errors import InputError
from nemo_xtoken.recipes import available_recipes

SUPPORT = Path(__file__).parents[2] / "support"
RECIPES = {name: recipe for name, recipe in available_recipes().items() if recipe.yaml}
#: A setting, where the recipe's file has it, and where Bridge's run has it.
SETTINGS = (
    "data.global_batch_size",
    "data.micro_batch_size",
    "data.text.student_length",
    "data.text.held_out",
    "log.name",
    "log.ckpt.every_n_train_steps",
    "objective.scale",
    "optim.config.lr",
    "optim.config.adam_beta2",
    "optim.lr_scheduler.min_lr",
    "optim.lr_scheduler.warmup_steps",
    "trainer.max_steps",
    "trainer.val_check_interval",
    "trainer.plugins.precision",
    "trainer.strategy.sequence_parallel",
    "trainer.strategy.tensor_model_parallel_size",
)


def _content(name):
    return yaml.safe_load(RECIPES[name].yaml.read_text())


def _at(thing, path):
    for part in path.split("."):
        thing = thing.get(part) if isinstance(thing, dict) else getattr(thing, part)
    return thing


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_a_recipe_has_the_same_settings_under_bridge(name, tmp_path, monkeypatch):
    monkeypatch.setenv("NEMO_XTOKEN_CACHE", str(tmp_path))
    from nemo_xtoken.plugin.bridge.recipe import from_nemo2

    content = _content(name)
    configured = from_nemo2(content, name)
    for path in SETTINGS:
        group, _, key = path.rpartition(".")
        if key in (_at(content, group) or {}):
            assert _at(configured, path) == _at(content, path), path
    for argument in ("trainer", "optim", "log", "resume", "objective"):
        fdl.build(getattr(configured, argument))
    teachers = [configured.teacher] if "teacher" in content else []
    teachers += [getattr(configured.teachers, name) for name in content.get("teachers", {}) if name != "_target_"]
    losses = [content["teacher"]["loss"]] if "teacher" in content else []
    losses += [one["loss"] for name, one in content.get("teachers", {}).items() if name != "_target_"]
    assert [fdl.build(teacher).loss for teacher in teachers] == losses


def test_what_a_recipe_leaves_out_is_left_to_its_function_or_to_the_command_line(tmp_path, monkeypatch):
    """The demo's students say nothing unless they are asked to, as under NeMo 2."""
    monkeypatch.setenv("NEMO_XTOKEN_CACHE", str(tmp_path))
    from nemo_xtoken.commands.run_settings import find_recipe, read_settings
    from nemo_xtoken.plugin.bridge.recipe import as_partial

    def samples(*words):
        return as_partial(read_settings(find_recipe("xtoken_tiny"), None, words, None, bridge=True).content).samples

    assert samples() is None
    assert fdl.build(samples("samples.count=2")).count == 2


def test_a_recipe_that_does_something_else_is_refused():
    from nemo_xtoken.plugin.bridge.recipe import from_nemo2

    with pytest.raises(InputError, match="the recipe mine under Megatron-Bridge"):
        from_nemo2({"_target_": "mine.function"}, "mine")


def test_a_setting_that_bridge_does_not_have_is_not_lost():
    from nemo_xtoken.plugin.bridge.recipe import from_nemo2

    content = _content("xtoken_qwen3_llama1b")
    content["trainer"]["gradient_clip_val"] = 0.5
    with pytest.raises(InputError, match="trainer sets gradient_clip_val"):
        from_nemo2(content, "mine")


def _drive(folder, commands, *path):
    (folder / "groups.json").write_text(json.dumps([[["llm", "distill", *words] for words in commands.values()]]))
    subprocess.run(
        [sys.executable, SUPPORT / "nemo_driver.py", "groups.json", "results.json"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (*path, SUPPORT))), "COLUMNS": "200"},
        cwd=folder,
        stdin=subprocess.DEVNULL,
        check=True,
        timeout=300,
    )
    return dict(zip(commands, json.loads((folder / "results.json").read_text())[0]["done"], strict=True))


def test_the_command_answers_where_bridge_is_there(tmp_path):
    """Without NeMo 2; a dry run and an export need to know that Bridge is installed, and nothing of it."""
    (tmp_path / "site" / "megatron" / "bridge").mkdir(parents=True)
    recipe = ["--recipe", "xtoken_qwen3_llama1b"]
    done = _drive(
        tmp_path,
        {
            "list": ["--list-recipes"],
            "dry": [*recipe, "--dryrun", "trainer.max_steps=7", "teacher.path=teachers/qwen", "samples.count=9"],
            "nodes": ["--recipe", "xtoken_qwen3_llama1b(nodes=16)", "--to-yaml", "run.yaml", "optim.config.lr=1e-4"],
            "back": ["--yaml", "run.yaml", "--dryrun", "trainer.max_steps=9"],
            "wrong": [*recipe, "trainer.max_step=7"],
            "swap": ["--recipe", "xtoken_swap", "--dryrun", "tokenizer=theirs"],
            "slurm": [*recipe, "--executor", "slurm", "slurm=venv", "executor.nodes=2", "--dryrun"],
        },
        tmp_path / "site",
    )
    statuses = {name: result["status"] for name, result in done.items()}
    assert statuses == {"list": 0, "dry": 0, "nodes": 0, "back": 0, "wrong": 2, "swap": 0, "slurm": 0}, done
    assert "xtoken_qwen3_llama1b " in done["list"]["out"]
    assert "max_steps=7" in done["dry"]["out"]
    assert "path='teachers/qwen'" in done["dry"]["out"]
    assert "count=9" in done["dry"]["out"]
    written = yaml.safe_load((tmp_path / "run.yaml").read_text())
    assert written["_target_"] == "nemo_xtoken.plugin.bridge.distill_bridge.distill"
    assert (written["trainer"]["num_nodes"], written["data"]["micro_batch_size"]) == (16, 2)
    assert written["optim"]["config"]["lr"] == 1e-4
    assert "max_steps=9" in done["back"]["out"]
    assert "did you mean 'max_steps'?" in done["wrong"]["err"]
    assert "theirs" in done["swap"]["out"]
    assert "exec nemo llm distill --recipe xtoken_qwen3_llama1b\n" in done["slurm"]["out"]


@pytest.mark.usefixtures("megatron", "bridge")
def test_any_pair_goes_through_bridge_from_the_command_to_the_exported_student(bridge_world, monkeypatch):
    """The recipe ``xtoken``, given two folders and a text; the layout is chosen as on a GPU."""
    from bridge_jobs import command
    from launcher import launch

    root = bridge_world.root
    words = ["llm", "distill", "--recipe", "xtoken", f"student={root}/student", f"teacher={root}/teacher"]
    words += [f'data.text.paths=["{root}/text/*.txt"]', "data.text.student_length=64", "data.text.teacher_length=96"]
    words += ["data.text.held_out=4", "data.global_batch_size=4", "data.loader_workers=0", "trainer.max_steps=2"]
    words += ["trainer.plugins.precision=32", "optim.config.lr=1e-2", "optim.lr_scheduler.warmup_steps=0", "--yes"]
    words += [f"log.log_dir={root}/runs"]
    monkeypatch.chdir(root)
    [done] = launch(command, words, f"{root}/runs/xtoken", folder=root / "logs/xtoken")
    assert done["status"] == 0, done["out"] + done["err"]
    trained, exported = done["trained"], done["exported"]
    assert trained.shape == exported.shape
    assert np.abs(trained - exported).max() < 1e-4 * exported.std()
    assert f"student     {root}/runs/xtoken/student" in done["out"]

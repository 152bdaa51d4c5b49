"""The lines that introduce a run, from its settings."""

import pytest

from nemo_xtoken.commands.run_header import describe_run
from nemo_xtoken.recipes import available_recipes
from nemo_xtoken.run.settings import Settings

RECIPES = {name: recipe.yaml for name, recipe in available_recipes().items() if recipe.yaml is not None}


def lines(recipe, *overrides, log=None):
    first, *rest = describe_run(recipe, Settings.read(RECIPES[recipe], overrides), log).splitlines()
    assert first.startswith(f"{recipe}: nemo_xtoken ")
    return dict(line.split(maxsplit=1) for line in rest)


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_is_described(recipe):
    found = lines(recipe, "trainer.devices=2")  # as the run has them where the recipe leaves them to the machine
    assert found.keys() - {"teacher"} == {"student", "training", "layout"}
    assert ("teacher" in found) == bool(Settings.read(RECIPES[recipe]).teachers())
    assert "None" not in " ".join(found.values())


def test_student_teachers_lengths_layout_and_log(monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    words = ["teachers.big.path=big", "teachers.big.loss=gold", "teachers.big.length=96", "trainer.num_nodes=2"]
    words += ["teacher.path=small", "teacher.loss=h_kl", "trainer.devices=4", "trainer.max_steps=1200"]
    words += ["trainer.strategy.tensor_model_parallel_size=2", "objective.kernels=torch", "data.global_batch_size=1024"]
    words += ["data.text.student_length=64", "data.text.teacher_length=80", "resume.restore_config.path=start"]
    found = lines("xtoken_qwen3_llama1b", *words, log="runs/it.log")
    assert found["student"] == "Llama32Config1B, 16 layers of 2048, from start"
    assert found["teacher"] == "small, h_kl; big: big, gold"
    assert found["training"] == "1,200 steps of 1,024 samples of 64 and 80 and 96 tokens"
    assert found["layout"].startswith("2 x 4 processes, tensor parallel 2, precision ")
    assert found["layout"].endswith("kernels torch, Slurm job 4711")
    assert found["log"] == "runs/it.log"


def test_a_teacher_that_is_left_out_is_not_named():
    words = ["teacher.path=small", "objective.scale=0"]
    assert "teacher" not in lines("xtoken_qwen3_llama1b", *words)
    assert "tokens" in lines("xtoken_qwen3_llama1b", *words)["training"]


def test_a_swap_names_the_model_and_the_tokenizer():
    assert lines("xtoken_swap", "model=a", "tokenizer=b")["student"] == "a with the tokenizer of b"
    kept = lines("xtoken_compress", "model=a", "tokenizer=b", "layers=0,3")["student"]
    assert kept == "layers 0,3 of a with the tokenizer of b"


def test_lora_says_what_is_trained():
    assert "trained" not in lines("xtoken_swap")
    adapters = "LoRA adapters of rank 8 (linear_qkv, linear_proj)"
    words = ["lora.rank=8", "lora.targets=linear_qkv,linear_proj"]
    of_swap = lines("xtoken_swap", *words)["trained"]
    assert of_swap == f"{adapters}; embeddings and output layer, whole, whose rows for new tokens are guesses before"
    kept = lines("xtoken_swap", *words, "lora.embeddings=false")["trained"]
    assert kept.startswith(f"{adapters}; not the embeddings")
    assert lines("xtoken_qwen3_llama1b", *words)["trained"] == adapters

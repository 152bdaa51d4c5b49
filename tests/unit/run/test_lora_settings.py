"""Settings of LoRA: what is refused from a run's settings alone, and how many numbers are trained."""

import pytest

from nemo_xtoken.errors import InputError
from nemo_xtoken.recipes import available_recipes
from nemo_xtoken.run.layout import ParallelSizes
from nemo_xtoken.run.lora.lora_checks import lora_parameters, lora_problems
from nemo_xtoken.run.lora.lora_settings import TARGETS, LoraConfig
from nemo_xtoken.run.run_checks import check_settings
from nemo_xtoken.run.settings import Settings
from nemo_xtoken.run.sides import lora_of

RECIPES = available_recipes()
REAL, SWAP = "xtoken_qwen3_llama1b", "xtoken_swap"
LLAMA = {
    "num_layers": 2, "hidden_size": 48, "ffn_hidden_size": 80, "num_attention_heads": 4, "num_query_groups": 2,
    "gated_linear_unit": True, "share_embeddings_and_output_weights": False,
}  # fmt: skip


def read(words, recipe=REAL):
    return Settings.read(RECIPES[recipe].yaml, [*words, *(["teacher.path=/nowhere"] if recipe == REAL else [])])


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["lora.rnak=8"], "no argument 'rnak' in lora; did you mean 'rank'?"),
        (["lora.rank=-1"], "lora.rank=-1"),
        (["lora.rank=8", "lora.alpha=0"], "lora.alpha=0"),
        (["lora.rank=8", "lora.alpha=inf"], "lora.alpha=inf"),
        (["lora.rank=8", "lora.targets=linear_qvk"], "lora.targets=linear_qvk; did you mean 'linear_qkv'?"),
        (["lora.rank=8", "lora.targets=linear_qkv,linear_qkv"], "lora.targets=linear_qkv,linear_qkv"),
        (["lora.rank=8", "lora.targets= "], "lora.targets= "),
        (["lora.rank=8", "lora.export=adaptor"], "lora.export=adaptor; did you mean 'adapter'?"),
        (["lora.alpha=8", "lora.embeddings=true"], "lora.alpha, lora.embeddings without lora.rank"),
        (["lora.rank=8", "lora.export=adapter", "lora.embeddings=true"], "lora.export=adapter with lora.embeddings"),
        (["lora.rank=6", "trainer.strategy.tensor_model_parallel_size=4"], "lora.rank=6 with tensor_model_parallel"),
        (["lora.rank=8", "resume.restore_config=none"], "lora.rank=8 for a student that starts from no model"),
        (["lora.rank=4096"], "lora.rank=4096 in a student whose hidden size is 2048"),
        (["lora.rank=8", "model.config.num_moe_experts=4"], "lora.targets with linear_fc1, linear_fc2 in a student"),
    ],
)
def test_refused(words, found):
    with pytest.raises(InputError) as error:
        check_settings(read(words), None)
    assert found in error.value.found
    assert error.value.expected
    assert error.value.fix


@pytest.mark.parametrize(
    "words",
    [
        ["lora.rank=8"],
        ["lora.rank=0"],
        ["lora.rank=8", "lora.alpha=16", "lora.targets=linear_qkv,linear_proj", "lora.export=adapter"],
        ["lora.rank=8", "lora.embeddings=true"],
        ["lora.rank=8", "lora.targets=linear_qkv", "model.config.num_moe_experts=4"],
    ],
)
def test_right(words):
    check_settings(read(words), None)


def test_a_swap_trains_the_rows_of_its_new_tokens():
    assert lora_of(read(["lora.rank=8"], SWAP))[0].embeddings is True
    assert lora_of(read(["lora.rank=8", "lora.embeddings=false"], SWAP))[0].embeddings is False
    assert not lora_of(read(["lora.rank=8"]))[0].embeddings
    with pytest.raises(InputError, match=r"lora\.export=adapter in a swap"):
        check_settings(read(["lora.rank=8", "lora.export=adapter"], SWAP), None)


def test_layers_with_a_norm_behind_them():
    """Of Gemma: what an adapter adds comes after the norm, and cannot be merged into the weight before it."""
    config = LLAMA | {"_target_": "Gemma3Config1B"}
    [problem] = lora_problems(LoraConfig(rank=4), config, ParallelSizes(), True)
    assert "lora.targets with linear_proj, linear_fc2 in a Gemma model" in problem.found
    assert not list(lora_problems(LoraConfig(rank=4, targets="linear_qkv,linear_fc1"), config, ParallelSizes(), True))


def test_the_numbers_that_are_trained():
    """As tests/stack/plugin/test_lora_runs.py finds them in a model."""
    each = {"linear_qkv": 48 + 96, "linear_proj": 48 + 48, "linear_fc1": 48 + 160, "linear_fc2": 80 + 48}
    for target in TARGETS:
        assert lora_parameters(LoraConfig(rank=4, targets=target), LLAMA, 100) == 2 * 4 * each[target]
    both = LoraConfig(rank=4, embeddings=True)
    assert lora_parameters(both, LLAMA, 100) == 2 * 4 * sum(each.values()) + 2 * 100 * 48

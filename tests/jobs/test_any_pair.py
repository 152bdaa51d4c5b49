"""The recipe ``xtoken``, from two folders of Hugging Face's format to a third, between families of models.

Of two families the one learns from the other in one of the two directions, and each learns from itself; of two
tokenizers each is the student's beside the other.  A family meets its partner by the tokenizer and the size of its
output layer alone, so that the other directions would say nothing new.
"""

import itertools
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from damage import flip_first_bit
from launcher import launch
from tokenizer_zoo import TEXT
from toy_models import tokenizer_of, write_model
from warm_commands import distil

ROOT = Path(__file__).parents[2]
#: A toy of each family that can be imported.
FAMILIES = ("llama", "qwen2", "qwen3", "phi3", "gemma3", "mistral", "gpt_oss")
#: From a student to its teachers in this ring.  1, 2 and 4 are the squares modulo 7: of every number but 0 either it
#: or its negative is there.
STEPS = (0, 1, 2, 4)
#: Of gemma3's and mistral's tokenizers, which no other family here has, the second direction.
ONE = ("mistral", "gemma3")
SMALL = [
    "data.text.student_length=32", "data.text.teacher_length=64", "data.text.held_out=1", "data.text.workers=0",
    "data.loader_workers=0", "data.global_batch_size=2", "optim.lr_scheduler.warmup_steps=0", "trainer.max_steps=1",
    "trainer.limit_val_batches=1", "samples.new_tokens=2",
]  # fmt: skip


def teachers_of(kind):
    return [FAMILIES[(FAMILIES.index(kind) + step) % len(FAMILIES)] for step in STEPS]


#: Where no job has given a number of processes.
ON_A_LOGIN_NODE = {"WORLD_SIZE": None, "LOCAL_WORLD_SIZE": None}


def pairs(folder, shown, *lines):
    recipe = ["--recipe", "xtoken"]
    return distil(folder, [ON_A_LOGIN_NODE, *recipe, *shown], *([*recipe, *words] for words in lines))


@pytest.fixture(scope="module")
def families(command_line, tmp_path_factory):
    """A run of one step for each family as the student, and before these what is wrong or only shown."""
    folder = tmp_path_factory.mktemp("pairs")
    for kind in FAMILIES:
        write_model(kind, folder / kind, torch.bfloat16)
    texts = [TEXT[i : i + 200] for i in range(0, len(TEXT), 200)]
    (folder / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    words = [f'data.text.paths=["{folder / "text.jsonl"}"]', *SMALL]
    runs = [
        [
            f"student={folder / kind}",
            *(f"teachers.{teacher}={folder / teacher}" for teacher in teachers_of(kind)),
            *(*words, f"log.name={kind}", f"export={kind == 'gemma3'}"),
        ]
        for kind in FAMILIES
    ]
    student, teacher = (folder / kind for kind in ONE)
    one = [f"student={student}", f"teacher={teacher}", *words, "log.name=one", "export=false"]
    shutil.copytree(student, folder / "later")
    flip_first_bit(folder / "later" / "model.safetensors", "model.norm.weight")
    later = [f"student={folder / 'later'}", *one[1:], "trainer.max_steps=2"]
    [results] = launch(
        pairs, folder, ["--to-yaml", "xtoken.yaml"], ["trainer.max_steps=1"], *runs, one, later,
        folder=folder, timeout=570,
    )  # fmt: skip
    return folder, results


def test_the_yaml_beside_it_is_the_recipe(families):
    path, made = ROOT / "conf" / "xtoken.yaml", families[0] / "xtoken.yaml"
    if os.environ.get("WRITE_CONF"):
        head = "# The recipe xtoken as a file: nemo llm distill --yaml xtoken.yaml\n"
        head += "# Made by: nemo llm distill --recipe xtoken --to-yaml xtoken.yaml\n"
        path.write_text(head + made.read_text())
    assert yaml.safe_load(path.read_text()) == yaml.safe_load(made.read_text())


def test_what_is_left_out_is_named_at_once(families):
    status, output, started = families[1][1]
    assert status == 2
    assert "not set: student (the student), teacher (a teacher), data.text.paths (the text)" in output
    assert started == []


def test_the_pairs_are_enough():
    met = [(kind, teacher) for kind in FAMILIES for teacher in teachers_of(kind)]
    assert {frozenset(pair) for pair in met} == {frozenset(pair) for pair in itertools.product(FAMILIES, repeat=2)}
    tokenizers = {kind: tokenizer_of(kind) for kind in FAMILIES}
    of_tokenizers = {(tokenizers[a], tokenizers[b]) for a, b in (*met, ONE)}
    assert of_tokenizers == set(itertools.product(tokenizers.values(), repeat=2))


def test_each_is_imported_once_for_all_runs(families):
    started = [word for _, _, words in families[1] for word in words]
    assert started.count("import") == len(FAMILIES) + 1  # with the one that is refused


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_family_learns_from_others(families, kind):
    folder, results = families
    status, output, _ = results[2 + FAMILIES.index(kind)]
    assert status == 0, output
    assert "micro-batch 1, on the CPU" in output
    lines = map(json.loads, (folder / "runs" / kind / "history.jsonl").read_text().splitlines())
    [step] = [line for line in lines if "kd" in line]
    kd = {teacher: step[f"kd/{teacher}"] for teacher in teachers_of(kind)}
    assert kd.pop(kind) < 1e-3 < min(kd.values())  # a model has nothing to learn from itself


def test_one_teacher_by_its_short_name(families):
    status, output, started = families[1][-2]
    assert status == 0, output
    assert started == []  # both are in the cache


def test_a_folder_goes_on_with_its_own_student_alone(families):
    folder, results = families
    status, output, _ = results[-1]
    assert status == 2
    assert "began from another student than" in output
    assert str(folder / "later") in output
    steps = (folder / "runs" / "one" / "history.jsonl").read_text().splitlines()
    assert max(json.loads(line)["step"] for line in steps) == 1


def test_the_student_is_exported(families):
    from transformers import AutoModelForCausalLM

    folder, results = families
    _, output, started = results[2 + FAMILIES.index("gemma3")]
    out = folder / "runs" / "gemma3" / "student"
    assert [word for word in started if word != "import"] == ["export"]
    assert f"student     {out.relative_to(folder)}" in output
    before, after = (AutoModelForCausalLM.from_pretrained(path, dtype="auto") for path in (folder / "gemma3", out))
    assert after.dtype == torch.bfloat16
    weights = dict(before.named_parameters())
    assert any(not torch.equal(tensor, weights[name]) for name, tensor in after.named_parameters())
    assert {name: tensor.shape for name, tensor in after.named_parameters()} == {n: t.shape for n, t in weights.items()}

"""`xtoken preflight` and `nemo llm distill --dryrun` judge a command alike.

Every recipe, with overrides that are right, misspelt at every depth, misplaced, of a wrong kind, out of range, or that
contradict each other.

What a preflight finds beyond the settings (checkpoints, tokenizers, W, data, disk, memory) is left out of it here: a
dry run looks at none of it, and the paths of the recipes are the user's.  All of the rest is the real command.
"""

import copy
import functools
import importlib.metadata
import json
import random

import pytest
import yaml
from forked_commands import run_forked
from nemo_driver import drive

from nemo_xtoken.commands.cli import main
from nemo_xtoken.preflight import checkup
from nemo_xtoken.recipes import available_recipes
from nemo_xtoken.run import settings
from nemo_xtoken.run.values import OF_TEACHER, RANGES
from nemo_xtoken.run.yaml_file import read_yaml

MARKS = ("_target_", "_partial_", "_call_")
ANYTHING_GOES = ("trainer.logger", "trainer.strategy.gradient_as_bucket_view")  # by their annotations
RECIPES = {name: recipe for name, recipe in available_recipes().items() if recipe.yaml is not None}
WHOLE = ("xtoken_tiny", "xtoken_qwen3_llama1b")  # these are tried with all of the below
DISTIL = [name for name in RECIPES if name not in ("xtoken_swap", "xtoken_compress")]
#: Right commands, and wrong ones beyond what is made from a recipe's own names.
RIGHT = [
    ["evaluate.every={save}"],
    ["evaluate.every={save}", "evaluate.tasks=mmlu", "evaluate.shots=5"],
    ["teacher.loss=p_kl", "teacher.options.top_k=64", "teacher.weight=2"],
    ["teachers.second.path=/nowhere", "teachers.second.loss=gold", "teachers.second.options.partial_kl=rest"],
    ["data.text.sources.web.paths=a.txt", "data.text.sources.web.weight=2", "data.text.paths=[]"],
    ["data.text.paths=a*.txt"],
    ['data.text.paths=["a.txt", "b.txt"]'],
    ["objective.scale=1"],
    ["objective.scale=dynamic_per_microbatch", "objective.teacher_weights=entropy"],
    ["trainer.strategy.find_unused_parameters=true"],
    ["optim.config.lr=1e-4", "optim.lr_scheduler.min_lr=0"],
    ["model.config.recompute_granularity=full"],
    ["log.ckpt.filename=x"],
    ["data.text.held_out=0.25", "data.text.held_out_paths=[]"],
    ["teacher.loss=auto", "teacher.learned=false"],
    ["trainer.val_check_interval=0.5"],
]
WRONG = [
    ["trainer.strategy.tensor_parallel=2"],
    ["trainer.tensor_model_parallel_size=2"],
    ["teacher.los=gold", "objective.tile_mb=3"],
    ["teachers.second.los=gold"],
    ["teachers.second.options.topk=3"],
    ["teachers.teacher.path=/nowhere"],
    ["evaluate.task=mmlu"],
    ["evaluate.every=7"],
    ["evaluate.every={save}", "evaluate.shots=-1"],
    ["optim.lr=1e-4"],
    ["model.num_layers=2"],
    ["lr=1e-4"],
    ["data.paths=a.txt"],
    ["data.text.sources.web.pats=a.txt"],
    ["data.text.paths=3"],
    ["trainer.strategy.virtual_pipeline_model_parallel_size=2"],
    ["trainer.strategy.tensor_model_parallel_size=3"],
    ["trainer.strategy.context_parallel_size=3"],
    ["data.micro_batch_size=7"],
    ["data.text.held_out=0.5", 'data.text.held_out_paths=["a.txt"]'],
    ["data.text.held_out=1.5"],
    ["data.text.format=markdown"],
    ["data.text.align=exactly"],
    ["data.text.student_length=1"],
    ["objective.scale=-1"],
    ["objective.scale=huge"],
    ["objective.kernels=cuda"],
    ["objective.teacher_weights=equal"],
    ["objective.tile_mib=0"],
    ["teacher.options.direction=sideways", "teacher.path=/nowhere"],
    ["teacher.chunks.merge=sum", "teacher.path=/nowhere"],
    ["teacher.chunks.temperature=0", "teacher.path=/nowhere"],
    ["teacher.rule.beta=0", "teacher.path=/nowhere"],
    ["teacher.options.top_k=1.5"],
    ["teacher.loss=kl", "teacher.path=/nowhere"],
    ["teacher.loss=p_kl", "teacher.options.partial_kl=rest", "teacher.path=/nowhere"],
    ["teacher.loss=p_kl", "teacher.options.nrl_compat=true", "teacher.path=/nowhere"],
    ["teacher.expert_model_parallel_size=0", "teacher.path=/nowhere"],
    ["trainer.plugins.precision=fp7"],
    ["trainer.max_steps=none"],
    ["trainer.num_nodes=0"],
    ["trainer.num_nodes=two"],
    ["optim.config.adam_beta2=1"],
    ["lora.rank=-1"],
    ["lora.alpha=8"],
    ["lora.rnak=8"],
    ["lora.rank=8", "lora.targets=linear_qvk"],
]


def _leaves(content, prefix=""):
    """Names and values of the plain arguments in a run's file."""
    for name, value in content.items():
        if name in MARKS:
            continue
        full = f"{prefix}{name}"
        if isinstance(value, dict) and "_call_" not in value:
            yield from _leaves(value, f"{full}.")
        else:
            yield full, value


def _misspelt(rng, name):
    at = rng.randrange(1, len(name))
    return rng.choice([name[:at] + name[at + 1 :], name[:at] + "q" + name[at:], name[: at - 1] + "x" + name[at:]])


def _mutations(recipe):
    """(words, whether they are right) for a recipe."""
    rng = random.Random(recipe.name)
    content = yaml.safe_load(recipe.yaml.read_text())
    leaves = dict(_leaves(content))
    save = leaves.get("log.ckpt.every_n_train_steps", 1)
    taught = "teacher" in content
    whole = recipe.name in WHOLE
    cases = [*((w, True) for w in (RIGHT if whole else rng.sample(RIGHT, 4)))]
    cases += [*((w, False) for w in (WRONG if whole else rng.sample(WRONG, 8)))]
    for words, right in cases:
        absent = [part for part in ("teacher", "model") if not content.get(part)]
        if recipe.name in DISTIL and not any(word.startswith(part) for part in absent for word in words):
            yield [word.format(save=save) if "{save}" in word else word for word in words], right
    names = [n for n, value in leaves.items() if isinstance(value, bool | int | float | str) and n not in ANYTHING_GOES]
    for name in rng.sample(names, 6):
        parts, value = name.split("."), leaves[name]
        yield [f"{name}={value}"], True
        depth = rng.randrange(len(parts))
        yield [".".join([*parts[:depth], _misspelt(rng, parts[depth]), *parts[depth + 1 :]]) + f"={value}"], False
        if len(parts) > 2 and parts[-1] != "precision":  # the trainer has one as well
            yield [".".join([*parts[:-2], parts[-1]]) + f"={value}"], False  # one level too high
        yield [f"{name}.deeper={value}"], False
        if type(value) in (int, float, bool):
            yield [f"{name}=many"], False
    for name in rng.sample([name for name in RANGES if name in leaves], 6):
        yield [f"{name}={-7}"], False
    if taught and recipe.name in DISTIL:
        for name in OF_TEACHER:
            yield ["teacher.path=/nowhere", f"teacher.{name}=-1"], False


COMMANDS = [(name, words, right) for name, recipe in RECIPES.items() for words, right in _mutations(recipe)]


@pytest.fixture(scope="module")
def dryrun(command_line, tmp_path_factory):
    """Exit status and message of each command as a dry run, all in one process that has NeMo."""
    lines = [["llm", "distill", "--recipe", name, "--dryrun", *words] for name, words, _ in COMMANDS]
    ended = run_forked(tmp_path_factory.mktemp("dryrun"), _drive, lines, timeout=540)
    assert ended.status == 0, ended.log
    return [(result["status"], result["err"]) for result in ended.result]


def _drive(lines):
    importlib.metadata.entry_points = functools.cache(importlib.metadata.entry_points)
    return drive(lines)


@pytest.fixture
def judged(monkeypatch, capsys):
    """Whether a preflight of a command is green, and what it says; the settings and the layout alone."""
    nothing = type("Nothing", (), {"__getattr__": lambda self, name: lambda *_: []})()
    for stage in ("architecture", "machine", "tokenizers", "texts", "budget"):
        monkeypatch.setattr(checkup, stage, nothing)
    # The same files for every command: read once.
    for name in ("entry_points", "version"):
        monkeypatch.setattr(importlib.metadata, name, functools.cache(getattr(importlib.metadata, name)))
    once = functools.cache(read_yaml)
    monkeypatch.setattr(settings, "read_yaml", lambda path: copy.deepcopy(once(path)))

    def judge(name, words):
        status = main(["preflight", "--json", f"recipe={name}", "slurm=none", "nodes=1", *words])
        out, err = capsys.readouterr()
        found = [c for c in json.loads(out)["checks"] if c["status"] == "red"] if out else []
        return status == 0, "; ".join([err, *(c["found"] for c in found)])

    return judge


def test_there_are_enough():
    assert len([1 for _, _, right in COMMANDS if right]) > 80
    assert len([1 for _, _, right in COMMANDS if not right]) > 300


def test_preflight_and_dryrun_agree(dryrun, judged):
    """On the verdict, and on the words where there is no such argument."""
    different = []
    for (name, words, right), (status, err) in zip(COMMANDS, dryrun, strict=True):
        green, said = judged(name, words)
        if not (green == (status == 0) == right):
            different.append(
                f"{name} {' '.join(words)}: right {right}, preflight {green} ({said}), dryrun {status} ({err})"
            )
        elif "there is no argument" in err and err[err.index("there is no argument") :].splitlines()[0] not in said:
            different.append(f"{name} {' '.join(words)}: preflight said {said}, dryrun {err}")
        if status not in (0, 2):
            different.append(f"{name} {' '.join(words)}: dryrun ended with {status}: {err[-300:]}")
    assert not different, f"{len(different)} of {len(COMMANDS)}:\n" + "\n".join(different)

"""Values of a run that cannot work are refused from its settings alone: nothing is read, built or trained before.

Each is one that a campaign of wrong input found to end in a traceback, or after minutes of training, or not at all.
"""

import pytest

from nemo_xtoken.errors import InputError
from nemo_xtoken.recipes import available_recipes
from nemo_xtoken.run.run_checks import check_settings
from nemo_xtoken.run.settings import Settings
from nemo_xtoken.run.values import CHOICES, OF_TEACHER, RANGES

RECIPES = available_recipes()
TINY, REAL = "xtoken_tiny", "xtoken_qwen3_llama1b"


def judge(words, recipe=TINY):
    """The run of a recipe with overrides, as ``nemo llm distill`` and ``xtoken preflight`` judge it."""
    check_settings(Settings.read(RECIPES[recipe].yaml, words), None)


@pytest.mark.parametrize("recipe", [TINY, REAL])
@pytest.mark.parametrize(
    "word",
    [
        "teacher.weight=-1", "teacher.weight=0", "teacher.weight=nan", "teacher.weight=inf",
        "teacher.length=1", "teacher.length=100000000", "teacher.learned_lr=inf",
        "teacher.chunks.temperature=1e-40", "teacher.chunks.temperature=1e20", "teacher.chunks.temperature=1e308",
        "teacher.chunks.temperature=inf", "teacher.chunks.temperature=nan", "teacher.chunks.temperature=0",
        "teacher.rule.beta=inf", "teacher.rule.beta=1e308", "teacher.rule.beta=nan", "teacher.rule.gamma=inf",
        "teacher.path=", "teacher.tokenizer=", "teacher.projection=",
        "stop.patience=-1", "stop.least=-1", "samples.count=-1",
        "samples.new_tokens=0", "evaluate.every=7", "evaluate.tasks=mmlu", "evaluate.shots=2",
        "optim.config.lr=nan", "optim.config.lr=inf", "optim.config.lr=-1", "optim.config.optimizer=adamm",
        "trainer.max_steps=-5", "trainer.max_steps=-1", "trainer.max_steps=0",
        "trainer.val_check_interval=0", "trainer.val_check_interval=-3", "trainer.val_check_interval=1.5",
        "trainer.limit_val_batches=-1", "trainer.limit_val_batches=2.5",
        "trainer.devices=0", "trainer.devices=-3", "trainer.num_nodes=0", "trainer.accelerator=qpu",
        "trainer.strategy=none", "trainer.strategy.progress_interval=0",
        "trainer.strategy.tensor_model_parallel_size=0", "trainer.strategy.tensor_parallel=2",
        "trainer.strategy.sequence_paralel=true",
        "data.text.student_length=100000000", "data.text.student_length=1", "data.text.teacher_length=100000000",
        "data.text.held_out=-1", "data.text.held_out=inf", "data.text.workers=100000", "data.loader_workers=100000",
        "data.text.cache_dir=", "model.config.vocab_size=0", "model.tokenizer.source=",
        "log.name=", "log.name=..", "log.name=.", "log.name=a/b", "log.log_dir=", "log.ckpt.every_n=5",
    ],
)  # fmt: skip
def test_wrong_values(word, recipe):
    words = [word, "teacher.path=/nowhere"] if not word.startswith("teacher.path") else [word]
    name = word.partition("=")[0]
    with pytest.raises(InputError) as error:
        judge(words, recipe)
    assert name.rpartition(".")[2] in error.value.found
    assert error.value.expected
    assert error.value.fix


@pytest.mark.parametrize("on", ["kd/none", "kd", "loss"])
def test_a_run_stops_on_what_it_has(on):
    judge(["teacher.path=/nowhere", "stop.patience=1", "stop.on=kd/teacher"])
    with pytest.raises(InputError, match=f"stop.on={on}"):
        judge(["objective.scale=0", "stop.patience=1", f"stop.on={on}"])


def test_a_start_that_is_empty():
    with pytest.raises(InputError, match=r"resume\.restore_config\.path= is empty"):
        judge(["resume.restore_config.path="], REAL)


@pytest.mark.parametrize(
    "words",
    [
        ["resume=none"], ["log=none"], ["optim=none"], ["objective=none"], ["evaluate=none"],
        ["data.text.held_out=0"], ["data.text.held_out=1"], ["data.text.held_out=0.5"],
        ["trainer.val_check_interval=0.5"], ["trainer.val_check_interval=1.0"], ["trainer.limit_val_batches=0"],
        ["trainer.accelerator=gpu"], ["trainer.devices=auto"], ["optim.config.optimizer=sgd"],
        ["teacher.chunks.temperature=0.001"], ["teacher.chunks.temperature=1000"], ["teacher.rule.beta=1"],
        ["stop.patience=3", "stop.on=kd/teacher", "stop.least=0.01"], ["samples.count=0"],
        ["evaluate.every=60", "evaluate.tasks=mmlu,arc_easy"], ["data.text.student_length=128"],
    ],
)  # fmt: skip
def test_right_values(words):
    judge(words)


def test_tasks_that_the_harness_has():
    pytest.importorskip("lm_eval", reason="lm_eval is not installed")
    judge(["evaluate.every=60", "evaluate.tasks=lambada_openai"])
    with pytest.raises(InputError, match="no task 'arc_esay' in lm_eval; did you mean 'arc_easy'"):
        judge(["evaluate.every=60", "evaluate.tasks=mmlu,arc_esay"])


@pytest.mark.parametrize("recipe", [TINY, REAL])
def test_every_range_refuses_what_is_no_number_and_what_is_far_off(recipe):
    """Also of the values that are added tomorrow."""
    for name in [*RANGES, *(f"teacher.{n}" for n in OF_TEACHER)]:
        for value in ("nan", "-7"):
            try:
                settings = Settings.read(RECIPES[recipe].yaml, [f"{name}={value}", "teacher.path=/nowhere"])
            except InputError:
                continue  # not a number of that kind, or the recipe has no such part
            with pytest.raises(InputError, match=name.rpartition(".")[2]):
                check_settings(settings, None)
    for name in CHOICES:
        with pytest.raises(InputError, match=name):
            judge([f"{name}=nonsense"], recipe)

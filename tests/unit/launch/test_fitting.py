"""The layout that a run of any pair gets: it fits on paper, and the next cheaper one would not."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from tokenizer_zoo import write_folder

from nemo_xtoken.errors import InputError
from nemo_xtoken.preflight import fitting
from nemo_xtoken.preflight.budget import COMFORT, CONTEXT
from nemo_xtoken.preflight.fitting import (
    DEVICES,
    MICRO,
    PIPELINE,
    SEQUENCE,
    TENSOR,
    fit_layout,
    lay_out_here,
    left_open,
)
from nemo_xtoken.preflight.plan import Plan
from nemo_xtoken.run.estimates.loss_time import GIB
from nemo_xtoken.run.estimates.memory import worst_stage
from nemo_xtoken.run.run_checks import layout_problems, row_problems, unsupported_settings
from nemo_xtoken.run.settings import Settings
from nemo_xtoken.run.sides import run_of
from nemo_xtoken.vocab import load_vocabulary

RECIPE = next(f for f in Path(__file__).parents if (f / "pyproject.toml").is_file()) / "conf" / "xtoken.yaml"
#: Layers, hidden size, feed-forward size, heads, query groups.
SIZES = {"small": (30, 576, 1536, 8, 4), "large": (32, 4096, 14336, 32, 8), "huge": (80, 8192, 28672, 64, 8)}
AHEAD = "teacher.ahead=true"


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Folders with a tokenizer and a configuration, and no weights."""
    root = tmp_path_factory.mktemp("models")
    for name, (layers, hidden, ffn, heads, groups) in SIZES.items():
        folder = write_folder("qwen" if name == "small" else "llama", root / name)
        config = {
            "model_type": "llama", "num_hidden_layers": layers, "hidden_size": hidden, "intermediate_size": ffn,
            "num_attention_heads": heads, "num_key_value_heads": groups, "vocab_size": 7,
        }  # fmt: skip
        (folder / "config.json").write_text(json.dumps(config))
    return root


def settings_of(models, student, teacher, *words):
    given = [f"student={models / student}", f"teacher={models / teacher}", "data.text.paths=x.jsonl"]
    return Settings.read(RECIPE, [*given, *words])


def need(settings, nodes, gpus):
    plan = Plan(settings, run_of(settings, nodes * gpus), nodes, gpus, 80.0)
    for side in plan.sides:
        plan.know(side, load_vocabulary(side.tokenizer))
    sizes = plan.training()
    assert sizes is not None
    return sum(worst_stage(sizes).values()) / GIB


def test_a_teacher_ahead_needs_the_states_of_one_more_micro_batch(models):
    layout = [f"{TENSOR}=1", f"{PIPELINE}=1", f"{MICRO}=2", "data.text.teacher_length=4096"]
    plain, ahead = (need(settings_of(models, "small", "large", *layout, *word), 1, 8) for word in ([], [AHEAD]))
    assert ahead - plain == pytest.approx(2 * 4096 * SIZES["large"][1] * 2 / GIB)


@pytest.mark.parametrize(
    ("student", "teacher", "nodes", "gpus", "gib"),
    [
        ("small", "large", 1, 1, 80),
        ("large", "huge", 1, 8, 80),
        ("large", "huge", 2, 8, 40),
        ("small", "small", 1, 8, 16),
    ],
)
def test_it_fits_and_less_would_not(models, student, teacher, nodes, gpus, gib):
    settings = settings_of(models, student, teacher)
    fit = fit_layout(settings, nodes, gpus, gib)
    room = (gib - CONTEXT) * COMFORT
    tensor, pipeline, micro = (fit.settings[name] for name in (TENSOR, PIPELINE, MICRO))
    assert need(settings, nodes, gpus) <= room
    assert fit.settings[SEQUENCE] == (tensor > 1)
    assert tensor <= gpus
    assert all(settings.get(name) == value for name, value in fit.settings.items())
    assert str(gib) in fit.said
    if micro < 16 and 64 % (2 * micro * nodes * gpus // (tensor * pipeline)) == 0:
        settings.set(MICRO, 2 * micro)
        assert need(settings, nodes, gpus) > room
    if tensor > 1:
        settings.set(MICRO, 1)
        settings.set(TENSOR, tensor // 2)
        assert need(settings, nodes, gpus) > room


@pytest.mark.parametrize(
    ("words", "freely"),
    [
        ([AHEAD], {PIPELINE: 2}),  # whose passes are all before a pipeline's
        (["lora.rank=6", f"{PIPELINE}=1"], {TENSOR: 4}),  # adapters are cut along their rank
    ],
)
def test_what_the_run_would_refuse_is_not_chosen(models, words, freely):
    """Where it would be chosen by memory alone."""
    bare = [word for word in words if not word.startswith(("teacher", "lora"))]
    chosen = fit_layout(settings_of(models, "large", "huge", *bare), 2, 4, 40).settings
    assert freely.items() <= chosen.items()
    settings = settings_of(models, "large", "huge", *words)
    fit = fit_layout(settings, 2, 4, 40)
    assert fit.settings.keys() == chosen.keys()
    run = run_of(settings, 8)
    assert list(layout_problems(run)) == []
    assert [error for error, certain in unsupported_settings(run) if certain] == []


def test_why_no_layout_can_be_is_said(models):
    words = [AHEAD, "teacher.pipeline_model_parallel_size=2"]
    settings = settings_of(models, "large", "huge", *words)
    fit = fit_layout(settings, 2, 4, 40)
    assert fit.settings == {MICRO: 1}
    assert fit.refused
    assert (settings.get(TENSOR), settings.get(PIPELINE)) == (None, None)
    assert "as teacher.ahead=true (teacher) with pipeline_model_parallel_size=2" in fit.said


def test_what_is_given_stays(models):
    settings = settings_of(models, "large", "small", f"{TENSOR}=4", f"{MICRO}=2")
    fit = fit_layout(settings, 1, 8, 80)
    assert fit.settings.keys() == {PIPELINE}
    assert (settings.get(TENSOR), settings.get(MICRO)) == (4, 2)
    settings = settings_of(models, "large", "small", f"{TENSOR}=4", f"{MICRO}=2", f"{PIPELINE}=1")
    assert fit_layout(settings, 1, 8, 80) == fit_layout(settings, 1, 8, None)
    assert fit_layout(settings, 1, 8, 80).settings == {}


@pytest.mark.parametrize(
    ("words", "devices"),
    [([], 8), (["trainer.devices=auto"], 8), (["trainer.devices=-1"], 8), (["trainer.devices=2"], 2)],
)
def test_the_gpus_that_a_file_names_are_those_of_the_run(models, tmp_path, monkeypatch, words, devices):
    monkeypatch.setattr(fitting, "gpus_here", lambda: 8)
    monkeypatch.setattr(fitting, "gpu_memory", lambda: 80.0)
    monkeypatch.setattr(fitting, "placement", lambda environment: None)
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(settings_of(models, "small", "small", *words).content))
    settings = Settings.read(file)
    config = SimpleNamespace(
        trainer=SimpleNamespace(devices=settings.get(DEVICES), strategy=SimpleNamespace()), data=SimpleNamespace()
    )
    assert "micro-batch" in lay_out_here(config, settings)
    assert (config.trainer.devices, settings.get(DEVICES)) == (devices, devices)
    assert config.data.micro_batch_size == settings.get(MICRO) <= 64 // devices


def test_what_the_machine_chooses(models):
    assert left_open(Settings.read(RECIPE)) == [TENSOR, PIPELINE, MICRO, DEVICES]
    assert left_open(settings_of(models, "small", "small", f"{MICRO}=4", f"{DEVICES}=1")) == [TENSOR, PIPELINE]
    assert left_open(Settings.read(RECIPE.with_name("xtoken_tiny.yaml"))) == []


def test_on_the_cpu_a_sample_at_a_time(models):
    settings = settings_of(models, "small", "small")
    assert fit_layout(settings, 1, 1, None).settings == {MICRO: 1}


def test_what_does_not_fit_is_said(models):
    fit = fit_layout(settings_of(models, "huge", "huge"), 1, 1, 16)
    assert "which does not fit" in fit.said


def test_a_tokenizer_with_an_id_more_than_rows_is_no_problem(models):
    """As Gemma 3's: the import adds a row."""
    settings = settings_of(models, "small", "small")
    run = run_of(settings, 1)
    assert run.student.model is None  # its rows are not known yet
    plan = Plan(settings, run, 1, 1, 80.0)
    for side in plan.sides:
        plan.know(side, load_vocabulary(side.tokenizer))
    assert list(row_problems(plan.run)) == []


def test_a_model_that_is_not_there_is_a_problem_of_the_run(models):
    settings = settings_of(models, "absent/model", "small")
    problem = run_of(settings, 1).student.problem
    assert isinstance(problem, InputError)
    assert "not known" in fit_layout(settings, 1, 1, 80).said


def test_what_is_frozen_has_no_gradients_and_no_states(models):
    """Of a student with LoRA adapters: of 16 bytes a parameter 2 are left, and what the adapters need."""
    plain, adapters = (
        settings_of(models, "large", "small", "data.micro_batch_size=1", *words) for words in ((), ("lora.rank=16",))
    )
    saved = need(plain, 1, 1) - need(adapters, 1, 1)
    parameters = Plan(plain, run_of(plain, 1), 1, 1, 80.0)
    for side in parameters.sides:
        parameters.know(side, load_vocabulary(side.tokenizer))
    assert parameters.student.model is not None
    assert saved * GIB == pytest.approx(14 * parameters.student.model.parameters, rel=0.01)

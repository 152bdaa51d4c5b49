"""Settings of Megatron that cannot be had with these losses: each is refused by name, and none that is off."""

import dataclasses

import pytest

from nemo_xtoken.errors import InputError
from nemo_xtoken.run.layout import ParallelSizes
from nemo_xtoken.run.run_checks import check_run, unsupported_settings
from nemo_xtoken.run.spec import ModelSpec, RunSpec, plain_config
from nemo_xtoken.run.unsupported import CONFIG, REFUSALS, TRAINER, UNKNOWN

ON = {
    "defer_embedding_wgrad_compute": True, "mtp_num_layers": 1, "enable_cuda_graph": True, "external_cuda_graph": True,
    "cuda_graph_impl": "local", "overlap_moe_expert_parallel_comm": True, "tp_comm_overlap": True, "fp8": "hybrid",
    "fp4": "e2m1", "window_size": [128, 0], "softmax_type": "learnable", "trainer.plugins.fp8": "hybrid",
    "trainer.strategy.fsdp": "megatron", "trainer.strategy.ddp.use_megatron_fsdp": True,
    "trainer.strategy.ddp.use_custom_fsdp": True,
}  # fmt: skip
OFF = (None, False, 0, "none", "vanilla", [])
#: Those that are fine without context parallelism.
WITH_CONTEXT = {"tp_comm_overlap", "fp8", "fp4", "window_size", "trainer.plugins.fp8"}
#: Those that a frozen teacher's configuration is cleared of, instead of being refused.
OF_STUDENT = {r.setting for r in REFUSALS if not r.versions and not r.of_teacher}


def a_run(setting=None, value=None, context=1, engine=(2, 9), side="student", **config):
    sizes, trainer = ParallelSizes(context=context), {}
    given = dict(config)
    if setting in TRAINER:
        trainer = {setting: value}
    elif setting:
        given[setting] = value
    student = ModelSpec("student", "trainer.strategy", sizes, 64, "data.text.student_length")
    teacher = ModelSpec("teacher", "teacher", sizes, 64, "data.text.teacher_length")
    student, teacher = (
        dataclasses.replace(model, config=given if model.label == side else {}) for model in (student, teacher)
    )
    return RunSpec(student, (teacher,), context, 1, 1, 1, trainer=trainer, engine=engine)


def found(run):
    return [str(error) for error, _ in unsupported_settings(run)]


def test_the_table_is_the_one_tested():
    assert set(ON) == {r.setting for r in REFUSALS}


@pytest.mark.parametrize("setting", ON)
def test_each_is_refused_by_its_name(setting):
    run = a_run(setting, ON[setting], context=2)
    with pytest.raises(InputError) as refused:
        check_run(run)
    name = setting if setting in TRAINER else f"model.config.{setting}"
    assert f"{name}={ON[setting]}" in refused.value.found
    assert refused.value.expected
    assert name in refused.value.fix or "context_parallel_size" in refused.value.fix or "image" in refused.value.fix
    if setting in WITH_CONTEXT:
        assert found(a_run(setting, ON[setting])) == []


@pytest.mark.parametrize("setting", ON)
@pytest.mark.parametrize("value", OFF, ids=repr)
def test_none_is_refused_that_is_off(setting, value):
    assert found(a_run(setting, value, context=2)) == []


@pytest.mark.parametrize("setting", ON)
def test_a_teacher_is_cleared_of_the_rest(setting):
    if setting not in TRAINER:
        assert bool(found(a_run(setting, ON[setting], context=2, side="teacher"))) == (setting not in OF_STUDENT)


@pytest.mark.parametrize(
    ("value", "engine", "context", "why"),
    [
        (False, None, 1, None),
        (True, (2, 9), 1, None),
        (True, UNKNOWN, 1, None),
        (True, None, 1, "Transformer Engine"),
        (True, (2, 9), 2, "multiples of 8"),
    ],
)
def test_a_teacher_computes_in_fp8_where_transformer_engine_can(value, engine, context, why):
    run = a_run(context=context, engine=engine)
    run = dataclasses.replace(run, teachers=(dataclasses.replace(run.teachers[0], own={"fp8": value}),))
    errors = [error for error, _ in unsupported_settings(run)]
    assert bool(errors) == (why is not None)
    for error in errors:
        assert why in error.expected
        assert error.found.startswith("teacher.fp8=True (teacher)")
        assert error.fix.startswith("set teacher.fp8=") or error.fix.startswith("teacher.fp8=")


@pytest.mark.parametrize(
    ("engine", "comm", "refused"),
    [((2, 9), "a2a", True), ((2, 10), "a2a", False), ((2, 14), "all_gather", True), ((2, 14), None, True),
     (None, None, False)],
)  # fmt: skip
def test_windows_over_context_parallel_ranks(engine, comm, refused):
    """Torch's own attention has a mask; Transformer Engine takes windows over packed documents since 2.10, by a2a."""
    run = a_run("window_size", [64, 0], context=2, engine=engine, side="teacher", cp_comm_type=comm)
    assert bool(found(run)) == refused


@pytest.mark.parametrize(("engine", "refused"), [((2, 11), True), ((2, 12), False), (None, False)])
def test_learned_sinks_over_packed_documents(engine, refused):
    assert bool(found(a_run("softmax_type", "learnable", engine=engine))) == refused


def test_what_hangs_on_an_unknown_version_does_not_stop_a_run():
    run = a_run("softmax_type", "learnable", engine=UNKNOWN)
    [(error, certain)] = unsupported_settings(run)
    assert not certain
    assert "of an unknown version" in error.found
    check_run(run)


def test_configurations_are_asked_for_all_of_it():
    assert set(CONFIG) <= set(plain_config(object()))

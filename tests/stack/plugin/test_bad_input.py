"""Every wrong setting is one InputError before the run folder exists; a teacher that goes wrong stops the run."""

import dataclasses
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from launcher import launch, start

from nemo_xtoken.errors import InputError

pytestmark = pytest.mark.usefixtures("nemo")


def attempts(jobs_):
    """What each job comes to: the message of its InputError, or what else happened.  Ranks are only pretended."""
    import jobs

    found = []
    for job, ranks, change in jobs_:
        os.environ["WORLD_SIZE"] = str(ranks)
        try:
            arguments = jobs.build(job)
            change(arguments)
            jobs.train_one(**arguments)
            found.append("it ran")
        except InputError as error:
            found.append(error)
        except BaseException as error:
            found.append(repr(error))
        if job.folder.exists():
            found[-1] = f"{job.folder} was made; {found[-1]}"
    return found


def nothing(arguments):
    pass


def changing_log(arguments):
    arguments["log"].use_datetime_version = True


def log_above(arguments):
    arguments["log"].name = ".."


def versioned_log(arguments):
    arguments["log"].version = "3"


def virtual_pipeline(arguments):
    arguments["trainer"].strategy.virtual_pipeline_model_parallel_size = 2


def begun(arguments):
    log = arguments["log"]
    log.name = "begun"
    (Path(log.log_dir) / log.name / "checkpoints" / "step_10" / "weights").mkdir(parents=True, exist_ok=True)
    arguments["resume"].resume_if_exists = False


def begun_without_resume(arguments):
    begun(arguments)
    arguments["resume"] = None


@pytest.fixture(scope="module")
def broken(world):
    """W of another pair, cut short, with bad rows; checkpoints without weights or context; a broken tokenizer."""
    from nemo_xtoken.projection.build import build_projection
    from nemo_xtoken.vocab.loading import load_vocabulary

    folder = world.root / "broken"
    folder.mkdir()
    student, teacher = (load_vocabulary(world.root / f"{side}_tokenizer") for side in ("student", "teacher"))
    matrix = build_projection(student, teacher)
    build_projection(teacher, student).save(folder / "swapped.safetensors")
    matrix.save(folder / "whole.safetensors")
    whole = (folder / "whole.safetensors").read_bytes()
    (folder / "truncated.safetensors").write_bytes(whole[: len(whole) // 2])
    bad = dataclasses.replace(matrix, weights=matrix.weights.copy())
    bad.weights[np.flatnonzero(~bad.empty_rows)[7], 0] = 0.7
    bad.save(folder / "rows.safetensors")
    (folder / "empty").mkdir()
    shutil.copytree(world.teacher, folder / "no_context", ignore=shutil.ignore_patterns("context"))
    (folder / "no_weights" / "weights").mkdir(parents=True)
    shutil.copytree(f"{world.teacher}/context", folder / "no_weights" / "context")
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer" / "tokenizer.json").write_text('{"model": ')
    return folder


CASES = {
    # name: (ranks, settings of the job, change of the arguments, what the message names)
    "no teacher": (1, {"teacher": None}, nothing, "no teacher"),
    "teacher missing": (1, {"teacher": "{broken}/nowhere"}, nothing, "nowhere"),
    "teacher is no checkpoint": (1, {"teacher": "{broken}/empty"}, nothing, "empty"),
    "teacher without context": (1, {"teacher": "{broken}/no_context"}, nothing, "no_context/context"),
    "teacher without files": (1, {"teacher": "{broken}/no_weights"}, nothing, "no_weights"),
    "start missing": (1, {"start": "{broken}/nowhere"}, nothing, "resume.restore_config.path"),
    "tokenizer unreadable": (1, {"tokenizer": "{broken}/tokenizer"}, nothing, "broken/tokenizer"),
    "tokenizer missing": (1, {"tokenizer": "{broken}/nowhere"}, nothing, "nowhere"),
    "teacher tokenizer unreadable": (
        1, {"teacher_config": {"tokenizer": "{broken}/tokenizer"}}, nothing, "broken/tokenizer",
    ),
    "teacher tokenizer too large": (
        1, {"teacher_config": {"tokenizer": "{root}/student_tokenizer"}}, nothing, "teacher's output layer has 960",
    ),
    "start too small": (1, {"start": "{root}/teacher"}, nothing, "student's output layer has 960 rows"),
    "no such loss": (1, {"loss": "kl"}, nothing, "loss='kl'"),
    "kernels for a GPU": (1, {"objective": {"kernels": "triton"}}, nothing, "kernels=triton"),
    "loss of one tokenizer": (1, {"loss": "same_tokenizer"}, nothing, "whose tokens differ"),
    "second teacher missing": (
        1, {"teachers": {"second": {"path": "{broken}/nowhere"}}}, nothing, "nowhere",
    ),
    "second teacher without path": (1, {"teachers": {"second": {"loss": "h_kl"}}}, nothing, "teachers.second.path"),
    "second teacher's tokenizer": (
        1, {"teachers": {"second": {"path": "{root}/teacher", "tokenizer": "{root}/student_tokenizer"}}}, nothing,
        "the teacher second's output layer",
    ),
    "second teacher's loss": (
        1, {"teachers": {"second": {"path": "{root}/teacher", "loss": "same_tokenizer"}}}, nothing,
        "whose tokens differ",
    ),
    "the same teacher twice": (
        1,
        {"teachers": {"second": {"path": "{root}/teacher", "loss": "p_kl", "weight": 0.5}}},
        nothing,
        "the same teacher",
    ),
    "teacher with another's name": (
        1, {"teachers": {"teacher": {"path": "{root}/teacher", "loss": "h_kl"}}}, nothing, "named 'teacher'",
    ),
    "teacher without a name": (1, {"teachers": {"1/2": {"path": "{root}/teacher"}}}, nothing, "named '1/2'"),
    "no weight": (1, {"teacher_config": {"weight": 0.0}}, nothing, "weight=0.0"),
    "W missing": (1, {"teacher_config": {"projection": "{broken}/nowhere"}}, nothing, "nowhere"),
    "W of another pair": (
        1, {"teacher_config": {"projection": "{broken}/swapped.safetensors"}}, nothing, "another student tokenizer",
    ),
    "W truncated": (
        1, {"teacher_config": {"projection": "{broken}/truncated.safetensors"}}, nothing, "truncated.safetensors",
    ),
    "W with bad rows": (1, {"teacher_config": {"projection": "{broken}/rows.safetensors"}}, nothing, "sums to 0.7"),
    "vocabulary too large": (1, {"model": {"vocab_size": 1000}}, nothing, "has 1000 rows"),
    "rows": (2, {"tp": 2, "model": {"vocab_size": 1921}}, nothing, "has 1921 rows"),
    "heads": (8, {"tp": 8, "batch": 8, "micro": 1}, nothing, "student has 4 attention heads"),
    "query groups": (4, {"tp": 4}, nothing, "student has 2 query groups"),
    "layers": (4, {"pp": 4}, nothing, "student has 2 layers"),
    "teacher's layers": (3, {"pp": 3, "model": {"num_layers": 3}}, nothing, "teacher has 4 layers"),
    "processes": (3, {"tp": 2}, nothing, "3 processes"),
    "too few processes": (1, {"tp": 2}, nothing, "1 processes"),
    "global batch": (2, {"batch": 6, "micro": 2}, nothing, "global batch of 6"),
    "sequence parallel": (
        2, {"tp": 2, "sequence_parallel": True, "text": {"teacher_length": 97}}, nothing, "teacher sequence of 97",
    ),
    "context parallel": (2, {"cp": 2, "text": {"student_length": 66}}, nothing, "student sequence of 66"),
    "context and sequence parallel": (
        8, {"tp": 2, "cp": 4, "sequence_parallel": True, "text": {"teacher_length": 100}}, nothing, "multiple of 8",
    ),
    "context parallel processes": (3, {"cp": 2}, nothing, "context parallel = 2"),
    "teacher's processes": (
        2, {"teacher_config": {"tensor_model_parallel_size": 4}}, nothing, "2 processes for the teacher's tensor",
    ),
    "teacher's heads": (
        16, {"micro": 1, "batch": 16, "teacher_config": {"tensor_model_parallel_size": 16}}, nothing,
        "teacher has 8 attention heads",
    ),
    "no experts": (2, {"ep": 2}, nothing, "student has no experts"),
    "no experts in the teacher": (
        2, {"teacher_config": {"expert_model_parallel_size": 2}}, nothing, "teacher has no experts",
    ),
    "public loss, context parallel": (
        2, {"cp": 2, "loss": "nrl_p_kl"}, nothing, "loss=nrl_p_kl with trainer.strategy.context_parallel_size=2",
    ),
    "virtual pipeline": (2, {"pp": 2}, virtual_pipeline, "virtual_pipeline_model_parallel_size=2"),
    "no steps": (1, {"steps": 0}, nothing, "max_steps=0"),
    "log by date": (1, {}, changing_log, "use_datetime_version"),
    "log above its folder": (1, {}, log_above, "a run named '..'"),
    "log by version": (1, {}, versioned_log, "log.version"),
    "checkpoints of another run": (1, {}, begun, "runs/begun and resume.resume_if_exists=false"),
    "checkpoints, and nothing to resume": (1, {}, begun_without_resume, "runs/begun and resume.resume_if_exists=false"),
    "no data": (1, {"text": {"paths": ["{broken}/*.txt"]}}, nothing, "broken"),
}  # fmt: skip


@pytest.fixture(scope="module")
def outcomes(world, broken):
    """What came of each case.  One process tries them all: none may get so far as to change it."""

    def filled(value):
        if isinstance(value, dict):
            return {k: filled(v) for k, v in value.items()}
        if isinstance(value, list):
            return [filled(v) for v in value]
        if isinstance(value, str):
            if value == "{root}/teacher":
                return world.teacher
            return value.replace("{broken}", str(broken)).replace("{root}", str(world.root))
        return value

    tried = [
        (world.distillation(f"bad_{name.replace(' ', '_')}", **filled(settings)), ranks, change)
        for name, (ranks, settings, change, _) in CASES.items()
    ]
    [found] = launch(attempts, tried, folder=world.root / "logs" / "bad")
    return dict(zip(CASES, found, strict=True))


@pytest.mark.parametrize("name", CASES)
def test_wrong_settings(outcomes, name):
    found = outcomes[name]
    assert isinstance(found, InputError), found
    assert CASES[name][3] in str(found)
    assert found.expected
    assert found.fix


@pytest.mark.parametrize(
    ("ranks", "weight", "settings"),
    [
        pytest.param(1, False, {"micro": 2}, id="sample"),
        pytest.param(1, True, {}, id="weight"),
        pytest.param(2, True, {"pp": 2}, id="weight-pp2"),
    ],
)
def test_nan_in_the_teacher_stops_the_run(world, ranks, weight, settings, request):
    import jobs
    from watchers import Poison, Totals

    poison = Poison(3, weight)
    job = world.distillation(f"poisoned_{request.node.callspec.id}", steps=4, save_every=2, **settings)
    ended = start(
        jobs.train, job.but(watchers=(poison,)), ranks=ranks, folder=world.root / "logs" / job.name, timeout=60
    )
    assert all(end.status > 0 for end in ended)
    error, log = ended[-1].error, ended[-1].log
    assert isinstance(error, InputError), log[-3000:]
    assert "step 3:" in error.found
    assert "teacher" in error.found
    if not weight:
        [sample] = [line.split()[-1] for line in log.splitlines() if line.startswith("poisoned sample")]
        assert f"for sample {sample} of the data set" in error.found
    # The last checkpoint is whole: the run goes on from it.
    results = launch(
        jobs.train, job.but(watchers=(Totals(),)), ranks=ranks, folder=world.root / "logs" / f"{job.name}2"
    )
    assert len(results[0]["totals"]) == 2


def test_a_gradient_that_is_no_number_stops_the_run(world):
    """As at a learning rate that is far too high; the checkpoint before it is whole, and the same command says so."""
    import jobs

    job = world.distillation("diverges", steps=6, save_every=1, lr=1e30, schedule=False)
    [ended] = start(jobs.train, job, folder=world.root / "logs" / job.name)
    assert isinstance(ended.error, InputError), ended.log[-3000:]
    assert "is not a number" in str(ended.error)
    assert "Traceback" not in str(ended.error)


@pytest.mark.parametrize("name", ["log", "optim", "resume"])
def test_what_a_run_can_do_without(world, name, tmp_path):
    import jobs

    def train(job):
        os.chdir(tmp_path)  # where a run without a log has its folder
        return jobs.train(job, **{name: None})

    job = world.distillation(f"without_{name}", steps=1, start=None if name == "resume" else world.student)
    [ended] = start(train, job, folder=world.root / "logs" / job.name)
    assert ended.status == 0, ended.log[-3000:]

"""What a preflight says of a teacher elsewhere: nodes, network, disk; and that it takes no room beside the student."""

import re

import pytest
import yaml
from test_preflight import _own_home, look, world  # noqa: F401 (fixtures)

from nemo_xtoken.commands.cli import main

WIDTH, ROWS, LENGTH = 128, 64, 128  # of the run that test_preflight makes
SERVICE, CACHE = "teacher.service.folder=/s", "teacher.cache.folder=/tmp"


def sized(look, *words):  # noqa: F811
    status, report = look(*words)
    assert status in (0, 1)
    found = [check for check in report["checks"] if check["check"].startswith("source")]
    return found, report["figures"]


def test_a_teacher_beside_the_student_has_no_such_line(look):  # noqa: F811
    found, _ = sized(look)
    assert found == []


@pytest.mark.parametrize("source", ["remote", "cached", "remote+cached"])
def test_a_teacher_elsewhere(look, source):  # noqa: F811
    _, beside = sized(look)
    [one], figures = sized(look, f"teacher.source={source}", SERVICE, CACHE)
    own = figures["sources"]["teacher"]
    assert one["status"] == "green", one
    assert own["step_tokens"] == ROWS * LENGTH
    assert own["step_bytes"] == ROWS * LENGTH * WIDTH * 2
    assert own["host_bytes_a_node"] == 3 * own["step_bytes"]  # of two steps ahead, on one node
    assert ("teacher_nodes" in own) == (source != "cached")
    assert ("states_bytes" in own) == (source != "remote")
    assert figures["memory"]["teachers: weights"] < beside["memory"]["teachers: weights"]
    assert figures["step_parts"]["teachers"] == 0 < beside["step_parts"]["teachers"]


def test_what_was_measured_is_taken(look):  # noqa: F811
    """A step of 2 s and a teacher of 400 tokens a second and GPU: 8,192 tokens of a step take 20.48 s of one."""
    words = ["teacher.source=remote", SERVICE, "step_seconds=2", "teacher_speed=400"]
    [one], figures = sized(look, *words)
    own = figures["sources"]["teacher"]
    assert (own["student_step_seconds"], own["teacher_gpus"], own["teacher_nodes"]) == (2, 11, 2)
    assert own["network_bytes_a_second"] == ROWS * LENGTH * WIDTH * 2 / 2
    assert "(as measured)" in one["found"]
    [half], _ = sized(look, *words[:3])
    assert "(roofline of H100s for the teacher)" in half["found"]


def test_formats_take_what_they_say(look):  # noqa: F811
    sizes = {}
    for name in ("bf16", "fp8", "fp32"):
        _, figures = sized(look, "teacher.source=cached", CACHE, f"teacher.cache.format={name}")
        sizes[name] = figures["sources"]["teacher"]["read_bytes_a_second"]
    each = {name: size / sizes["bf16"] * (2 * WIDTH + 4) for name, size in sizes.items()}
    assert each == pytest.approx({"bf16": 2 * WIDTH + 4, "fp8": WIDTH + 8, "fp32": 4 * WIDTH + 4})


JOB = ["slurm=venv", "nodes=1", "executor.gpus_per_node=8", "teacher.nodes=2"]


def of_check(report, name):
    return [check for check in report["checks"] if check["check"] == name]


def test_nodes_of_a_job_are_understood_as_by_sbatch(look, world, capsys):  # noqa: F811
    """The same source, folder and replicas as in the script."""
    _, report = look(*JOB, "teacher.tensor_model_parallel_size=2")
    [found] = of_check(report, "teacher's nodes")
    assert (found["status"], found["found"]) == ("green", "8 teacher replicas of 2 on 2 nodes, 8 tasks on each")
    assert report["figures"]["nodes"] == 1
    assert report["figures"]["step_parts"]["teachers"] == 0  # it is elsewhere
    assert [check["status"] for check in of_check(report, "source, teacher")] == ["green"]
    words = ["sbatch", f"yaml={world}/run.yaml", "slurm=venv", "executor.gpus_per_node=8", "teacher.nodes=2"]
    assert main([*words, "teacher.tensor_model_parallel_size=2"]) == 0
    script = capsys.readouterr().out
    assert found["found"] in script
    assert " teacher.source=remote teacher.service.folder=" in script


def test_the_folder_of_the_service_is_that_of_the_script(look, world, capsys, monkeypatch):  # noqa: F811
    from nemo_xtoken.preflight import checkup

    seen = []
    monkeypatch.setattr(checkup, "_precision", lambda settings, *_, **__: seen.append(settings) or iter(()))
    look(*JOB)
    assert main(["sbatch", f"yaml={world}/run.yaml", "slurm=venv", "executor.gpus_per_node=8", "teacher.nodes=2"]) == 0
    [folder] = re.findall(r" teacher\.service\.folder=(\S+)", capsys.readouterr().out)
    assert seen[0].get("teacher.service.folder") == folder
    assert seen[0].get("teacher.source") == "remote"


def test_too_few_nodes_of_a_job_are_told(look):  # noqa: F811
    """As above 11 GPUs are needed: two nodes of 8 suffice, one does not."""
    words = ["step_seconds=2", "teacher_speed=400"]
    _, report = look(*JOB, *words)
    assert [check["status"] for check in of_check(report, "teacher's nodes")] == ["green"]
    _, report = look(*JOB, "teacher.nodes=1", *words)
    [found] = of_check(report, "teacher's nodes")
    assert found["status"] == "yellow"
    assert (found["expected"], found["fix"].partition(",")[0]) == ("about 11 GPUs", "teacher.nodes=2")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["teacher.tensor_model_parallel_size=32"], "teacher replicas of 32 processes"),
        (["teacher.source=cached", CACHE], "teacher.source=cached"),
        (["executor.teacher.partitionn=x"], "executor.partitionn"),
    ],
)
def test_nodes_of_a_job_that_cannot_be_are_red(look, words, message):  # noqa: F811
    status, report = look(*JOB, *words)
    [found] = of_check(report, "teacher's nodes")
    assert (status, found["status"]) == (1, "red")
    assert message in found["found"]


def test_without_a_configuration_of_the_job_all_else_is_looked_at(look, tmp_path):  # noqa: F811
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({"partition": "???"}))
    _, report = look(f"slurm={tmp_path}/mine.yaml", "teacher.nodes=2")
    assert [check["status"] for check in of_check(report, "Slurm")] == ["red"]
    assert of_check(report, "teacher's nodes") == []
    assert [check["status"] for check in of_check(report, "source, teacher")] == ["green"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["slurm=none", "teacher.nodes=2"], "teacher.nodes=2 with slurm=none"),
        (["slurm=venv", "teacher.nodes=few"], "teacher.nodes=few"),
        (["slurm=venv", "executor.teacher.partition=x"], "without teacher.nodes"),
    ],
)
def test_words_that_are_wrong_are_refused(world, capsys, words, message):  # noqa: F811
    assert main(["preflight", f"yaml={world}/run.yaml", *words]) == 2
    assert message in capsys.readouterr().err

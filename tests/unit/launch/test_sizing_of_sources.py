"""What a preflight says of a teacher elsewhere: nodes, network, disk; and that it takes no room beside the student."""

import pytest
from test_preflight import _own_home, look, world  # noqa: F401 (fixtures)

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

"""Checksums of a folder, and the order of a run's checkpoints."""

import json
import os
import random

import pytest

from nemo_xtoken.checksums import CHECKSUMS, find_damage, write_checksums
from nemo_xtoken.weights.checkpoint_names import finished_checkpoints, steps_of


@pytest.fixture
def folder(tmp_path):
    """A checkpoint of two ranks, each with checksums of its own files."""
    files = [
        "weights/__0_0.distcp",
        "weights/__1_0.distcp",
        "weights/.metadata",
        "weights/common.pt",
        "context/io.json",
    ]
    numbers = random.Random(3)
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(numbers.randbytes(300_000))
    for rank in (0, 1):
        write_checksums(tmp_path, sorted((tmp_path / "weights").glob(f"__{rank}_*")), f"rank-{rank}")
    write_checksums(tmp_path, [tmp_path / name for name in files[2:]], "common")
    assert find_damage(tmp_path) is None
    return tmp_path


FILES = ["weights/__0_0.distcp", "weights/__1_0.distcp", "weights/.metadata", "weights/common.pt", "context/io.json"]


@pytest.mark.parametrize("name", FILES)
def test_damage_of_every_kind_is_found(folder, name):
    path = folder / name
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 3] ^= 1
    zeroed = whole[:1000] + bytes(65536) + whole[1000 + 65536 :]
    for data in (bytes(flipped), zeroed, whole[:-1], whole + b"x", whole[: len(whole) // 2], b"", whole[::-1]):
        path.write_bytes(data)
        assert name in find_damage(folder)
    path.unlink()
    assert find_damage(folder) == f"{name} is missing"
    path.write_bytes(whole)
    assert find_damage(folder) is None


def test_more_files_and_a_moved_folder_are_no_damage(folder, tmp_path_factory):
    (folder / "notes.txt").write_text("mine")
    moved = tmp_path_factory.mktemp("moved") / "elsewhere"
    os.rename(folder, moved)
    assert find_damage(moved) is None
    write_checksums(moved)
    assert "notes.txt" in json.loads((moved / CHECKSUMS / "0.json").read_text())["files"]
    assert find_damage(moved) is None


def test_a_folder_without_checksums_says_nothing(tmp_path):
    (tmp_path / "weights").mkdir()
    assert find_damage(tmp_path) is None


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"files": 3}', '{"files": {"x": 3}}', "[" * 100_000, "\0"])
def test_checksums_that_are_none_are_damage(folder, content):
    (folder / CHECKSUMS / "common.json").write_text(content)
    assert CHECKSUMS in find_damage(folder)


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "a/../../secret"])
def test_names_outside_the_folder_are_not_read(folder, name):
    (folder / CHECKSUMS / "common.json").write_text(json.dumps({"files": {name: [0, "0"]}}))
    assert find_damage(folder) is not None


# --- which checkpoint is newest


def made(run, *names, unfinished=()):
    for name in names:
        (run / "checkpoints" / name / "weights").mkdir(parents=True)
    for name in unfinished:
        (run / "checkpoints" / f"{name}-unfinished").touch()


def names(run):
    return [path.name for path in finished_checkpoints(run)]


STEPS = [
    "t--step=9.0000-epoch=0-last",
    "t--step=99.0000-epoch=0",
    "t--step=99.0000-epoch=0-last",
    "t--step=100.0000-last",
]


@pytest.mark.parametrize("order", [STEPS, STEPS[::-1], [STEPS[2], STEPS[0], STEPS[3], STEPS[1]]])
def test_the_step_decides_and_not_the_time(tmp_path, order):
    made(tmp_path, *order)
    for seconds, name in enumerate(order):
        os.utime(tmp_path / "checkpoints" / name / "weights", (seconds, seconds))
    assert names(tmp_path) == [STEPS[3], STEPS[2], STEPS[1], STEPS[0]]


def test_what_is_not_finished_is_left_out(tmp_path):
    made(tmp_path, *STEPS, unfinished=STEPS[2:])
    assert names(tmp_path) == [STEPS[1], STEPS[0]]
    (tmp_path / "checkpoints" / STEPS[1] / "weights").rmdir()
    assert names(tmp_path) == [STEPS[0]]


def test_names_without_a_step_go_by_time(tmp_path):
    made(tmp_path, "b", "a", "c")
    for seconds, name in enumerate(("c", "a", "b")):
        os.utime(tmp_path / "checkpoints" / name / "weights", (seconds, seconds))
    assert names(tmp_path) == ["b", "a", "c"]
    made(tmp_path, "x-step=0")
    assert names(tmp_path)[0] == "x-step=0"
    assert names(tmp_path / "none") == []


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("step_500", 500),
        ("step_500-v1", 500),
        ("step_500-val_loss=3.1250", 500),
        # of NeMo's names, where the first step is 0
        ("t--step=7.0000-epoch=1", 8),
        ("step=3-last", 4),
        ("step=5--step=12.5-last", 13),
        ("superstep=4", 0),
        ("my_step_4", 0),
        ("t", 0),
    ],
)
def test_steps_in_names(tmp_path, name, step):
    assert steps_of(tmp_path / name) == step

"""`xtoken cache` and `xtoken cache inspect` as commands: what they print, what they refuse, and what they leave."""

import json
import os
import shlex
import shutil
from collections import namedtuple

import pytest
from fake_slurm import end, install, sbatch
from forked_commands import run_command, run_forked

from nemo_xtoken.commands.cli import main
from nemo_xtoken.teachers.store.state_store import StateStore

TEXT = ("teacher_length=96", "student_length=64")


@pytest.fixture(scope="module")
def words(world):
    """The command but for ``out=`` and the format."""
    tokenizer = f"{world.root}/student_tokenizer"
    text = [f"student={tokenizer}", f"paths={world.root}/text", *TEXT]
    return ["cache", f"teacher={world.teacher}", *text, "dtype=fp32"]


@pytest.fixture(scope="module")
def states(words, tmp_path_factory):
    """A folder below which ``states`` lies, as two parts of the command have left it, and what the last printed."""
    folder = tmp_path_factory.mktemp("cached")
    for part in range(2):
        status, output = run_command(folder, "xtoken", *words, "out=states", f"part={part}", "parts=2")
        assert status == 0, output
    return folder, output


def answer(folder, *words):
    """The JSON on the last line, and the status."""
    status, output = run_command(folder, "xtoken", *words, "json=true")
    return json.loads(output.strip().splitlines()[-1]), status


def test_it_says_what_is_new_and_how_to_train(states, words):
    folder, output = states
    assert "tokens in states, 256 bytes each as fp32" in output
    assert "train with: teacher.source=cached teacher.cache.folder=states" in output
    again, status = answer(folder, *words, "out=states")
    assert (status, again["new_tokens"], again["format"], again["bytes_a_token"]) == (0, 0, "fp32", 256)
    assert again["tokens"] > 1000
    _, output = run_command(folder, "xtoken", *words, "out=states")
    assert "nothing: all of it was there" in output


def test_each_task_of_an_array_writes_a_part(states, words, tmp_path, command_server):
    """The script that `xtoken sbatch` writes, on the fake cluster."""
    install(tmp_path / "bin")
    script, state = tmp_path / "job.sh", tmp_path / "state"
    state.mkdir()
    command = shlex.join([str(command_server.program("xtoken")), *words, "out=states"])
    job = ["slurm=cpu", "executor.array=0-1", f"executor.workdir={tmp_path}", "executor.cpus_per_task=null"]
    assert main(["sbatch", f"command={command}", *job, f"out={script}"]) == 0
    array = {f"SLURM_ARRAY_TASK_{name}": number for name, number in (("MIN", "0"), ("MAX", "1"), ("COUNT", "2"))}
    path = {"PATH": f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"}
    started = [sbatch(script, state, {**os.environ, **path, **array}, 100 + task, task) for task in range(2)]
    try:
        for process, log in started:
            assert process.wait(300) == 0, log.read_text()
    finally:
        for process, _ in started:
            end(process)
    stores = [StateStore(folder / "states", None) for folder in (tmp_path, states[0])]
    assert sorted(path.parent.name for path in (tmp_path / "states").rglob("states-*")) == [
        f"part-{part:05d}-of-00002-copy-0000" for part in range(2)
    ]
    assert (stores[0].table.keys == stores[1].table.keys).all()


def test_inspect_says_what_is_there_and_how_much_of_a_text(states, words, world):
    folder, _ = states
    report, _ = answer(folder, *words, "out=states")
    text = [*words[2:6], f"tokenizer={world.root}/teacher_tokenizer"]
    found, status = answer(folder, "cache", "inspect", "out=states", "verify=true", *text)
    assert (status, found["verified"], found["damaged"]) == (0, True, {})
    assert found["tokens"] == found["formats"]["fp32"] == report["tokens"]
    assert found["coverage"] == {k: found["coverage"][k] for k in ("tokens", "pieces", "there", "in_documents")}
    assert found["coverage"]["there"] == found["coverage"]["tokens"] == found["tokens"]
    partly, _ = answer(folder, "cache", "inspect", "out=states", *text, "data.seed=5")
    covered = partly["coverage"]
    assert 0 < covered["there"] < covered["in_documents"] <= covered["tokens"] == found["tokens"]
    status, output = run_command(folder, "xtoken", "cache", "inspect", "out=states", *text)
    assert "(100.0%)" in output
    assert "hidden size 64, float32" in output


def test_inspect_names_what_is_damaged_and_the_command_makes_it_again(states, words, tmp_path):
    shutil.copytree(states[0] / "states", tmp_path / "states")
    file, other = (tmp_path / "states").rglob("states-*.safetensors")
    content = bytearray(file.read_bytes())
    content[-100] ^= 1
    file.write_bytes(content)
    found, status = answer(tmp_path, "cache", "inspect", "out=states", "verify=true")
    assert status == 1
    assert list(found["damaged"]) == [str(file.relative_to(tmp_path / "states"))]
    file.unlink()
    again, status = answer(tmp_path, *words, "out=states")
    assert status == 0
    assert 0 < again["new_tokens"] < again["tokens"]
    for one in (tmp_path / "states").rglob("states-*.safetensors"):
        one.write_bytes(b"")
    status, output = run_command(tmp_path, "xtoken", "cache", "inspect", "out=states")
    assert status == 2
    assert "can be read: {" in output
    assert other.name in output


def on_a_small_disk(words):
    """The command where the disk has 10,000 bytes, in a fork."""
    from nemo_xtoken.commands.cli import main

    shutil.disk_usage = lambda _: namedtuple("usage", "total used free")(10**6, 0, 10**4)
    raise SystemExit(main(words))


def test_what_the_disk_has_no_room_for_is_refused_before_a_teacher_is_loaded(words, tmp_path):
    ended = run_forked(tmp_path, on_a_small_disk, [*words, "out=states"])
    assert ended.status == 2
    assert "bytes for the states of" in ended.log
    assert "10,000 free" in ended.log
    assert not list((tmp_path / "states").rglob("states-*"))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["cache", "out=x"], "needs teacher= and paths="),
        (["cache", "inspect", "out=nothing"], "no states in nothing"),
        (["cache", "inspect", "out=states", "paths=text"], "needs tokenizer="),
        (["cache", "teacher=t", "paths=p", "out=x", "data.no_such=1"], "no_such"),
    ],
)
def test_usage(states, more, message):
    status, output = run_command(states[0], "xtoken", *more)
    assert status == 2
    assert message in output

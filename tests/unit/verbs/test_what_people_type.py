"""Every verb with values that a person can type, on an ASCII terminal: a result or one error, never a traceback."""

import io
import json
import os
import subprocess
import sys

import pytest
from remembered import remember_spellings
from tokenizer_zoo import write_folder

from nemo_xtoken.commands.cli import main
from nemo_xtoken.commands.verb import Option
from nemo_xtoken.commands.verbs import all_verbs
from nemo_xtoken.projection import prefixes

#: What each option may be given instead of what it is for.
WRONG = (
    "nowhere",
    "\udcff\udcfe",  # bytes that are not UTF-8, as Python has them
    "",
    "garbage",  # a file of bytes
    "folder",
    "empty.json",
    "x" * 400,  # longer than a name may be
    "garbage/below",
    "/proc/nothing/x",
    "été/今",
    "-",  # standard input, which is not UTF-8
    "-1",
    "[",
)
PAIR = {"student": "a", "teacher": "b"}
#: What a verb does with these is right, but for the models and runs that are none.
RIGHT = {
    "build": PAIR | {"out": "w.safetensors"},
    "audit": PAIR,
    "inspect": PAIR | {"w": "w.safetensors", "token": "201"},
    "diff": {"a": "w.safetensors", "b": "w.safetensors"},
    "convert": {"from": "w.safetensors", "to": "back.pt"},
    "align": PAIR | {"text": "été 今天 🙂"},
    "prepare": PAIR | {"paths": "t.jsonl", "out": "cache"},
    "certify": PAIR | {"steps": "1", "chunks": "1", "loss": "gold"},
    "transplant": {"model": "folder", "tokenizer": "b", "out": "swapped"},
    "prune": {"model": "folder", "layers": "1", "out": "pruned"},
    "bits": {"model": "folder", "text": "t.jsonl"},
    "cache": {"teacher": "nowhere", "out": "states"},
    "serve": {"teacher": "nowhere", "folder": "folder"},
    "import": {"model": "nowhere", "out": "nemo"},
    "export": {"run": "folder", "out": "hf"},
    "evaluate": {"model": "folder", "out": "scores"},
    "preflight": {"recipe": "xtoken_nowhere"},
    "sbatch": {"recipe": "xtoken_nowhere", "out": "job.sh"},
    "env": {},
    "settings": {},
}
LOADS_NEMO = ("cache", "serve", "import", "export")  # tests/jobs has the rest
DONE = ("build", "audit", "inspect", "diff", "align", "prepare", "certify", "env", "settings")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("place")
    write_folder("llama", folder / "a")
    write_folder("qwen", folder / "b")
    (folder / "garbage").write_bytes(b"\xff\xfe\0garbage" * 10)
    (folder / "empty.json").write_bytes(b"")
    (folder / "folder").mkdir()
    (folder / "t.jsonl").write_text(json.dumps({"text": "hello été 12"}))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("NEMO_XTOKEN_CACHE", str(folder / "own"))
        patch.setattr(prefixes, "_spelled", prefixes._spelled)  # put back as it was
        remember_spellings()
        yield folder


@pytest.fixture
def typed(place, monkeypatch):
    """Runs a verb; status, what it printed and its errors, all of it ASCII."""

    def run(verb, values):
        streams = [io.TextIOWrapper(io.BytesIO(), "ascii") for _ in range(2)]
        monkeypatch.setattr(sys, "stdout", streams[0])
        monkeypatch.setattr(sys, "stderr", streams[1])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xff")))
        status = main([verb, *(f"{name}={value}" for name, value in values.items())])
        texts = []
        for stream in streams:
            stream.flush()
            texts.append(stream.buffer.getvalue().decode("ascii"))
        return status, *texts

    return run


def test_every_verb_is_driven():
    assert set(RIGHT) == set(all_verbs())


@pytest.mark.parametrize("name", DONE)
def test_what_is_right_is_shown_on_an_ascii_terminal(name, typed):
    if name in ("inspect", "diff"):
        assert typed("build", RIGHT["build"])[0] == 0
    assert typed(name, RIGHT[name])[0] == 0
    if "json" in {option.name for option in all_verbs()[name].options}:
        status, out, _ = typed(name, RIGHT[name] | {"json": "true"})
        assert status == 0
        found = json.loads(out)
        assert name != "align" or found["text"] == RIGHT["align"]["text"]


@pytest.mark.filterwarnings("error::RuntimeWarning")  # of numbers that are none
@pytest.mark.parametrize("name", RIGHT)
def test_what_is_wrong_is_one_error(name, typed):
    verb = all_verbs()[name]
    for option in verb.options:
        if option.kind is bool:
            continue
        for value in WRONG[1:2] if name in LOADS_NEMO else wrong_for(option):
            status, _, error = typed(name, RIGHT[name] | {option.name: value})
            assert status in (0, 1, 2), (option.name, value, error)
            assert status != 1 or name == "preflight"  # which finds faults
            assert "Traceback" not in error
            if status == 2:
                assert error.count("error: ") == 1, (option.name, value, error)
                assert len(error.splitlines()[-1]) < 2000
    if verb.rest:
        status, _, error = typed(name, RIGHT[name] | {"executor.partition": "\udcff"})
        assert (status, "not UTF-8" in error) == (2, True)


def wrong_for(option: Option):
    """All of them for a text; for a number, which is read at once, those that may be one."""
    return WRONG if option.kind is str and not option.choices else ("\udcff", "", "-1", "nan", "1e999", "9" * 30)


def test_bytes_of_a_real_command_line(place):
    environment = {"LC_ALL": "C", "PYTHONIOENCODING": "ascii"}
    for text, status, found in ((b"\xff", 2, b"not UTF-8"), ("été".encode(), 0, b"t\\u00e9")):
        words = [b"align", b"student=a", b"teacher=b", b"json=true", b"text=" + text]
        done = subprocess.run(
            [sys.executable, "-m", "nemo_xtoken", *words],
            env=os.environ | environment,
            capture_output=True,
            timeout=60,
        )
        assert done.returncode == status, done.stderr
        assert found in done.stdout + done.stderr
        assert b"Traceback" not in done.stderr

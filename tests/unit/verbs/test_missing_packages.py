"""Every verb where a package is missing, as on a login node: what it is for, or one error that names the package."""

import json
import subprocess
import sys

import pytest
from tokenizer_zoo import write_folder

from nemo_xtoken.commands.verbs import all_verbs
from nemo_xtoken.environment import missing_package
from nemo_xtoken.hub import hub_folder
from nemo_xtoken.weights.safetensors_file import Entry, write_safetensors

PAIR = {"student": "a", "teacher": "b"}
#: Words with which each verb gets to all that it loads.
CALLS = (
    ("build", PAIR | {"out": "w.safetensors"}),
    ("audit", PAIR | {"text": "samples"}),
    ("audit", PAIR | {"chat": "chat.jsonl", "out": "audit"}),
    ("inspect", PAIR | {"w": "w.safetensors", "figure": "w.png"}),
    ("diff", {"a": "w.safetensors", "b": "w.safetensors"}),
    ("convert", PAIR | {"from": "w.safetensors", "to": "back.pt"}),
    ("align", PAIR | {"text": "a text"}),
    ("prepare", PAIR | {"paths": "t.jsonl", "out": "cache"}),
    ("prepare", PAIR | {"paths": "hf:owner/name", "out": "cache"}),
    ("prepare", PAIR | {"paths": "chat.jsonl", "out": "cache", "format": "chat"}),
    ("certify", PAIR | {"steps": "1", "chunks": "1", "loss": "gold"}),
    ("transplant", {"model": "m", "tokenizer": "b", "out": "swapped", "overwrite": "true"}),
    ("transplant", {"model": "owner/name", "tokenizer": "b", "out": "swapped", "overwrite": "true"}),
    ("prune", {"model": "m", "layers": "1", "out": "pruned", "overwrite": "true"}),
    ("bits", {"model": "m", "text": "t.jsonl"}),
    ("cache", {"teacher": "m", "paths": "t.jsonl", "out": "states"}),
    ("serve", {"teacher": "m", "folder": "folder"}),
    ("import", {"model": "m", "out": "nemo"}),
    ("export", {"run": "folder", "out": "hf"}),
    ("evaluate", {"model": "m", "out": "scores"}),
    ("preflight", {"recipe": "xtoken_tiny", "slurm": "none"}),
    ("sbatch", {"recipe": "xtoken_tiny", "slurm": "venv", "executor.gpus_per_node": "1", "out": "job.sh"}),
    ("env", {}),
    ("settings", {}),
)
#: Verbs that ask for each package; and what else is absent, so that a process need not load it.
ASKING = {
    "torch": (("audit", "convert", "certify", "bits", "cache", "serve"), ()),
    "transformers": (("bits",), ()),
    "datasets": (("prepare",), ("torch",)),
    "tokenizers": (("build", "inspect", "align", "prepare", "transplant", "prune"), ("torch",)),
}
_PROGRAM = """
import json, sys
absent = set(sys.argv[1].split(","))

class Without:
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in absent else self.finder.find_spec(name, path, target)

    def __getattr__(self, name):
        return getattr(self.finder, name)

sys.meta_path[:] = map(Without, sys.meta_path)
import contextlib, io, traceback
from nemo_xtoken.commands.cli import main
for words in json.load(sys.stdin):
    out, error, status = io.StringIO(), io.StringIO(), None
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
        try:
            status = main(words)
        except BaseException:
            traceback.print_exc()
    print(json.dumps([status, error.getvalue()]), file=sys.__stdout__, flush=True)
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Two tokenizers, a model that is whole as far as files go, and texts."""
    folder = tmp_path_factory.mktemp("place")
    write_folder("llama", folder / "a")
    write_folder("qwen", folder / "b")
    (folder / "folder").mkdir()
    (folder / "t.jsonl").write_text(json.dumps({"text": "hello 12"}))
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]
    (folder / "chat.jsonl").write_text(json.dumps({"messages": messages}))
    write_folder("llama", folder / "m")
    sizes = {"vocab_size": 2000, "hidden_size": 4, "num_attention_heads": 2, "intermediate_size": 4}
    config = {"model_type": "llama", "num_hidden_layers": 2, **sizes}
    (folder / "m" / "config.json").write_text(json.dumps(config))
    names = {"model.embed_tokens.weight": 2000, "model.layers.0.x.weight": 4, "model.layers.1.x.weight": 4}
    entries = {name: Entry("F32", (n, 4), lambda n=n: [bytes(16 * n)]) for name, n in names.items()}
    write_safetensors(folder / "m" / "model.safetensors", entries)
    return folder


def results_without(absent, place):
    """(verb, status, error) of each call in a process that has not these packages, nor NeMo's."""
    calls = [[verb, *(f"{name}={value}" for name, value in values.items())] for verb, values in CALLS]
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, ",".join([*absent, "nemo", "megatron", "lightning", "lm_eval"])],
        input=json.dumps(calls),
        capture_output=True,
        text=True,
        timeout=300,
        cwd=place,
        env={"NEMO_XTOKEN_CACHE": str(place / "own"), "HF_HUB_OFFLINE": "1", "HF_HOME": str(place), "PATH": ""},
    )
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(found) == len(calls), done.stderr
    return [(words[0], status, error) for words, (status, error) in zip(calls, found, strict=True)]


def test_every_verb_is_called():
    assert {verb for verb, _ in CALLS} == set(all_verbs())


@pytest.mark.parametrize("package", ASKING)
def test_a_missing_package_is_one_error(package, place):
    asking, (verbs, beside) = set(), ASKING[package]
    for verb, status, error in results_without([package, *beside], place):
        assert status in (0, 1, 2), (verb, error)
        assert "Traceback" not in error, (verb, error)
        if status == 2:
            assert error.count("error: ") == error.count("expected: ") == error.count("to fix: ") == 1, (verb, error)
        if "No module named" in error:
            assert " NeMo 2 " in error, (verb, error)  # of a framework, which needs it
        if f"xtoken {verb} needs the package {package}, which is not installed here" in error:
            assert f"pip install {package}" in error
            asking.add(verb)
    assert asking >= set(verbs)


def test_where_nothing_is_installed(place):
    """Not even NumPy: verbs that say what is there, or what a run may have, work all the same."""
    absent = ["torch", "numpy", "tokenizers", "safetensors", "transformers", "datasets", "pyarrow", "rich"]
    status = {}
    for verb, code, error in results_without([*absent, "matplotlib", "jinja2", "filelock", "huggingface_hub"], place):
        assert "Traceback" not in error, (verb, error)
        status.setdefault(verb, code)
        if code == 2 and verb not in ("import", "export"):
            assert "which is not installed here" in error or "lm-evaluation-harness" in error, (verb, error)
    assert [status[verb] for verb in ("env", "settings", "sbatch")] == [0, 0, 0]


def test_what_is_said_of_imports_that_fail():
    def said(name):
        return missing_package(ModuleNotFoundError("No module", name=name), "xtoken x")

    assert "pip install pyyaml" in said("yaml").fix
    assert "pip install 'nemo_xtoken[nemo]'" in said("nemo").fix
    assert "the package numpy that is installed here does not have" in said("numpy.nowhere").found
    assert "Python's own module _lzma" in said("_lzma").found
    assert said("nemo_xtoken.nowhere") is None
    assert said(None) is None
    assert missing_package(ImportError("a library of C", name="torch"), "xtoken x") is None


def test_a_wrong_path_stays_one_without_the_hub(monkeypatch):
    """Who mistypes a folder is not to install a package."""
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ValueError, match="'modle' is not a file or folder here, and without the package huggingface"):
        hub_folder("modle", ["*"], "model", "a model")

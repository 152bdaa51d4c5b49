"""YAML of version 0.1.0 is the same run today, for a preflight as for the command that distils."""

import json

import fiddle as fdl
import pytest
import yaml
from old_version import CHECKPOINT, FOLDER, YAML

from nemo_xtoken.commands.cli import main
from nemo_xtoken.commands.run_config import config_from_dict
from nemo_xtoken.run.renamed_paths import RENAMED, current_path

BRIDGE = [path for path in YAML if path.name.endswith(".bridge.yaml")]


def test_every_kind_of_file_is_there():
    assert len(YAML) == 4
    assert len(BRIDGE) == 1


def test_what_has_no_new_name_keeps_its_own():
    assert current_path("nemo_xtoken.losses.objective.ObjectiveConfig") == "nemo_xtoken.objective.scale.ObjectiveConfig"
    assert current_path("nemo_xtoken.data.config.DataConfig") == "nemo_xtoken.data.config.DataConfig"
    assert current_path("distill") == "distill"
    assert not RENAMED.keys() & RENAMED.values()


def _same(config, content, where=""):
    """Whether the configuration has every value of the file, at its place."""
    for key, value in content.items():
        if key in ("_target_", "_partial_", "_call_"):
            continue
        found = getattr(config, key)
        if isinstance(value, dict) and value.get("_call_", True) is False:
            assert f"{value['_target_']}" == str(found), f"{where}.{key}"
        elif isinstance(value, dict):
            _same(found, value, f"{where}.{key}")
        elif not isinstance(value, list):
            assert found == value, f"{where}.{key}"


@pytest.mark.parametrize("path", BRIDGE, ids=lambda path: path.name)
def test_a_run_under_bridge_is_read(path):
    content = yaml.safe_load(path.read_text())
    config = config_from_dict(content, str(path))
    _same(config, content)
    built = fdl.build(config)
    assert built.func.__module__ == "nemo_xtoken.plugin.bridge.distill_bridge"
    assert {name: teacher.loss for name, teacher in built.keywords["teachers"].items()} == {
        "llama": "same_tokenizer",
        "phi": "h_kl",
    }


@pytest.fixture
def look(tmp_path, monkeypatch, capsys):
    """(exit status, names and messages of what is red) of a preflight of a file."""
    monkeypatch.setenv("NEMO_XTOKEN_CACHE", str(tmp_path / "cache"))

    def run(file, *words):
        usual = ["slurm=none", "nodes=1", "gpus=1", f"log.log_dir={tmp_path}"]
        status = main(["preflight", "--json", f"yaml={FOLDER / file}", *usual, *words])
        report = json.loads(capsys.readouterr().out)
        return status, {check["check"]: check["found"] for check in report["checks"] if check["status"] == "red"}

    return run


def test_a_preflight_of_the_toy_can_run(look):
    assert look("xtoken_tiny.yaml") == (0, {})
    assert look("xtoken_tiny.yaml", f"teacher.path={CHECKPOINT}") == (0, {})


@pytest.mark.parametrize(
    ("name", "teachers"),
    [("xtoken_qwen3_llama1b", {"teacher"}), ("xtoken_phi4mini_llama3b_llama1b", {"teacher llama", "teacher phi"})],
)
def test_a_preflight_misses_what_the_user_has_left_out(look, name, teachers):
    status, red = look(f"{name}.yaml")
    assert status == 1
    assert red.keys() == {"student", "data", *teachers}, red

"""The commands in docs/clusters.md that can run here are run, and what it quotes is what the program says."""

import re
import shlex
from pathlib import Path

import pytest
from login_node import on_login_node

from nemo_xtoken.commands.cli import main
from nemo_xtoken.launch.slurm_config import BELOW_CACHE, CACHE, SlurmConfig

ROOT = Path(__file__).parents[3]
TEXT = (ROOT / "docs" / "clusters.md").read_text()
SOURCES = "".join(p.read_text() for folder in ("nemo_xtoken", "recipes") for p in sorted((ROOT / folder).rglob("*.py")))
RENDERED = re.findall(r"^    (xtoken sbatch [^#\n]*=[^#\n]*)", TEXT, re.M)
CHECKED = re.findall(r"^    (xtoken preflight [^#\n]*)", TEXT, re.M)


@pytest.mark.parametrize("command", RENDERED)
def test_scripts_are_rendered_as_said(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = [word for word in shlex.split(command)[1:] if word != "submit=true"]
    assert main([*words, "executor.container_image=/SHARED/nemo_xtoken.sqsh"]) == 0


@pytest.mark.parametrize("command", ["xtoken sbatch --help", *RENDERED, *CHECKED])
def test_a_login_node_has_what_the_commands_need(command, tmp_path):
    words = [word for word in shlex.split(command)[1:] if word != "submit=true"]
    image = ["executor.container_image=/SHARED/nemo_xtoken.sqsh"] * ("recipe=" in command and "slurm=" not in command)
    run = on_login_node([*words, *image], tmp_path)
    assert run.returncode == 0, run.stdout + run.stderr


def test_there_is_something_to_run():
    assert len(RENDERED) >= 2
    assert len(CHECKED) >= 2


def test_every_key_is_one():
    keys = set(re.findall(r"executor\.(\w+)", TEXT))
    assert {"nodes", "chain", "array"} <= keys
    assert keys - set(SlurmConfig.__dataclass_fields__) == {"KEY"}


@pytest.mark.parametrize(
    "message",
    [
        "not set in",
        "put srun before the command",
        "the same number on each",
        " processes",
        "that the first rank does not",
    ],
)
def test_quoted_messages_are_in_the_program(message):
    assert message in TEXT
    assert message in SOURCES


def test_it_begins_with_the_images_of_the_dockerfile():
    bases = re.findall(r"^FROM (nvcr\S+) AS (\w+)", (ROOT / "Dockerfile").read_text(), re.M)
    begin = TEXT.partition("## 1.")[0]
    assert bases
    for base, target in bases:
        assert f"`{base}`" in begin
        assert f"`--target {target}`" in begin


@pytest.mark.parametrize("row", ["docker", "enroot", "pyxis"])
def test_a_container_started_by_hand_keeps_its_caches(row):
    """Its home folder is gone with it, and on another node there is another."""
    text = re.search(rf"^\| {row} \| (.*) \|$", TEXT, re.M)[1]
    for name in (CACHE, *BELOW_CACHE):
        assert re.search(rf"\b{name}=\$PWD/cache", text), name


def test_what_is_installed_without_its_requirements_is_told_them():
    """Outside a login node, where the page names what is needed."""
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    blocks = [block for page in pages for block in re.findall(r"(?:^ {4}.*\n)+", page.read_text(), re.M)]
    blocks = [block for block in blocks if re.search(r"pip install --no-deps \.(?!\S)", block)]
    assert len(blocks) == 2
    for block in blocks:
        assert "xtoken env --missing" in block or "pip install pyyaml omegaconf &&" in block

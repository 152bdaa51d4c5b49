"""What the pins cover, and what `make` says when it cannot start.  The wheel: test_dockerfile_runs.py."""

import importlib.util
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def _pins(python, file="constraints.txt"):
    """The pins that count for a version of Python, by name."""
    lines = (line.partition("#")[0].strip() for line in (ROOT / file).read_text().splitlines())
    requirements = [Requirement(line) for line in lines if line]
    found = [r for r in requirements if r.marker is None or r.marker.evaluate({"python_version": python})]
    pins = {canonicalize_name(r.name): r for r in found}
    assert len(pins) == len(found), "pinned twice"
    return pins


@pytest.mark.parametrize("python", ["3.10", "3.11", "3.12"])
def test_every_declared_dependency_is_pinned_within_its_bounds(python):
    pins = _pins(python)
    optional = PROJECT["optional-dependencies"]
    for line in [*PROJECT["dependencies"], *optional["nemo"], *optional["dev"]]:
        wanted = Requirement(line)
        pin = pins.get(canonicalize_name(wanted.name))
        assert pin is not None, f"{wanted.name} has no pin"
        (version,) = (specifier.version for specifier in pin.specifier)
        assert wanted.specifier.contains(version, prereleases=True), f"{line} and {pin}"


@pytest.mark.parametrize("file", ["constraints.txt", "tests/stack/bridge/requirements.txt"])
@pytest.mark.parametrize("python", ["3.10", "3.11", "3.12"])
def test_pins_are_exact_and_without_local_builds(python, file):
    for pin in _pins(python, file).values():
        (specifier,) = pin.specifier
        assert specifier.operator == "=="
        assert "+" not in specifier.version, f"{pin} can be had from one index only"


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
class TestMake:
    @pytest.fixture
    def tree(self, tmp_path):
        for name in ("Makefile", "pyproject.toml", "constraints.txt"):
            shutil.copy(ROOT / name, tmp_path)
        return tmp_path

    def _make(self, tree, *words):
        # Of its own, also when the tests are run by make.
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
        command = ["make", *words]
        return subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, timeout=60)

    def _python(self, tree, version):
        """A stand-in for an interpreter of that version, which notes the modules that it is asked to run."""
        path = tree / "python"
        path.write_text(
            f'#!/bin/sh\ncase "$1" in\n  --version) echo Python {version};;\n'
            f'  -c) exec {sys.executable} -c "import sys; sys.version_info = ($(echo {version} | tr . ,)); $2";;\n'
            f'  -m) echo "$@" >> {tree}/calls\n'
            '      if [ "$2" = venv ]; then mkdir -p "$3/bin"; cp "$0" "$3/bin/python"; cp "$0" "$3/bin/pip"; fi;;\n'
            "esac\n"
        )
        path.chmod(0o755)
        return f"PYTHON={path}"

    @pytest.mark.parametrize("version", ["3.9.18", "3.13.0", "4.0.0"])
    def test_another_python_is_refused_clearly(self, tree, version):
        run = self._make(tree, "install", self._python(tree, version))
        assert run.returncode != 0
        assert "Python 3.10, 3.11 or 3.12 is needed" in run.stdout
        assert f"Python {version}" in run.stdout
        assert not (tree / ".venv").exists()

    @pytest.mark.parametrize("version", ["3.10.0", "3.11.7", "3.12.4"])
    def test_one_install_then_none(self, tree, version):
        python = self._python(tree, version)
        first = self._make(tree, "install", python, "TORCH_INDEX=file:///wheels")
        assert first.returncode == 0, first.stdout + first.stderr
        calls = (tree / "calls").read_text()
        assert calls.count(" install -c ") == 1
        beside = importlib.util.find_spec("triton") is None  # a PyTorch for CUDA brings it
        assert calls.count("--target .venv/triton triton==") == beside
        assert calls.count("--target .venv/transformers5 transformers==") == 1
        assert calls.count(" install ") == 2 + beside
        assert "-c constraints.txt --extra-index-url file:///wheels -e .[nemo,dev]" in calls
        assert (tree / ".venv/.installed").exists()
        again = self._make(tree, "install", python)
        assert again.returncode == 0
        assert "install" not in again.stdout.replace("Nothing to be done for 'install'", "")
        assert (tree / "calls").read_text() == calls

    def test_another_python_gets_an_environment_of_its_own(self, tree):
        assert self._make(tree, "install", self._python(tree, "3.11.7")).returncode == 0
        (tree / ".venv/of-3.11").touch()
        other = self._make(tree, "install", self._python(tree, "3.12.4"))
        assert other.returncode == 0, other.stdout + other.stderr
        assert not (tree / ".venv/of-3.11").exists()
        assert (tree / "calls").read_text().count("-m venv .venv") == 2

    def test_the_environment_keeps_its_python_where_none_is_given(self, tree):
        assert self._make(tree, "install", self._python(tree, "3.12.4")).returncode == 0
        (tree / ".venv/of-3.12").touch()
        os.utime(tree / "constraints.txt", (time.time() + 60,) * 2)
        again = self._make(tree, "install")
        assert again.returncode == 0, again.stdout + again.stderr
        assert (tree / ".venv/of-3.12").exists()
        assert (tree / "calls").read_text().count(" install -c ") == 2

    def test_a_python_that_is_not_there_is_one_message(self, tree):
        run = self._make(tree, "install", "PYTHON=python-of-nobody")
        assert run.returncode != 0
        assert "error: Python 3.10, 3.11 or 3.12 is needed" in run.stdout
        assert "to fix: PYTHON=/path/to/python3.11 make" in run.stdout
        assert run.stderr.count("\n") == 1  # make's own

    def test_help_lists_the_targets(self, tree):
        out = self._make(tree).stdout
        kinds = [f"test-{kind}" for kind in ("unit", "stack", "jobs", "bridge")]
        for target in ("demo", "demo-bridge", "test", *kinds, "lint", "clean", "help"):
            assert f"make {target} " in out


@pytest.mark.parametrize("status", [0, 1], ids=["a Python for Bridge", "another Python"])
def test_continuous_integration_runs_all_tests_and_says_what_it_does_not(tmp_path, status):
    script = tmp_path / ".ci/run"
    script.parent.mkdir()
    shutil.copy(ROOT / ".ci/run", script)
    assert script.stat().st_mode & 0o111
    for name, text in (
        (".venv/bin/python", f"exit {status}"),
        ("bin/make", f'echo "$@" >> {tmp_path}/calls'),
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True)
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}/bin:{os.environ['PATH']}"}
    done = subprocess.run([script], env=environment, capture_output=True, text=True, timeout=60, check=True)
    assert (tmp_path / "calls").read_text().split() == ["test", *([] if status else ["test-bridge"])]
    assert ("NOT RUN: the tests of Megatron-Bridge" in done.stderr) == bool(status)
    (tmp_path / "bin/make").write_text("#!/bin/sh\nexit 2\n")
    assert subprocess.run([script], env=environment, capture_output=True, timeout=60).returncode == 2

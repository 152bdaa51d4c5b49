"""Every RUN line of the Dockerfile is executed, in a plain environment that stands in for what its image has.

Absolute paths are moved into a temporary folder. pip and the package itself are the real ones; what belongs to a system
(apt-get, useradd) and NVIDIA's packages are stand-ins. The wheel that comes out is looked at too.
"""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from dockerfile import ROOT, copied, stages
from packaging.requirements import Requirement

STAGES = stages()
RUNS = {(name, n): rest for name, stage in STAGES.items() for n, (word, rest) in enumerate(stage) if word == "RUN"}


def _runs(stage):
    return [rest for (name, _), rest in RUNS.items() if name == stage]


def _execute(script, root, path, folder=None, **environment):
    """A RUN line with its absolute paths below ``root``, and the commands of ``path`` before the system's."""
    script = re.sub(r"(?<![\w.$\"])/(?=(wheel|tmp|var|home)\b)", f"{root}/", script)
    environment = {"PATH": f"{path}:/usr/bin:/bin", "PIP_NO_INDEX": "1", "PIP_CONFIG_FILE": os.devnull, **environment}
    command = ["sh", "-c", script]
    return subprocess.run(command, cwd=folder or root, env=environment, capture_output=True, text=True, timeout=300)


def _command(folder, name, text):
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{text}\n")
    (folder / name).chmod(0o755)


def _copy(stage, folder):
    """What a stage copies from the context, into a folder."""
    for name in copied(STAGES[stage]):
        ignore = shutil.ignore_patterns("__pycache__", "*.py[cod]")
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=ignore)
        else:
            shutil.copy(ROOT / name, folder / Path(name).name)


def test_there_is_no_other():
    assert [name for name, _ in RUNS] == ["wheel", "cpu", "cpu", "bridge", "bridge", "nemo2", "nemo2"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, made by the line that makes it."""
    root = tmp_path_factory.mktemp("wheel")
    (root / "source").mkdir()
    _copy("wheel", root / "source")
    (script,) = _runs("wheel")
    # setuptools is that of this environment, since there is no index: 0 is pip's word for that.
    done = _execute(script, root, Path(sys.executable).parent, root / "source", PIP_NO_BUILD_ISOLATION="0")
    assert done.returncode == 0, done.stderr
    (path,) = (root / "wheel").glob("*.whl")
    return path


@pytest.fixture(scope="module")
def names(wheel):
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_the_wheel_has_every_module_recipe_and_configuration(names):
    expected = set()
    for folder, pattern in (("nemo_xtoken", "*.py"), ("recipes", "*.py"), ("conf", "*.py"), ("conf", "*.yaml")):
        package = folder if folder == "nemo_xtoken" else f"nemo_xtoken/{folder}"
        paths = (ROOT / folder).rglob(pattern)
        expected |= {f"{package}/{path.relative_to(ROOT / folder).as_posix()}" for path in paths}
    assert {"nemo_xtoken/recipes/__init__.py", "nemo_xtoken/conf/__init__.py"} <= expected
    assert sorted(expected - names) == []


def test_the_wheel_has_nothing_else(names):
    (info,) = {name.split("/")[0] for name in names} - {"nemo_xtoken"}
    assert info.endswith(".dist-info")
    assert not [name for name in names if re.search(r"(^|/)(tests?|benchmarks|docs)/|conftest|test_", name)]
    assert f"{info}/licenses/LICENSE" in names


def test_the_wheel_declares_commands_and_entry_points(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("entry_points.txt"))
        text = archive.read(name).decode()
    assert "xtoken = nemo_xtoken.commands.cli:main" in text
    nemo_run = text.partition("[nemo_run.cli]")[2]
    assert "llm = nemo_xtoken.commands.nemo_cli\n" in nemo_run
    assert "xtoken = nemo_xtoken.commands.nemo_cli_light\n" in nemo_run


def _package(folder, name, version):
    """A wheel with nothing but a name."""
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as archive:
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", f"{info}/METADATA,,\n{info}/WHEEL,,\n{info}/RECORD,,\n")


THEIRS = {
    "nemo2": {"nemo_toolkit": "2.6.0", "megatron_core": "0.15.0", "nemo_run": "0.7.0", "torch": "2.9.0"},
    "bridge": {"megatron_bridge": "0.6.1", "megatron_core": "0.19.1", "nemo_run": "0.11.1", "torch": "2.13.0"},
}
SOURCES = {"nemo2": ["nemo/collections/llm"], "bridge": ["megatron/bridge"]}


@pytest.fixture
def image(wheel, tmp_path):
    """Makes what stands in for an image: a Python of its own, with all that the package requires but rich."""

    def make(stage, with_pip):
        venv = tmp_path / "venv"
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True, timeout=60)
        (site,) = venv.glob("lib/python*/site-packages")
        with zipfile.ZipFile(wheel) as archive:
            (metadata,) = (name for name in archive.namelist() if name.endswith("/METADATA"))
            lines = archive.read(metadata).decode().splitlines()
        wanted = [Requirement(line.partition(": ")[2]) for line in lines if line.startswith("Requires-Dist: ")]
        names = {r.name.replace("-", "_"): "99" for r in wanted if r.marker is None} | THEIRS[stage]
        del names["rich"]
        for name, version in names.items():
            _package(tmp_path, name, version)
            zipfile.ZipFile(tmp_path / f"{name}-{version}-py3-none-any.whl").extractall(site)
        for module in [*SOURCES[stage], "megatron/core", "nemo_run"]:
            (site / module).mkdir(parents=True)
        pip = site if with_pip else tmp_path / "pip"
        pip.mkdir(exist_ok=True)
        (pip / "pip").symlink_to(Path(importlib.util.find_spec("pip").origin).parent)
        if not with_pip:  # as in an environment that uv has made
            _command(venv / "bin", "uv", f'PYTHONPATH={pip} exec python -m "$@"')
        for version in ("14", "15"):
            _package(tmp_path, "rich", version)
        _package(tmp_path, "torch", "99")
        _package(tmp_path, "pyzmq", "27")
        (tmp_path / "tmp/wheel").mkdir(parents=True)
        shutil.copy(wheel, tmp_path / "tmp/wheel")
        shutil.copy(ROOT / "docker/install.sh", tmp_path / "tmp/wheel")
        return venv, site

    return make


@pytest.mark.parametrize(("stage", "with_pip"), [("nemo2", True), ("bridge", False)])
def test_the_package_goes_into_an_image_beside_what_is_there(image, tmp_path, stage, with_pip):
    venv, site = image(stage, with_pip)
    before = {path.name for path in site.glob("*.dist-info")}
    script, _ = _runs(stage)
    done = _execute(script, tmp_path, venv / "bin", PIP_FIND_LINKS=str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    new = {path.name for path in site.glob("*.dist-info")} - before
    assert new == {"rich-15.dist-info", "pyzmq-27.dist-info", "nemo_xtoken-0.1.0.dist-info"}
    assert before <= {path.name for path in site.glob("*.dist-info")}
    framework = {"nemo2": ("NeMo", "2.6.0"), "bridge": ("Megatron-Bridge", "0.6.1")}[stage]
    assert re.search(rf"^  {framework[0]} +{framework[1]}\b", done.stdout, re.M), done.stdout
    assert not (tmp_path / "tmp/wheel").exists()


def test_an_installation_that_changes_a_package_fails(image, tmp_path):
    venv, site = image("bridge", True)
    _command(tmp_path / "first", "xtoken", "echo 'torch==99'")  # asks for another torch than theirs
    script, _ = _runs("bridge")
    done = _execute(script, tmp_path, f"{tmp_path}/first:{venv}/bin", PIP_FIND_LINKS=str(tmp_path))
    assert (site / "torch-99.dist-info").exists()
    assert done.returncode == 1
    assert "error: changed by the installation: torch==2.13.0" in done.stderr


@pytest.mark.parametrize("stage", ["nemo2", "bridge"])
def test_the_user_of_an_image(tmp_path, stage):
    _, script = _runs(stage)
    _command(tmp_path / "bin", "useradd", f'echo "$@" > {tmp_path}/useradd; mkdir -p {tmp_path}/home/xtoken')
    assert _execute(script, tmp_path, tmp_path / "bin").returncode == 0
    assert (tmp_path / "useradd").read_text() == "--create-home --uid 10001 xtoken\n"
    assert (tmp_path / "home/xtoken").stat().st_mode & 0o7777 == 0o1777  # anybody's, as /tmp is


def test_the_system_of_the_cpu_image(tmp_path):
    system, _ = _runs("cpu")
    for name in ("apt-get", "useradd"):
        _command(tmp_path / "bin", name, f'echo {name} "$@" >> {tmp_path}/calls')
    (tmp_path / "var/lib/apt/lists/a").mkdir(parents=True)
    assert _execute(system, tmp_path, tmp_path / "bin").returncode == 0
    assert not list((tmp_path / "var/lib/apt/lists").iterdir())
    update, install, user = (tmp_path / "calls").read_text().splitlines()
    assert update == "apt-get update"
    assert install == "apt-get install --yes --no-install-recommends git make"
    assert user == "useradd --create-home --uid 1000 xtoken"


def test_the_installation_in_the_cpu_image(tmp_path):
    """`make install` where there is what the stage copies, and a Python that notes what pip would do."""
    _, install = _runs("cpu")
    _copy("cpu", tmp_path)
    _command(
        tmp_path / "bin",
        "python3",
        f'case "$1" in -c) exec {sys.executable} "$@";; --version) echo Python 3.11.7;;\n'
        f'-m) echo "$@" >> {tmp_path}/calls\n'
        'if [ "$2" = venv ]; then mkdir -p "$3/bin"; cp "$0" "$3/bin/python"; cp "$0" "$3/bin/pip"; fi;; esac',
    )
    done = _execute(install, tmp_path, tmp_path / "bin", TORCH_INDEX="file:///wheels")
    assert done.returncode == 0, done.stdout + done.stderr
    calls = (tmp_path / "calls").read_text()
    assert "-m pip install -c constraints.txt --extra-index-url file:///wheels -e .[nemo,dev]\n" in calls
    assert (tmp_path / ".venv/.installed").exists()
    assert os.access(tmp_path / ".venv/bin/python", os.X_OK)

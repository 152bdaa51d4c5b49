"""What is said about the installed stack."""

import importlib.metadata
import json
import logging
import re
import subprocess
import sys
from pathlib import Path

import pytest

from nemo_xtoken.commands.cli import main
from nemo_xtoken.environment import COMPONENTS, find_stack, missing_requirements, without_launcher

ROOT = Path(__file__).parents[2]


def _install(folder, package, version, *modules):
    """A folder for sys.path in which a distribution looks installed, with modules."""
    info = folder / f"{package.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")
    for module in modules:
        (folder / module).mkdir(parents=True)
        (folder / module / "__init__.py").write_text("raise RuntimeError('imported')\n")


def _elsewhere(folder):
    """`xtoken env --json` where nothing but this folder and our own package can be imported."""
    import nemo_xtoken

    program = (
        "import sys; sys.path = [p for p in sys.path if 'site-packages' not in p]; "
        f"sys.path[:0] = [{str(folder)!r}]; sys.meta_path = [f for f in sys.meta_path if 'editable' not in str(f)]; "
        f"import types; package = types.ModuleType('nemo_xtoken'); package.__path__ = {list(nemo_xtoken.__path__)!r}; "
        "package.__version__ = '1'; sys.modules['nemo_xtoken'] = package; "
        "from nemo_xtoken.commands.cli import main; main(['env', '--json'])"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    return json.loads(run.stdout)


def test_an_empty_python(tmp_path):
    assert {found["version"] for found in _elsewhere(tmp_path).values()} == {None}


def test_a_whole_stack_is_found_without_importing_it(tmp_path):
    _install(tmp_path, "nemo-toolkit", "2.7.3", "nemo", "nemo/collections/llm")
    _install(tmp_path, "megatron-core", "0.16.0", "megatron", "megatron/core")
    _install(tmp_path, "transformer-engine", "2.9", "transformer_engine", "transformer_engine_torch")
    _install(tmp_path, "apex", "0.1", "apex", "amp_C")
    found = _elsewhere(tmp_path)
    versions = {name: entry["version"] for name, entry in found.items() if entry["version"] is not None}
    assert versions == {"NeMo": "2.7.3", "Megatron-core": "0.16.0", "Transformer Engine": "2.9", "Apex": "0.1"}
    assert found["NeMo"]["remark"] == ""
    assert found["Megatron-core"]["remark"] == "tested with 0.15, 0.17, 0.18, 0.19"


def _named_versions():
    """The versions of NVIDIA's images, those that bridge.md says the tests ran with, and those of the environments."""
    images = re.search(r"^\| what trains \|.*$", (ROOT / "docs" / "clusters.md").read_text(), re.M)[0]
    yield from re.findall(r"(NeMo|Megatron-core|Megatron-Bridge) ([\d.]+\d)", images)
    page = (ROOT / "docs" / "bridge.md").read_text()
    for bridge, core in re.findall(r"^\| (0\.[\d.]+) \| (0\.[\d.]+) \| ", page, re.M):
        yield from (("Megatron-Bridge", bridge), ("Megatron-core", core))
    packages = {package: component.name for component in COMPONENTS for package in component.packages}
    for file in ("Makefile", "constraints.txt", "tests/stack/bridge/requirements.txt"):
        for package, version in re.findall(r"(?<![\w-])([\w-]+)==([\d.]+\d)", (ROOT / file).read_text()):
            if package in packages:
                yield packages[package], version


def test_the_versions_that_documents_and_environments_name_get_no_remark():
    named = set(_named_versions())
    components = {component.name: component for component in COMPONENTS}
    assert {name for name, _ in named} >= {name for name, component in components.items() if component.tested}
    assert len(named) >= 9
    assert [(name, version) for name, version in sorted(named) if not components[name].was_tested(version)] == []


def test_what_only_has_the_name_does_not_count(tmp_path):
    _install(tmp_path, "nemo-toolkit", "3.0.0", "nemo", "nemo/collections/asr")  # speech only
    _install(tmp_path, "apex", "0.9.10", "apex")  # the public index's is a web toolkit
    _install(tmp_path, "transformer-engine", "2.9", "transformer_engine")  # the meta package
    found = _elsewhere(tmp_path)
    for name in ("NeMo", "Apex", "Transformer Engine"):
        assert found[name]["version"] is None
        assert "is another project or incomplete" in found[name]["remark"]


def test_what_is_lost_is_said(capsys):
    stack = find_stack()
    assert main(["env"]) == 0
    out = capsys.readouterr().out
    assert out == f"{stack!r}\n"
    for component in COMPONENTS:
        assert f"  {component.name} " in out
    for component in stack.missing:
        assert f"not found; lost without it: {component.without}" in out
        assert component.name in stack.line().partition("; without ")[2]
    assert f"PyTorch {stack['PyTorch'].version}" in stack.line()
    assert stack["PyTorch"].version


@pytest.mark.parametrize(
    ("program", "out", "err"),
    [
        ("import nemo_xtoken", "", ""),
        ("import nemo_xtoken; print(nemo_xtoken.stack)", "  PyTorch ", ""),
        (
            "import logging; logging.basicConfig(level=logging.DEBUG); import nemo_xtoken",
            "",
            "DEBUG:nemo_xtoken:version ",
        ),
        ("import logging; logging.basicConfig(level=logging.INFO); import nemo_xtoken", "", ""),
    ],
    ids=["silent", "asked", "debug", "info"],
)
def test_import_says_it_when_asked(program, out, err):
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    for text, expected in ((run.stdout, out), (run.stderr, err)):
        assert expected in text
        assert expected or not text


def test_python_m_is_the_command(capsys):
    run = subprocess.run([sys.executable, "-m", "nemo_xtoken"], capture_output=True, text=True, check=True, timeout=60)
    assert run.stdout == f"{find_stack()!r}\n"


def test_what_no_deps_left_out(tmp_path, monkeypatch):
    _install(tmp_path, "half", "1.0")
    metadata = tmp_path / "half-1.0.dist-info" / "METADATA"
    wanted = ["numpy>=99", "not-there[x]>=2; python_version > '3'", "nowhere ; extra == 'gpu'"]
    metadata.write_text(metadata.read_text() + "".join(f"Requires-Dist: {line}\n" for line in wanted))
    monkeypatch.syspath_prepend(str(tmp_path))
    assert missing_requirements("half") == [wanted[1]]  # of numpy there is one, which is to stay
    assert missing_requirements() == []


@pytest.mark.parametrize(
    ("line", "missing"),
    [
        ('not-there>=25; extra == "service"', ["not-there>=25"]),
        ("not-there>=25 ; extra == 'service'", ["not-there>=25"]),
        ("not-there>=25; python_version > '3' and extra == 'service'", ["not-there>=25; python_version > '3'"]),
        ('not-there>=25; extra == "services"', []),
        ('numpy>=99; extra == "service"', []),
    ],
)
def test_what_a_teacher_elsewhere_needs_is_not_left_out(tmp_path, monkeypatch, line, missing):
    """In a form that pip installs: it passes over what it takes to be of an extra."""
    _install(tmp_path, "half", "1.0")
    metadata = tmp_path / "half-1.0.dist-info" / "METADATA"
    metadata.write_text(f"{metadata.read_text()}Requires-Dist: {line}\nProvides-Extra: service\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert missing_requirements("half") == missing


def test_pyzmq_is_named_where_it_is_missing(monkeypatch, capsys):
    version = importlib.metadata.version

    def without(name):
        if name == "pyzmq":
            raise importlib.metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(importlib.metadata, "version", without)
    assert main(["env", "--missing"]) == 0
    assert capsys.readouterr().out == "pyzmq>=25\n"


def test_there_is_no_other_attribute():
    import nemo_xtoken

    with pytest.raises(AttributeError, match="no attribute 'stuck'"):
        _ = nemo_xtoken.stuck
    assert logging.getLogger("nemo_xtoken").level == logging.NOTSET


def test_a_process_of_its_own_is_none_of_several():
    several = {"RANK": "3", "WORLD_SIZE": "8", "MASTER_PORT": "1", "SLURM_PROCID": "3", "TORCHELASTIC_RUN_ID": "x"}
    assert without_launcher({**several, "PATH": "/bin", "HF_HOME": "/hf"}) == {"PATH": "/bin", "HF_HOME": "/hf"}

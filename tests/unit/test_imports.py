"""Imports run downwards only, the lower packages are free of NeMo, and nothing but the CPU runtime patches anything."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BASE = {"nemo_xtoken", "errors", "files", "sizes"}

_CHAIN = ["vocab", "alignment", "projection", "kernels", "parallel", "losses", "teachers"]
#: Package or module -> what it may import of this package, besides itself and BASE.
ALLOWED = {
    **{name: set(_CHAIN[:i]) for i, name in enumerate(_CHAIN)},
    "projection": {"vocab"},  # beside the alignment, not above it
    "data": {"vocab", "alignment"},
    "certify": set(_CHAIN[:-1]),
    "report": set(),
    "sizes": set(),
    "models": {"vocab", "projection"},  # files of models, not models
    "evaluate": {"vocab", "models", "report"},
    "verbs": {*_CHAIN[:3], "certify", "models", "data", "evaluate", "report", "environment", "launch", "recipes"},
    "cli": {"verbs"},
    "environment": set(),
    "plugin": {*_CHAIN, "models", "data", "evaluate", "report"},
    "launch": {*_CHAIN, "data", "report", "plugin", "conf", "environment", "models"},
    "recipes": {*_CHAIN, "data", "report", "plugin", "launch"},
    "run_config": set(),
    "run_context": {"cli", "environment", "launch", "recipes", "run_config", "verbs"},
    "nemo_cli": {"nemo_cli_light", "environment", "recipes", "run_context", "plugin", "launch"},
    "nemo_cli_light": {"cli"},
    "__main__": {"cli"},
    "errors": set(),
    "files": set(),
    "conf": set(),
}
FRAMEWORKS = {"nemo", "megatron", "lightning", "pytorch_lightning", "nemo_run", "modelopt"}
FREE_OF_FRAMEWORKS = set(_CHAIN[:-1]) | {"certify", "models", "data", "report", "verbs", "cli", "environment"}
FREE_OF_FRAMEWORKS |= {"evaluate", "errors", "files", "sizes"}
MAY_PATCH = {"nemo_xtoken/training/cpu/runtime.py"}


def _sources():
    for path in sorted((ROOT / "nemo_xtoken").rglob("*.py")):
        yield path, ("nemo_xtoken", *path.relative_to(ROOT / "nemo_xtoken").with_suffix("").parts)
    for folder in ("recipes", "conf"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            yield path, ("nemo_xtoken", *path.relative_to(ROOT).with_suffix("").parts)


SOURCES = [pytest.param(path, module, id=str(path.relative_to(ROOT))) for path, module in _sources()]


def _imported(tree, module):
    """Dotted names of what a module imports, anywhere in it; for `from a import b` that is `a.b`."""
    package = module[:-1]  # also of an __init__, whose own name is the last part
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            base = ".".join(filter(None, [start, node.module]))
            yield from (f"{base}.{alias.name}" for alias in node.names)


def _unit(module):
    """The package or module of ours that a module belongs to: `vocab`, `cli`, ..."""
    return module[1] if len(module) > 1 and module[1] != "__init__" else "nemo_xtoken"


def upward_imports(source, module):
    unit = _unit(module)
    allowed = ALLOWED[unit] | BASE | {unit} if unit != "nemo_xtoken" else {"environment"}
    for name in _imported(ast.parse(source), module):
        parts = name.split(".")
        if parts[0] != "nemo_xtoken":
            continue
        target = parts[1] if len(parts) > 1 else "nemo_xtoken"
        if target in ALLOWED and target not in allowed:
            yield name


def framework_imports(source, module):
    if _unit(module) in FREE_OF_FRAMEWORKS:
        yield from (n for n in _imported(ast.parse(source), module) if n.split(".")[0] in FRAMEWORKS)


def patches(source):
    """Lines that set an attribute on something imported from elsewhere: `torch.x = ..`, `setattr(torch, ..)`."""
    tree = ast.parse(source)
    foreign = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            foreign |= {(a.asname or a.name).split(".")[0] for a in node.names if not a.name.startswith("nemo_xtoken")}
        elif isinstance(node, ast.ImportFrom) and not node.level and not (node.module or "").startswith("nemo_xtoken"):
            foreign |= {a.asname or a.name for a in node.names}

    def root(node):
        while isinstance(node, ast.Attribute):
            node = node.value
        return node.id if isinstance(node, ast.Name) else None

    def targets(node):
        if isinstance(node, (ast.Tuple, ast.List)):
            return [leaf for element in node.elts for leaf in targets(element)]
        return [node]

    for node in ast.walk(tree):
        if isinstance(node, (ast.Assign, ast.Delete)):
            assigned = [leaf for target in node.targets for leaf in targets(target)]
        elif isinstance(node, (ast.AugAssign, ast.AnnAssign)):
            assigned = [node.target]
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("setattr", "delattr") and node.args:
            if root(node.args[0]) in foreign:
                yield node.lineno
            continue
        else:
            continue
        if any(isinstance(leaf, ast.Attribute) and root(leaf) in foreign for leaf in assigned):
            yield node.lineno
    yield from (n.lineno for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.module == "unittest.mock")


@pytest.mark.parametrize(("path", "module"), SOURCES)
def test_imports_run_downwards(path, module):
    assert _unit(module) in {*ALLOWED, "nemo_xtoken"}, f"{path}: say in ALLOWED what it may import"
    assert list(upward_imports(path.read_text(), module)) == []


@pytest.mark.parametrize(("path", "module"), SOURCES)
def test_lower_packages_are_free_of_frameworks(path, module):
    assert list(framework_imports(path.read_text(), module)) == []


@pytest.mark.parametrize(("path", "module"), SOURCES)
def test_only_the_cpu_runtime_patches_other_packages(path, module):
    if str(path.relative_to(ROOT)) not in MAY_PATCH:
        assert list(patches(path.read_text())) == []


def test_the_checks_can_fail():
    losses = ("nemo_xtoken", "losses", "p_kl")
    assert list(upward_imports("def f():\n    from nemo_xtoken.plugin import x", losses)) == ["nemo_xtoken.plugin.x"]
    assert list(upward_imports("from nemo_xtoken import teachers", losses)) == ["nemo_xtoken.teachers"]
    assert list(upward_imports("from ..plugin import x", losses)) == ["nemo_xtoken.plugin.x"]
    assert list(upward_imports("from . import tiles\nfrom nemo_xtoken.parallel import head", losses)) == []
    assert list(upward_imports("from nemo_xtoken import errors", ("nemo_xtoken", "__init__"))) != []
    assert list(framework_imports("import megatron.core as m", losses)) == ["megatron.core"]
    assert list(framework_imports("import megatron.core", ("nemo_xtoken", "plugin", "x"))) == []
    for source in (
        "import torch\ntorch.nn.Linear = None",
        "from megatron import core\ncore.x, y = 1, 2",
        "import torch\nsetattr(torch, 'x', 1)",
        "import torch as t\ndel t.x",
    ):
        assert list(patches(source)), source
    for source in ("import os\nos.environ['A'] = 'b'", "import torch\nx = torch.nn.Linear(1, 1)\nx.bias = None"):
        assert not list(patches(source)), source


@pytest.mark.parametrize(
    "name", ["nemo_xtoken", "nemo_xtoken.errors", "nemo_xtoken.recipes", "nemo_xtoken.commands.cli"]
)
def test_importing_is_cheap(name):
    program = f"import sys, {name}; print(sorted({{'torch', 'numpy', 'rich', *{FRAMEWORKS!r}}} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert run.stdout.strip() == "[]"

"""The rules of the house that a look at the source can check; those on imports are contracts in pyproject.toml.

mypy, also a part of ``make lint``, holds the types.
"""

import ast
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")

ROOT = Path(__file__).parents[2]
SOURCES = {
    path.relative_to(ROOT).as_posix(): path.read_text("utf-8")
    for folder in ("nemo_xtoken", "recipes", "conf")
    for path in sorted((ROOT / folder).rglob("*.py"))
}
HEAVY = ("torch", "numpy", "rich", "nemo", "megatron", "lightning", "nemo_run", "modelopt")

MOST_LINES, MOST_FILES = 400, 12
#: Folders of many files of one kind, and how many: they do not grow without a thought.
LARGE = {
    "nemo_xtoken/commands/verbs": 21,
    "nemo_xtoken/data": 21,
    "nemo_xtoken/losses": 28,
    "nemo_xtoken/plugin/bridge": 14,
    "nemo_xtoken/plugin/nemo2": 19,
    "nemo_xtoken/projection": 13,
    "nemo_xtoken/run": 13,
    "nemo_xtoken/training": 14,
    "recipes": 15,
}
#: What changes something of another package's, beside the CPU runtime, and puts it back.
MAY_PATCH = {
    "nemo_xtoken/data/workers.py": "spawned workers would import the main script again",
    "nemo_xtoken/teachers/ahead/own_workspace.py": "Transformer Engine has one buffer for products of all streams",
    "nemo_xtoken/teachers/groups.py": "Megatron keeps one layout at a time in a module; a teacher has its own",
}
#: Caches that save time: without them everything is as it was, and slower.
MAY_CACHE = {
    "nemo_xtoken/data/dataset.py": "files that are open",
    "nemo_xtoken/data/indexed.py": "files that are open",
    "nemo_xtoken/data/jinja_environment.py": "an environment, which takes a moment to make",
    "nemo_xtoken/files.py": "folders that were tidied",
    "nemo_xtoken/evaluate/benchmark_columns.py": "names in the harness's files",
    "nemo_xtoken/report/pictures.py": "fonts",
    "nemo_xtoken/run/arguments/python_source.py": "parsed source",
    "nemo_xtoken/run/arguments/signatures.py": "signatures in it",
}


def _folder(name):
    return name.rpartition("/")[0]


def _stem(name):
    return name.rpartition("/")[2].removesuffix(".py")


# --- imports


def test_imports_keep_the_contracts(tmp_path):
    """On the package as it is installed, with recipes and conf inside; ``make lint`` sees it without them."""
    package = tmp_path / "nemo_xtoken"
    package.mkdir()
    for part in [*(ROOT / "nemo_xtoken").iterdir(), ROOT / "recipes", ROOT / "conf"]:
        (package / part.name).symlink_to(part)
    (tmp_path / "pyproject.toml").symlink_to(ROOT / "pyproject.toml")  # which not every version takes as an argument
    command = [Path(sys.executable).with_name("lint-imports"), "--no-logo", "--no-cache"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout
    assert " 0 broken" in done.stdout


@pytest.mark.parametrize(
    "name", ["nemo_xtoken", "nemo_xtoken.errors", "nemo_xtoken.recipes", "nemo_xtoken.commands.cli"]
)
def test_importing_is_cheap(name):
    program = f"import sys, {name}; print(sorted(set({HEAVY!r}) & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert run.stdout.strip() == "[]"


# --- types

#: Adapters of NeMo's classes, which have no types that mypy could hold them to.
WITHOUT_TYPES = ("nemo_xtoken.plugin.nemo2",)


def _module(name):
    return name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def test_mypy_checks_every_file():
    """What its lists leave out it does not check, also where a checked file imports it."""
    checked = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["mypy"]
    packages = tuple(f"{package}." for package in (*checked["packages"], *WITHOUT_TYPES))
    modules = {_module(name): bool(ast.parse(source).body[1:]) for name, source in SOURCES.items()}
    left_out = [name for name, code in modules.items() if code and not f"{name}.".startswith(packages)]
    assert sorted({*left_out} - {*checked["modules"]}) == []
    assert sorted({*checked["modules"]} - {*modules}) == []


# --- files and folders


def test_a_stem_names_one_file():
    """A verb may be called as the file that does its work."""
    by_stem = defaultdict(list)
    for name in SOURCES:
        if _stem(name) not in ("__init__", "__main__") and not name.startswith("nemo_xtoken/commands/verbs/"):
            by_stem[_stem(name)].append(name)
    assert {stem: names for stem, names in by_stem.items() if len(names) > 1} == {}


def test_files_are_short():
    assert {name: n for name, text in SOURCES.items() if (n := len(text.splitlines())) > MOST_LINES} == {}


def test_folders_are_small():
    count = defaultdict(int)
    for name in SOURCES:
        count[_folder(name)] += _stem(name) not in ("__init__", "__main__")
    assert {folder: n for folder, n in count.items() if n > LARGE.get(folder, MOST_FILES)} == {}


# --- state


def _root(node):
    while isinstance(node, ast.Attribute):
        node = node.value
    return node.id if isinstance(node, ast.Name) else None


def _leaves(target):
    parts = target.elts if isinstance(target, (ast.Tuple, ast.List)) else []
    return [leaf for part in parts for leaf in _leaves(part)] if parts else [target]


def _foreign(tree):
    """Names of what is imported from elsewhere, or taken out of ``sys.modules``."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {(a.asname or a.name).split(".")[0] for a in node.names if not a.name.startswith("nemo_xtoken")}
        elif isinstance(node, ast.ImportFrom) and not node.level and not (node.module or "").startswith("nemo_xtoken"):
            names |= {a.asname or a.name for a in node.names}
        elif isinstance(node, ast.Assign) and ast.unparse(node.value).startswith("sys.modules["):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return names


def patches(source):
    """Lines that change something imported from elsewhere: ``torch.x = y``, ``setattr(torch, ..)``, ``vars(torch)``."""
    tree = ast.parse(source)
    foreign = _foreign(tree)
    for node in ast.walk(tree):
        if isinstance(node, (ast.Assign, ast.Delete)):
            changed = [leaf for target in node.targets for leaf in _leaves(target)]
        elif isinstance(node, (ast.AugAssign, ast.AnnAssign)):
            changed = [node.target]
        else:
            changed = []
        if any(isinstance(leaf, ast.Attribute) and _root(leaf) in foreign for leaf in changed):
            yield node.lineno
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("setattr", "delattr"):
            yield from [node.lineno] * (_root(node.args[0]) in foreign)
        if isinstance(node, ast.Attribute) and node.attr in ("update", "pop", "setdefault", "clear"):
            inner = node.value
            if isinstance(inner, ast.Call) and getattr(inner.func, "id", "") == "vars" and inner.args:
                yield from [node.lineno] * (_root(inner.args[0]) in foreign)
            elif isinstance(inner, ast.Attribute) and inner.attr == "__dict__":
                yield from [node.lineno] * (_root(inner) in foreign)
        if isinstance(node, ast.ImportFrom) and node.module == "unittest.mock":
            yield node.lineno


def imported(source, *modules):
    """Lines that import any of the modules, or from them."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (node.lineno for alias in node.names if alias.name in modules)
        elif isinstance(node, ast.ImportFrom) and node.module in modules:
            yield node.lineno


def caches(source):
    """Lines with a function that remembers its results for as long as the process lives."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef):
            for decorator in node.decorator_list:
                text = ast.unparse(decorator)
                if text.partition("(")[0].rpartition(".")[2] in ("cache", "lru_cache"):
                    yield decorator.lineno


def _found(check, allowed):
    return {name: lines for name, text in SOURCES.items() if name not in allowed and (lines := list(check(text)))}


def test_nothing_but_the_cpu_runtime_patches_other_packages():
    allowed = {*MAY_PATCH, *(name for name in SOURCES if name.startswith("nemo_xtoken/training/cpu/"))}
    assert _found(patches, allowed) == {}


def test_file_locks_are_made_in_one_file():
    """Which refuses links: filelock's own would empty what they lead to."""
    makers = [name for name, source in SOURCES.items() if "import FileLock" in source]
    assert makers == ["nemo_xtoken/sharing/file_lock.py"]


def test_one_file_handles_the_end_of_a_job():
    """Other code takes a context from it: a second copy would be changed alone."""
    handlers = [name for name, source in SOURCES.items() if "signal.signal(signal.SIGTERM" in source]
    assert handlers == ["nemo_xtoken/launch/unfinished.py"]


def test_no_context_variables():
    assert _found(lambda source: imported(source, "contextvars"), ()) == {}


def test_no_module_variables_that_functions_set():
    def sets(source):
        return [node.lineno for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Global)]

    in_a_pool = "nemo_xtoken/data/workers.py"  # what a worker process was started with
    assert _found(sets, {in_a_pool, *(name for name in SOURCES if name.startswith("nemo_xtoken/training/cpu/"))}) == {}


def test_caches_are_known():
    assert _found(caches, MAY_CACHE) == {}


@pytest.mark.parametrize(
    "source",
    [
        "import torch\ntorch.nn.Linear = None",
        "from megatron import core\ncore.x, y = 1, 2",
        "import torch\nsetattr(torch, 'x', 1)",
        "import torch as t\ndel t.x",
        "import torch\nvars(torch).update(x=1)",
        "import torch\ntorch.nn.__dict__.update(x=1)",
        "import sys\nmain = sys.modules['__main__']\nmain.x = 1",
        "from unittest.mock import patch",
    ],
)
def test_patches_are_found(source):
    assert list(patches(source))


@pytest.mark.parametrize(
    "source",
    [
        "import os\nos.environ['A'] = 'b'",
        "import torch\nx = torch.nn.Linear(1, 1)\nx.bias = None",
        "vars(x).update(a=1)",
    ],
)
def test_what_is_no_patch_is_not_found(source):
    assert not list(patches(source))


def test_caches_are_found():
    assert list(caches("import functools\n@functools.lru_cache(maxsize=4)\ndef f(): pass")) == [2]
    assert list(caches("from functools import cache\n@cache\ndef f(): pass")) == [2]
    assert list(imported("from contextvars import ContextVar", "contextvars")) == [1]

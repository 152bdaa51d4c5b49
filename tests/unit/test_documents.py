"""README and docs name files, modules, commands, arguments, recipes and headings that exist; their code is valid."""

import ast
import builtins
import random
import re
import runpy
import subprocess
from functools import cache

import pytest
import yaml
from pages import CODE, DOCUMENTS, ROOT, TEXTS

import nemo_xtoken
from nemo_xtoken.commands.verbs import all_verbs

#: Settings that decide which pieces of documents are read.
READ = ("student_length", "teacher_length", "held_out", "seed", "pack")


def _exists(found):
    """Whether a path of this repository exists; documents may leave the package's own name out."""
    return any((base / found).exists() for base in (ROOT, ROOT / "nemo_xtoken"))


def test_files():
    named = [(name, path) for name, line in CODE for path in re.findall(r"(?<![\w/.-])(?:[\w-]+/)+[\w-]+\.py\b", line)]
    assert len(named) > 40
    assert not [(name, path) for name, path in named if not _exists(path)]


def test_folders_of_the_package():
    """As ``kernels/`` and ``plugin/bridge/``; a run's own folders are called by other names."""
    named = [(name, line) for name, line in CODE if re.fullmatch(r"(?:[a-z_0-9]+/)+", line)]
    assert not [(name, path) for name, path in named if not _exists(path) and path != "results/"]


def test_links():
    problems = []
    for path, text in TEXTS.items():
        for target in re.findall(r"\]\(([^)\s]+)\)", text):
            if not target.startswith("http"):
                file, _, anchor = target.partition("#")
                found = path.parent / file if file else path
                if not found.exists() or (anchor and anchor not in _anchors(found)):
                    problems.append((path.name, target))
    assert not problems


def _anchors(file):
    headings = re.findall(r"^#+ (.*)$", file.read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_drawing_of_the_rooms_is_that_of_the_code():
    house = runpy.run_path(str(ROOT / "docs" / "house.py"))
    assert house["PICTURE"].read_text() == house["draw"](house["imports"]()), "run `python docs/house.py`"


def test_the_drawing_does_not_depend_on_the_order_of_sets():
    """Sets of names have another order in each process."""
    house = runpy.run_path(str(ROOT / "docs" / "house.py"))
    graph, chance = house["imports"](), random.Random(0)
    orders = [
        house["floors"]({room: chance.sample(sorted(graph[room]), len(graph[room])) for room in graph})
        for _ in range(200)
    ]
    assert all(order == orders[0] for order in orders)


def test_the_version_of_today_is_not_spoken_of_as_a_past_one():
    """In documents and messages: `before X was added` stays true when the number does not change."""
    of_today = re.escape(nemo_xtoken.__version__)
    past = "had|was|were|did|wrote|called|chose|could|made|kept"
    spoken = re.compile(rf"(?:version|by|before|of|since|until) {of_today}\b|\b{of_today}(?:'s)? (?:{past})\b", re.I)
    sources = [file for folder in ("nemo_xtoken", "recipes", "benchmarks") for file in (ROOT / folder).rglob("*.py")]
    texts = {path: re.sub(r"[\s\"#]+", " ", path.read_text()) for path in [*DOCUMENTS, *sources]}
    assert [(path.name, found[0]) for path, text in texts.items() if (found := spoken.search(text))] == []


def test_commits():
    """Those that are named are in the repository, where it is there and whole."""
    named = {found for text in TEXTS.values() for found in re.findall(r"\bcommit `?([0-9a-f]{7,40})\b", text)}
    assert named

    def git(*words):
        return subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True)

    if not (ROOT / ".git").exists() or git("rev-parse", "--is-shallow-repository").stdout != "false\n":
        pytest.skip("no whole repository")
    assert [commit for commit in named if git("cat-file", "-e", f"{commit}^{{commit}}").returncode] == []


def test_the_demo_takes_as_long_everywhere():
    """The first time, on two cores: in the README, in the table of recipes and in the recipe."""
    places = {
        "README.md": r"demo takes about (\d+)\s+minutes the first time",
        "docs/recipes.md": r"^\| `xtoken_tiny` \|.*\| (\d+) minutes \|",
        "recipes/xtoken_tiny.py": r"(\d+) minutes the first time",
    }
    minutes = {path: re.search(words, (ROOT / path).read_text(), re.M)[1] for path, words in places.items()}
    assert len(set(minutes.values())) == 1, minutes


def test_verbs_and_their_arguments():
    verbs, problems, seen = all_verbs(), [], 0
    for name, line in CODE:
        for verb, rest in re.findall(r"(?:^|[;&|(>] *|nemo |\) )xtoken ([a-z][\w-]*)([^|;&`#]*)", line):
            seen += 1
            given = re.findall(r"(?<=\s)(?:--)?([a-z_]+)=", re.sub(r"'[^']*'|\"[^\"]*\"", "", rest))
            known = {option.name for option in verbs[verb].options} if verb in verbs else set()
            if verb not in verbs or not (verbs[verb].rest or known.issuperset(given)):
                problems.append((name, line))
    assert seen > 40
    assert not problems


def test_recipes_and_make_targets():
    recipes = {path.stem for path in ROOT.glob("**/recipes/*.py") if ".venv" not in path.parts} | {"NAME"}
    targets = set(re.findall(r"^([a-z][\w-]*):", (ROOT / "Makefile").read_text(), re.M))
    named = [(name, r) for name, line in CODE for r in re.findall(r"(?:--recipe |recipe=)[\"']?(\w+)", line)]
    made = [(name, t) for name, line in CODE for t in re.findall(r"^make ([a-z][\w-]*)", line)]
    assert named
    assert made
    assert not [item for item in named if item[1] not in recipes]
    assert not [item for item in made if item[1] not in targets]


CACHES = [(name, line.split()) for name, line in CODE if line.startswith("xtoken cache ") and "paths=" in line]


@pytest.mark.parametrize(("name", "words"), CACHES, ids=[f"{name}-{i}" for i, (name, _) in enumerate(CACHES)])
def test_what_a_page_caches_is_what_the_run_behind_it_reads(name, words):
    """Pieces of other lengths are others, which the run would find out after all have been written."""
    given = dict(word.partition("=")[::2] for word in words)
    runs = [line.split() for of, line in CODE if of == name and line.startswith("nemo llm distill --recipe ")]
    run = next(run for run in runs if "teacher.source=cached" in run)
    text = yaml.safe_load((ROOT / "conf" / f"{run[4]}.yaml").read_text())["data"]["text"]
    text |= {k.removeprefix("data.text."): yaml.safe_load(v) for k, _, v in (w.partition("=") for w in run[5:])}
    cached = {setting: given.get(setting) or given.get(f"data.{setting}") for setting in READ}
    assert {setting: yaml.safe_load(value) for setting, value in cached.items() if value is not None} == {
        setting: text.get(setting) for setting, value in cached.items() if value is not None
    }
    assert cached["student_length"]
    assert cached["teacher_length"]


def test_modules():
    named = [(name, p) for name, line in CODE for p in re.findall(r"\bnemo_xtoken(?!\.sqsh)(?:\.\w+)+", line)]
    assert named
    assert not [(name, path) for name, path in named if not _resolves(path)]


def _module(path):
    """The source file of a module, or None."""
    parts = path.split(".")
    if parts[:2] in (["nemo_xtoken", "recipes"], ["nemo_xtoken", "conf"]):  # where these are installed
        parts = parts[1:]
    base = ROOT.joinpath(*parts)
    return next((file for file in (base.with_suffix(".py"), base / "__init__.py") if file.is_file()), None)


@cache
def _defined(file):
    """Name -> definition of what a module has; None for what it imports, lazily as well, or assigns."""
    tree, found = ast.parse(file.read_text()), {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom | ast.Import):
            found |= {(alias.asname or alias.name): None for alias in node.names}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.setdefault(node.value, None)  # in `__all__`, or in a table of lazy exports
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.setdefault(node.id, None)
    return found | {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}


def _resolves(path):
    """Whether a dotted path is a module, or a name in one."""
    module, _, last = path.rpartition(".")
    return bool(_module(path)) or (bool(_module(module)) and last in _defined(_module(module)))


PYTHON = [
    (path.name, block)
    for path, text in TEXTS.items()
    for block in re.findall(r"^```python\n(.*?)^```", text, re.M | re.S)
]


@pytest.mark.parametrize(("name", "block"), PYTHON, ids=[f"{name}-{i}" for i, (name, _) in enumerate(PYTHON)])
def test_python_is_complete(name, block):
    """It compiles, every name is bound, what it imports of ours exists and takes the arguments that it is given."""
    nodes = list(ast.walk(ast.parse(block)))
    bound = {alias.asname or alias.name.split(".")[0] for n in nodes for alias in getattr(n, "names", [])}
    bound |= {n.id for n in nodes if isinstance(n, ast.Name) and not isinstance(n.ctx, ast.Load)}
    bound |= {n.name for n in nodes if isinstance(n, ast.FunctionDef | ast.ClassDef | ast.ExceptHandler) and n.name}
    bound |= {n.arg for n in nodes if isinstance(n, ast.arg)}
    used = {n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}
    assert used <= bound | set(dir(builtins))
    ours = {}
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and node.module.startswith("nemo_xtoken"):
            for alias in node.names:
                assert _resolves(f"{node.module}.{alias.name}"), (node.module, alias.name)
                if _module(node.module):
                    ours[alias.asname or alias.name] = _defined(_module(node.module)).get(alias.name)
    for call in (n for n in nodes if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)):
        if (names := _parameters(ours.get(call.func.id))) is not None:
            assert len(call.args) <= len(names), ast.unparse(call)
            assert {keyword.arg for keyword in call.keywords} <= set(names), ast.unparse(call)


def _parameters(node):
    """The parameters of a function or dataclass; None where they are not known."""
    if isinstance(node, ast.FunctionDef):
        return [a.arg for a in [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]]
    if isinstance(node, ast.ClassDef) and not node.bases:
        return [n.target.id for n in node.body if isinstance(n, ast.AnnAssign)]
    return None


def test_the_page_on_plain_torch_has_the_script_that_runs():
    script = (ROOT / "docs" / "transformers_trainer.py").read_text()
    assert script[script.index("import sys") :] in TEXTS[ROOT / "docs" / "plain_torch.md"]


#: What a user of NeMo 2 looks for under Megatron-Bridge.
OF_BRIDGE = {
    "tensor parallelism, with sequence", "pipeline parallelism", "context parallelism", "data parallelism",
    "expert parallelism", "virtual pipeline", "packed documents", "several teachers",
    "a teacher in a layout of its own", "learned W", "held-out evaluation", "`evaluate.*` during a run", "exact resume",
    "`xtoken export`", "`xtoken_swap`", "`xtoken preflight`", "`xtoken sbatch`",
}  # fmt: skip


def test_what_bridge_has_is_shown_by_tests_that_there_are():
    text = TEXTS[ROOT / "docs/bridge.md"].partition("## What is there, and which test shows it")[2].partition("##")[0]
    rows = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in text.splitlines() if "::" in line]
    assert {row[0] for row in rows} >= OF_BRIDGE
    for _, _, test in rows:
        file, name, case = re.fullmatch(r"`([\w.]+)::(\w+)(?:\[(.+)\])?`", test).groups()
        source = (ROOT / "tests/stack/bridge" / file).read_text()
        assert f"def {name}(" in source, test
        assert case is None or f'"{case}"' in source, test

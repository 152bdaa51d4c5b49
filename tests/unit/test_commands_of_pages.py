"""Commands in README and docs: options, settings, variables and extras are there, and runs take their overrides."""

import re
import shlex
from functools import cache

import pytest
from pages import CODE, ROOT, TEXTS

from nemo_xtoken.commands.run_settings import find_recipe, read_settings
from nemo_xtoken.commands.verbs import all_verbs
from nemo_xtoken.errors import InputError
from nemo_xtoken.launch.slurm_config import PREFIX, SlurmConfig
from nemo_xtoken.launch.teacher_steps import split_words
from nemo_xtoken.run.arguments.names import argument_at

#: Of whose recipes settings are named by themselves: all of them together have every part of a run.
RECIPES = ("xtoken_qwen3_llama1b", "xtoken")
PARTS = "data|trainer|teacher|teachers|objective|optim|log|model|samples|stop|lora|evaluate|executor|resume"
SETTING = re.compile(rf"(?<![\w./-])((?:{PARTS})(?:\.\w+)+)(?=[=`\s,;)]|$)")
#: A file of a run, and the page's own example of a wrong name.
NO_SETTINGS = {"samples.md", "teachers.json", "trainer.max_stepz"}
DISTILL = r"(?:nemo llm distill|xtoken preflight|xtoken sbatch)\b(.*)"


def _words(line):
    """As a shell splits it; none where the line is part of a longer text."""
    try:
        return shlex.split(line, comments=True)
    except ValueError:
        return []


def _runs():
    """(page, recipe, overrides) of every run whose recipe is named."""
    verbs = all_verbs()
    own = {option.name for name in ("preflight", "sbatch") for option in verbs[name].options}
    for page, line in CODE:
        for rest in re.findall(DISTILL, line):
            words = _words(rest)
            named = [word for before, word in zip(["", *words], words, strict=False) if before == "--recipe"]
            named += [word.removeprefix("recipe=") for word in words if word.startswith("recipe=")]
            _, _, given = split_words([word for word in words if "=" in word and not word.startswith("-")])
            given = [word for word in given if word not in named and not word.startswith(PREFIX)]
            if named and not named[0].startswith("NAME"):
                yield page, named[0], [word for word in given if word.partition("=")[0] not in own]


RUNS = list(_runs())


def test_there_are_runs():
    assert len(RUNS) > 25
    assert len({recipe for _, recipe, _ in RUNS}) > 4
    assert sum(len(words) for _, _, words in RUNS) > 50


@pytest.mark.parametrize(("page", "recipe", "words"), RUNS, ids=[f"{page}-{i}" for i, (page, *_) in enumerate(RUNS)])
def test_a_run_takes_what_a_page_gives_it(page, recipe, words):
    read_settings(find_recipe(recipe), None, words, None, page == "bridge.md")


@cache
def _contents(bridge):
    """Of runs on NeMo 2, and of those on Megatron-Bridge where the page compares both."""
    frameworks = (False, True) if bridge else (False,)
    return [read_settings(find_recipe(name), None, (), None, b).content for name in RECIPES for b in frameworks]


def _problem(page, name):
    """Why there is no such setting; "" where there is."""
    first, *rest = name.split(".")
    if f"{first}." == PREFIX:
        key = rest[1] if rest[0] == "teacher" else rest[0]
        return "" if key in SlurmConfig.__dataclass_fields__ else f"no key {key}"
    problem = ""
    for content in _contents(page == "bridge.md"):
        try:
            argument_at(content, name, name)
        except InputError as error:
            problem = problem or str(error)
        else:
            return ""
    return problem


def test_settings_that_are_named_exist():
    """In commands and in sentences; a name in capitals stands for any."""
    named = {
        (page, name)
        for page, line in CODE
        if not line.startswith(("xtoken cache", "xtoken prepare"))  # `data.NAME` are arguments of theirs
        for name in SETTING.findall(line)
        if not re.search(r"\b[A-Z]+\b", name) and name not in NO_SETTINGS
    }
    named -= {(page, "teacher.nodes") for page, _ in named}  # of a job: it is no setting of the run
    assert len(named) > 100
    assert {item: problem for item in sorted(named) if (problem := _problem(*item))} == {}


def test_a_setting_that_does_not_exist_would_be_found():
    assert _problem("README.md", "trainer.max_stepz")
    assert _problem("README.md", "executor.account_name")
    assert SETTING.findall("a `trainer.max_stepz=1` and trainer.x.y")


def test_flags():
    """``--json`` and the like, of the package's own commands."""
    verbs, seen, problems = all_verbs(), 0, []
    distill = (ROOT / "nemo_xtoken/commands/run_context.py").read_text()
    of_nemo_run = {"--dryrun", "--yaml", "--yes", "--verbose", "--list-recipes", "--recipe", "--executor"}
    for page, line in CODE:
        for verb, rest in re.findall(r"(?:^|[;&|(>] *|nemo |\) )xtoken ([a-z][\w-]*)([^|;&`#]*)", line):
            known = {option.name for option in verbs[verb].options} | {"help"}
            for flag in re.findall(r"(?<=\s)--([\w-]+)", re.sub(r"'[^']*'|\"[^\"]*\"", "", rest)):
                seen += 1
                problems += [(page, line)] * (flag.replace("-", "_") not in known)
        for rest in re.findall(r"nemo llm distill\b([^`#]*)", line):
            for flag in re.findall(r"(?<=\s)--[\w-]+", re.sub(r"'[^']*'|\"[^\"]*\"", "", rest)):
                seen += 1
                problems += [(page, line)] * (flag not in of_nemo_run and f'"{flag}"' not in distill)
    assert seen > 40
    assert problems == []


SCRIPTS = [
    (page, line, path, re.findall(r"(?<=\s)(--[\w-]+)", rest.partition(" -- ")[0]))
    for page, line in CODE
    for path, rest in re.findall(r"\bpython (?:-m )?((?:benchmarks|docs|tests)[\w./]*)([^`#]*)", line)
]


def test_scripts_have_the_options_that_pages_give_them():
    problems = []
    for page, line, path, options in SCRIPTS:
        file = ROOT / path if path.endswith(".py") else ROOT / path.replace(".", "/")
        sources = [file] if file.is_file() else [*file.rglob("*.py"), *[file.with_suffix(".py")] * (not file.is_dir())]
        text = "".join(source.read_text() for source in [*sources, ROOT / "benchmarks" / "bench.py"])
        problems += [(page, line, option) for option in options if f'"{option}"' not in text]
    assert sum(len(options) for *_, options in SCRIPTS) > 20
    assert problems == []


def test_variables_are_read_somewhere():
    named = {name for text in TEXTS.values() for name in re.findall(r"NEMO_XTOKEN_[A-Z_]+", text)}
    sources = [path for folder in ("nemo_xtoken", "tests") for path in (ROOT / folder).rglob("*.py")]
    read = {name for path in sources for name in re.findall(r"NEMO_XTOKEN_[A-Z_]+", path.read_text())}
    makefile = (ROOT / "Makefile").read_text()
    made = {name for _, line in CODE for name in re.findall(r"\b([A-Z_]+)=\S+ make\b|make [\w-]+ ([A-Z_]+)=", line)}
    assert len(named) > 4
    assert len(made) > 1
    assert named - read == set()
    assert {name for pair in made for name in pair if name and f"\n{name} ?=" not in makefile} <= {"PYTHON"}


def test_the_package_is_installed_from_its_source():
    """No index has it: an extra is one of the clone's."""
    extras = set(re.findall(r"^(\w+) = \[", (ROOT / "pyproject.toml").read_text(), re.M))
    named = [
        (page, *found) for page, line in CODE for found in re.findall(r"pip install .*?'([\w.]*)\[([\w,]+)\]'", line)
    ]
    assert named
    assert [item for item in named if item[1] != "." or item[2] not in extras] == []


def test_a_module_of_ones_own_has_a_place_where_python_finds_it():
    """`nemo` and `xtoken` do not look into the folder that they are started in."""
    for path, text in TEXTS.items():
        for block in re.findall(r"(?:^ {4}.*\n)+", text, re.M):
            if re.search(r"=(?!nemo_xtoken)[a-z_]+(?:\.\w+)*:[A-Z]\w+", block):
                assert "export PYTHONPATH=" in text[: text.index(block) + len(block)], (path.name, block)


def test_figures_for_people_have_no_exponents():
    """What preflight prints: `rounded` writes 313,000 where `.3g` would write 3.13e+05."""
    from nemo_xtoken.preflight.findings import rounded

    sources = (ROOT / "nemo_xtoken" / "preflight").rglob("*.py")
    assert [
        path.name for path in sources if re.search(r":,?\.\d?[ge]\}", path.read_text()) and path.stem != "findings"
    ] == []
    shown = {0.834: "0.83", 8.4e2: "840", 3.127e5: "310,000", 9.9996e8: "1 billion", 9.44e10: "94 billion", 0: "0"}
    assert {value: rounded(value, 2) for value in shown} == shown
    assert [rounded(value) for value in (2.62e8, 0.05, 1234, 12.34, 7e13)] == [
        "262 million",
        "0.05",
        "1,230",
        "12.3",
        "70 trillion",
    ]

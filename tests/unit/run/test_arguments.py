"""Names and kinds of a run's arguments, read from source that is not imported."""

from pathlib import Path

import pytest

from nemo_xtoken.errors import InputError
from nemo_xtoken.run.arguments.names import argument_at, check_content
from nemo_xtoken.run.arguments.short_names import in_full
from nemo_xtoken.run.arguments.signatures import NO_DEFAULT, class_defaults, signature
from nemo_xtoken.run.records import check_run_name
from nemo_xtoken.run.settings import Settings
from nemo_xtoken.run.teaching import teaching
from nemo_xtoken.run.values import made, value_checks
from nemo_xtoken.run.yaml_file import read_yaml

FILES = {
    "far/__init__.py": "from far.inner import *\nfrom .given import Given as Renamed\nfar = 3\n",
    "far/inner.py": """
import typing as t
from dataclasses import dataclass, field
from typing import ClassVar, Literal, Optional, Union

try:
    from nowhere import Base
except ImportError:
    class Base:
        def __init__(self, above: int = 1):
            pass

Choice = Literal["a", "b"]
SIZE = 7

@dataclass
class Sizes:
    shared: ClassVar[int] = 1
    width: int = SIZE
    choice: Choice = "a"
    names: list[str] = field(default_factory=list)
    made: int = field(default=3, init=False)
    scale: Union[float, str] = 1.0
    by_name: Optional[dict[str, "Sizes"]] = None

@dataclass
class Wider(Sizes):
    width: int = 9
    depth: t.Optional[int] = None

class Passes(Base):
    def __init__(self, own: "Optional[Wider]" = None, *, flag: bool = False, **kwargs):
        super().__init__(**kwargs)

class Open:
    def __init__(self, **kwargs):
        pass

def run(sizes: Wider, passes: Passes, open: Open = None, rate: float = 0.5, path: str | None = None): ...
""",
    "far/given.py": "from .inner import Wider\nclass Given(Wider):\n    pass\n",
}


@pytest.fixture(autouse=True)
def far(tmp_path, monkeypatch):
    """A package that cannot be imported: its source alone is looked at."""
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text + "\nraise ImportError('it was imported')\n")
    monkeypatch.syspath_prepend(tmp_path)
    from nemo_xtoken.run.arguments import python_source, signatures

    python_source.read_module.cache_clear()
    signatures.signature.cache_clear()


def test_dataclasses_and_their_bases():
    assert class_defaults("far.Wider") == {
        "_target_": "far.Wider", "width": 9, "choice": "a", "scale": 1.0, "by_name": None, "depth": None,
    }  # fmt: skip
    wider = signature("far.Renamed")
    assert (wider.target, wider.whole) == ("far.inner.Wider", True)
    assert list(wider.arguments) == ["width", "choice", "names", "scale", "by_name", "depth"]
    assert wider.arguments["names"].default is NO_DEFAULT
    kinds = {name: str(argument.kind) for name, argument in wider.arguments.items()}
    assert kinds == {
        "width": "a whole number", "choice": "one of a, b", "names": "a list (text each)",
        "scale": "a number or text", "by_name": "a dictionary or none", "depth": "a whole number or none",
    }  # fmt: skip
    assert wider.arguments["by_name"].kind.holds_by_name == "far.inner.Sizes"


def test_arguments_that_are_passed_on():
    passes = signature("far.inner.Passes")
    assert (sorted(passes.arguments), passes.whole) == (["above", "flag", "own"], True)
    assert passes.arguments["own"].kind.holds == "far.inner.Wider"
    assert not signature("far.inner.Open").whole
    assert signature("far.inner.absent") is None
    assert signature("absent.module.Class") is None


RUN = {"_target_": "far.inner.run", "sizes": {"_target_": "far.Wider"}, "passes": {"_target_": "far.inner.Passes"}}


def test_names_in_a_run():
    assert argument_at(RUN, "sizes.depth", "").name == "depth"
    assert argument_at(RUN, "sizes.by_name.one.width", "").name == "width"
    assert argument_at({**RUN, "open": {"_target_": "far.inner.Open"}}, "open.anything", "") is None
    for name, message in {
        "size.depth": "'size' in the run; did you mean 'sizes'?",
        "sizes.dept": "'dept' in sizes; did you mean 'depth'?",
        "passes.width": "'width' in passes; did you mean sizes.width?",
        "sizes.by_name.one.widht": "'widht' in sizes.by_name.one; did you mean 'width'?",
        "passes.own.width": "passes.own is not configured in this run",
    }.items():
        with pytest.raises(InputError) as error:
            argument_at(RUN, name, f"{name}=1")
        assert message in str(error.value)
        assert f"in: {name}=1" in str(error.value)


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("rate=2", 2.0), ("rate=1e-3", 1e-3), ("path=none", None), ("path='none'", "none"), ("path=3", "3"),
        ("sizes.names=a*.txt", ["a*.txt"]), ('sizes.names=["a", "b"]', ["a", "b"]), ("sizes.scale=2", 2.0),
        ("sizes.scale=auto", "auto"), ("sizes.choice=b", "b"), ("passes.flag=yes", True), ("sizes.depth=NULL", None),
    ],
)  # fmt: skip
def test_words_are_values_of_their_kind(word, value):
    settings = Settings({**RUN}, "here")
    settings.override(word)
    found = settings.get(word.partition("=")[0])
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(
    "word",
    ["rate=fast", "sizes.width=1.5", "sizes.width=none", "sizes.names=3", "sizes.choice=c", "passes.flag=2", "sizes=7"],
)
def test_words_of_another_kind(word):
    with pytest.raises(InputError, match=word.partition("=")[0]):
        Settings({**RUN}, "here").override(word)


def test_files_with_wrong_names_and_kinds():
    content = {**RUN, "rate": "fast", "sizes": {"_target_": "far.Wider", "dept": 3, "names": ["a"], "width": None}}
    found = [error.found.splitlines()[0] for error in check_content(content)]
    assert found == [
        "there is no argument 'dept' in sizes; did you mean 'depth'?", "sizes.width=None", "rate='fast'",
    ]  # fmt: skip


def test_which_teachers_teach():
    path = dict.get
    one, two = {"path": "a"}, {"path": None}
    assert teaching(one, {"x": two, "y": None}, lambda t: path(t, "path")) == {"teacher": one, "teachers.x": two}
    assert teaching(two, {"x": one}, lambda t: path(t, "path")) == {"teachers.x": one}
    assert teaching(two, {}, lambda t: path(t, "path")) == {"teacher": two}
    assert teaching(None, None, lambda t: path(t, "path")) == {}
    with pytest.raises(InputError, match="named 'teacher'"):
        teaching(None, {"teacher": one}, lambda t: path(t, "path"))


def test_parts_are_made_by_their_own_classes():
    config = made("nemo_xtoken.data.config.DataConfig", {"paths": ["${a}"], "sources": {}, "held_out": 3}, "data.text")
    assert (config.paths, config.held_out, config.student_length) == (["${a}"], 3.0, 4096)
    with pytest.raises(InputError, match=r"objective\.scale"):
        made("nemo_xtoken.objective.scale.ObjectiveConfig", {"scale": -1}, "objective")
    with pytest.raises(InputError, match=r"data\.text: .*lenght"):
        made("nemo_xtoken.data.config.DataConfig", {"lenght": 3}, "data.text")


def test_values_out_of_range():
    content = {
        "_target_": "x",
        "trainer": {"max_steps": 0, "devices": "many"},
        "optim": {"config": {"lr": float("nan")}},
    }
    content["teacher"] = {"path": "a", "weight": -1, "rule": {"beta": 0}}
    found = []
    for _, check in value_checks(Settings(content, "here")):
        try:
            check()
        except InputError as error:
            found.append(error.found)
    assert [text.partition("=")[0] for text in found] == [
        "trainer.max_steps", "optim.config.lr", "trainer.devices", "teacher.weight",
        "teacher.rule: a rule for W with beta",
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["..", ".", "", "...", " ", ". .", "a/b", "../x", "/x", "a\nb", "a\0b", "x ", 5, True])
def test_a_run_has_a_folder_of_its_own(name):
    with pytest.raises(InputError, match="a run named"):
        check_run_name(name)


@pytest.mark.parametrize(
    "name", [None, "xtoken_tiny", "a.b", ".hidden", "two words", "Schüler-1", "a=b", "step=3-last"]
)
def test_names_that_runs_may_have(name):
    check_run_name(name)


def test_a_name_is_judged_before_anything_is_written():
    settings = Settings({"_target_": "x", "log": {"name": ".."}}, "the command line")
    checks = [check for _, check in value_checks(settings)]
    with pytest.raises(InputError, match="a run named"):
        [check() for check in checks]


@pytest.mark.parametrize(
    ("word", "full"),
    [
        ("teacher=models/b", "teacher.path=models/b"),
        ("teachers.second=models/c", "teachers.second.path=models/c"),
        ("teacher=null", "teacher=null"),
        ("teacher.path=models/b", "teacher.path=models/b"),
        ("teachers.second.weight=0.5", "teachers.second.weight=0.5"),
        ("student=models/a", "student=models/a"),
        ("objective.scale=1", "objective.scale=1"),
        ("log=wandb", "track=wandb"),
        ("log.name=wandb", "log.name=wandb"),
        ("trainer.max_steps*=2", "trainer.max_steps*=2"),
    ],
)
def test_a_teacher_is_named_by_its_path(word, full):
    root = next(folder for folder in Path(__file__).parents if (folder / "pyproject.toml").is_file())
    assert in_full(read_yaml(root / "conf" / "xtoken.yaml"), word) == full

"""``xtoken settings``: every setting of a run, with a sentence on each; docs/settings.md is what it prints."""

from pathlib import Path

import pytest

from nemo_xtoken.commands.cli import main
from nemo_xtoken.commands.run_settings import find_recipe, read_settings
from nemo_xtoken.recipes import available_recipes
from nemo_xtoken.run.arguments.settings_list import sentences, settings_of
from nemo_xtoken.run.arguments.signatures import signature

ROOT = next(folder for folder in Path(__file__).parents if (folder / "pyproject.toml").is_file())
PAGE = ROOT / "docs" / "settings.md"


def listed(recipe="xtoken"):
    return settings_of(read_settings(find_recipe(recipe), None, (), None).content)


def test_the_page_is_what_the_code_says(capsys):
    assert main(["settings", "--markdown"]) == 0
    out = capsys.readouterr().out
    if signature("nemo.lightning.pytorch.trainer.Trainer") is None:
        pytest.skip("what NeMo's classes have is on the page, and NeMo is not installed")
    assert PAGE.read_text() == out, "run `xtoken settings --markdown > docs/settings.md`"


@pytest.mark.parametrize("recipe", [name for name, one in available_recipes().items() if one.yaml])
def test_each_has_a_sentence_and_all_of_ours_are_there(recipe):
    found = listed(recipe)
    assert [s.name for s in found if s.ours and not s.sentence] == []
    names = {s.name for s in found}
    assert len(names) == len(found)
    run = signature(read_settings(find_recipe(recipe), None, (), None).target)
    assert {name.partition(".")[0] for name in names} >= run.arguments.keys() - {
        "model",
        "log",
        "resume",
        "optim",
        "trainer",
    }
    for part, kind in (
        ("data.text", "nemo_xtoken.data.config.DataConfig"),
        ("objective", "nemo_xtoken.objective.scale.ObjectiveConfig"),
    ):
        inner = {name.removeprefix(f"{part}.").partition(".")[0] for name in names if name.startswith(f"{part}.")}
        assert inner == signature(kind).arguments.keys()


def test_values_are_the_recipes_else_the_defaults():
    by_name = {s.name: s for s in listed()}
    assert (by_name["data.text.held_out"].default, by_name["data.text.held_out"].recipe) == ("0.0", "0.01")
    assert by_name["teacher.chunks.temperature"].recipe is None
    assert by_name["teacher.loss"].recipe == "prefix_kl"
    assert by_name["data.text.pack"].kind == "true or false"


def test_a_word_alone(capsys):
    assert main(["settings", "held_out"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("data.text.held_out=0.01  (a number)\n    documents kept for validation")
    assert "objective" not in out
    assert max(map(len, out.splitlines())) <= 80
    assert main(["settings", "word=packed"]) == 2
    assert main(["settings", "attended"]) == 0  # of a sentence
    assert capsys.readouterr().out.startswith("data.text.pack=")


@pytest.mark.parametrize("name", ["data.micro_batch_size", "trainer.devices"])
def test_what_the_machine_chooses_has_no_default(name, capsys):
    assert main(["settings", name]) == 0
    assert f"{name}: chosen by the machine" in capsys.readouterr().out
    assert main(["settings", name, "recipe=xtoken_swap"]) == 0
    assert f"{name}=" in capsys.readouterr().out


def test_a_word_that_is_nowhere(capsys):
    assert main(["settings", "temprature"]) == 2
    assert "did you mean 'temperature'" in capsys.readouterr().err


def test_entries_of_docstrings(tmp_path, monkeypatch):
    (tmp_path / "described.py").write_text('''
class Base:
    """Base.

    Attributes:
        old: from above.
            Not this.
    """

class Described(Base):
    """It.

    Attributes:
        one, two: shared words, e.g. these.
            And more.
        three (int): of ``code``: a thing.

    Returns:
        four: nothing.
    """

class Megatrons:
    size: int = 3
    """How large. Not more."""
''')
    monkeypatch.syspath_prepend(tmp_path)
    assert sentences("described.Described") == {
        "old": "from above",
        "one": "shared words, e.g. these",
        "two": "shared words, e.g. these",
        "three": "of `code`: a thing",
    }
    assert sentences("described.Megatrons") == {"size": "How large"}

"""From what `--to-yaml` writes back to the configuration it came from."""

from dataclasses import dataclass, field
from typing import Optional

import fiddle as fdl
import nemo_run as run
import pytest
import torch
import yaml
from fake_recipe import Callback, Student, Teacher, Trainer, distill, fake_recipe
from nemo_run.cli.cli_parser import parse_cli_args
from nemo_run.cli.config import ConfigSerializer

from nemo_xtoken.commands.run_config import add_named, config_from_dict
from nemo_xtoken.errors import InputError


@dataclass(frozen=True)
class Rule:
    gamma: float = 0.1


@dataclass
class Named:
    path: Optional[str] = None
    rule: Rule = field(default_factory=Rule)


def several(  # nemo_run reads these annotations
    a: int = 1,
    by_name: Optional[dict[str, Named]] = None,
    plain: Optional[dict[str, int]] = None,
):
    return by_name, plain


def _round_trip(config, path):
    ConfigSerializer().dump(config, path)
    return config_from_dict(ConfigSerializer().load_dict(path), str(path))


@pytest.mark.parametrize("ending", ["yaml", "json", "toml"])
def test_round_trip_is_exact(tmp_path, ending):
    config = fake_recipe(layers=3)
    config.log = "a: b, {c} [1] 'quoted' \"doubly\" = ${d}"
    config.scale = 1e-5
    assert _round_trip(config, tmp_path / f"run.{ending}") == config


def test_round_trip_of_values_that_are_no_plain_data(tmp_path):
    config = run.Partial(
        distill,
        model=run.Config(Student, layers=torch.bfloat16),
        teacher=run.Partial(Teacher, layers=None),
        trainer=run.Config(Trainer, callbacks=[{"deep": [run.Config(Callback, every=1)]}, Student, distill]),
    )
    assert _round_trip(config, tmp_path / "run.yaml") == config


def test_equal_arguments_of_one_type_stay_two(tmp_path):
    two = run.Partial(distill, model=run.Config(Student, layers=2), teacher=run.Config(Student, layers=2))
    back = _round_trip(two, tmp_path / "two.yaml")
    back.model.layers = 9
    assert back.teacher.layers == 2


def test_an_alias_in_the_file_is_one_object():
    text = "_target_: fake_recipe.distill\nmodel: &m {_target_: fake_recipe.Student}\nteacher: *m\n"
    config = config_from_dict(yaml.safe_load(text), "run.yaml")
    assert config.model is config.teacher


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("_target_: fake_recipe.Absent", "'fake_recipe.Absent' of the run"),
        ("_target_: fake_recipe.distill\nmodel:\n  _target_: absent.Model", "'absent.Model' of model"),
        ("_target_: fake_recipe.distill\nmodel:\n  _target_: fake_recipe.Student\n  height: 1", "model in run.yaml"),
        ("_target_: distill", "'distill'"),
    ],
)
def test_what_does_not_fit_is_named(text, message):
    with pytest.raises(InputError) as error:
        config_from_dict(yaml.safe_load(text), "run.yaml")
    assert message in str(error.value)


@pytest.mark.parametrize(
    "config",
    [
        run.Partial(several),
        run.Partial(several, by_name={"first": run.Config(Named)}),
        run.Partial(several, by_name=run.Config(dict, first=run.Config(Named), third=run.Config(Named))),
    ],
    ids=["nothing", "a dictionary", "a configuration"],
)
def test_overrides_reach_what_is_held_by_name(config, tmp_path):
    words = ["by_name.first.path=/a", "by_name.second.rule.gamma=0.5", "by_name.third=None", "a=2"]
    add_named(config, words)
    parse_cli_args(config, words)
    config = _round_trip(config, tmp_path / "run.yaml")
    by_name, plain = fdl.build(config)()
    assert by_name == {"first": Named("/a"), "second": Named(rule=Rule(0.5)), "third": None}
    assert plain is None
    assert config.a == 2


@dataclass
class Inner:
    by_name: dict[str, Named] = field(default_factory=dict)


class Holder:
    def __init__(self, inner: Inner, size: int = 1) -> None:
        self.inner = inner


def outer(holder: Holder):
    return holder.inner


def test_overrides_reach_what_is_held_by_name_further_inside(tmp_path):
    config = run.Partial(outer, holder=run.Config(Holder, inner=run.Config(Inner)))
    words = ["holder.inner.by_name.first.path=/a", "holder.inner.by_name.second.rule.gamma=0.5", "holder.size=3"]
    add_named(config, words)
    parse_cli_args(config, words)
    config = _round_trip(config, tmp_path / "run.yaml")
    assert fdl.build(config)() == Inner({"first": Named("/a"), "second": Named(rule=Rule(0.5))})
    assert config.holder.size == 3


def test_without_such_overrides_nothing_is_added():
    config = run.Partial(several, a=3)
    add_named(config, ["a=2", "by_name=None"])
    assert config == run.Partial(several, a=3)

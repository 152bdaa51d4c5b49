"""The arguments that are read from source are those that Python has, for everything that the recipes are made of."""

import importlib
import inspect

import pytest
import yaml
from launcher import launch

from nemo_xtoken.recipes import available_recipes
from nemo_xtoken.run.arguments.signatures import NO_DEFAULT, signature

pytestmark = pytest.mark.usefixtures("nemo")


def _targets(content):
    if isinstance(content, dict):
        if "_target_" in content and content.get("_call_", True):
            yield content["_target_"]
        for value in content.values():
            yield from _targets(value)
    elif isinstance(content, list):
        for value in content:
            yield from _targets(value)


TARGETS = {
    target
    for recipe in available_recipes().values()
    if recipe.yaml is not None
    for target in _targets(yaml.safe_load(recipe.yaml.read_text()))
    if not target.startswith("builtins.")
}


def _of_python():
    """Named parameters, plain defaults, and whether there are others, by target."""
    found = {}
    for target in TARGETS:
        module, _, name = target.rpartition(".")
        parameters = inspect.signature(getattr(importlib.import_module(module), name)).parameters.values()
        named = {p.name: p.default for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}
        plain = {n: d for n, d in named.items() if isinstance(d, bool | int | float | str | None)}
        found[target] = list(named), plain, any(p.kind is p.VAR_KEYWORD for p in parameters)
    return found


def test_arguments(tmp_path):
    [real] = launch(_of_python, folder=tmp_path / "logs")
    assert len(real) > 20
    for target, (names, defaults, others) in real.items():
        taken = signature(target)
        assert taken is not None, target
        assert taken.whole, target
        if others:  # read further up, in the classes that get them
            assert set(names) < set(taken.arguments), target
        else:
            assert sorted(taken.arguments) == sorted(names), target
        for name, argument in taken.arguments.items():
            if argument.default is not NO_DEFAULT and name in defaults:
                assert argument.default == defaults[name], (target, name)

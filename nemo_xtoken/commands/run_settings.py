"""A run as a command line names it, recipe or file with overrides, as plain settings: for verbs that need no NeMo."""

import ast
import importlib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from nemo_xtoken.errors import InputError, nearest
from nemo_xtoken.run.arguments.kinds import ANYTHING, read_word
from nemo_xtoken.run.arguments.signatures import signature
from nemo_xtoken.run.settings import Settings

if TYPE_CHECKING:
    from nemo_xtoken.recipes import Recipe

__all__ = ["check_call", "find_recipe", "nodes_of_recipe", "read_settings"]


def find_recipe(text: str) -> "Recipe":
    """The recipe that ``NAME`` or ``NAME(..)`` names.

    Raises:
        InputError: there is no recipe of that name, or it does not take those arguments.
    """
    from nemo_xtoken.recipes import available_recipes

    name, recipes = text.partition("(")[0], available_recipes()
    if name not in recipes:
        raise InputError(
            f"there is no recipe {name!r}{nearest(name, recipes)}", f"one of {', '.join(recipes)}", "correct the name"
        )
    check_call(recipes[name], text)
    return recipes[name]


def check_call(recipe: "Recipe", text: str) -> None:
    """The arguments in ``NAME(argument=value)``, against the signature in the recipe's source.

    Raises:
        InputError: one that the recipe does not have, or of another kind.
    """
    taken = signature(f"{recipe.module}.{recipe.function}")
    _, bracket, given = text.partition("(")
    if not bracket or taken is None:
        return
    try:
        call = ast.parse(f"f({given}", mode="eval").body
    except (SyntaxError, ValueError):
        call = None
    if not isinstance(call, ast.Call) or call.args:
        raise InputError(f"recipe {text!r}", "NAME or NAME(argument=value)", "correct what is in the brackets")
    for keyword in call.keywords:
        argument = taken.arguments.get(keyword.arg or "")
        if argument is None and taken.whole:
            hint = nearest(keyword.arg or "", taken.arguments)
            raise InputError(
                f"the recipe {recipe.name} has no argument {keyword.arg!r}{hint}",
                f"{', '.join(taken.arguments) or 'none'}; what a run has is set after it, by key=value",
                f"correct {text}",
            )
        word = ast.unparse(keyword.value)
        try:
            read_word(word, argument.kind if argument is not None else ANYTHING)
        except ValueError:
            kind = argument.kind if argument is not None else ANYTHING
            raise InputError(f"{keyword.arg}={word} in {text}", str(kind), "correct it") from None


def nodes_of_recipe(text: str) -> int | None:
    """N of ``NAME(nodes=N)``.

    Raises:
        InputError: the recipe is given other arguments.
    """
    _, bracket, given = text.partition("(")
    nodes = re.fullmatch(r"nodes=(\d+)\)", given)
    if bracket and nodes is None:
        raise InputError(
            f"recipe={text}", "NAME or NAME(nodes=N)", "write other arguments as overrides: key=value after the recipe"
        )
    return int(nodes[1]) if nodes else None


def read_settings(
    recipe: "Recipe | None", yaml: str | None, overrides: Iterable[str], nodes: int | None, bridge: bool = False
) -> Settings:
    """The settings of the run on a number of nodes, with its overrides.

    Args:
        recipe: None: ``yaml`` is the file of the run.
        nodes: None: as many as it says.
        bridge: a recipe is to run under Megatron-Bridge; a file says itself what it is for.

    Raises:
        InputError: the file is missing, an override does not fit, or Megatron-Bridge does not have such a run.
    """
    if recipe is None:
        path = Path(yaml or "")
    elif recipe.yaml is None:
        raise InputError(
            f"the recipe {recipe.name} has no YAML file here",
            "one beside it",
            f"`nemo llm distill --recipe {recipe.name} --to-yaml {recipe.name}.yaml`, then yaml={recipe.name}.yaml",
        )
    else:
        path = recipe.yaml
    settings = Settings.read(path)
    settings.lay_out(nodes, recipe.layouts if recipe is not None else {})
    if recipe is not None and bridge and not settings.under_bridge:
        # by name: verbs import no framework, and this module's functions name those of the adapter
        adapter = importlib.import_module("nemo_xtoken.plugin.bridge.recipe")
        settings = Settings(adapter.bridge_content(settings.content, recipe.name), settings.source)
    for override in overrides:
        settings.override(override)
    return settings

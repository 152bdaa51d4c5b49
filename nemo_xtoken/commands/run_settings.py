"""A run as a command line names it, recipe or file with overrides, as plain settings: for verbs that need no NeMo."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from nemo_xtoken.errors import InputError, nearest
from nemo_xtoken.run.settings import Settings

if TYPE_CHECKING:
    from nemo_xtoken.recipes import Recipe

__all__ = ["find_recipe", "nodes_of_recipe", "read_settings"]


def find_recipe(text: str) -> "Recipe":
    """The recipe that ``NAME`` or ``NAME(..)`` names.

    Raises:
        InputError: there is no recipe of that name.
    """
    from nemo_xtoken.recipes import available_recipes

    name, recipes = text.partition("(")[0], available_recipes()
    if name not in recipes:
        raise InputError(
            f"there is no recipe {name!r}{nearest(name, recipes)}", f"one of {', '.join(recipes)}", "correct the name"
        )
    return recipes[name]


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


def read_settings(recipe: "Recipe | None", yaml: str | None, overrides: Iterable[str], nodes: int | None) -> Settings:
    """The settings of the run on a number of nodes, with its overrides.

    Args:
        recipe: None: ``yaml`` is the file of the run.
        nodes: None: as many as it says.

    Raises:
        InputError: the file is missing, or an override does not fit.
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
    for override in overrides:
        settings.override(override)
    return settings

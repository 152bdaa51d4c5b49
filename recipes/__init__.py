"""The recipes: ``nemo llm distill --recipe NAME``.

A recipe NAME is a module ``nemo_xtoken.recipes.NAME`` whose name begins with ``xtoken_``, with a function of the same
name that returns a ``run.Partial``; the first line of the module's docstring describes it in lists.  Another package
adds its own through the entry-point group ``nemo_xtoken.recipes`` (``NAME = "package.module:function"``).

Looking a recipe up imports none of them: NeMo is loaded when one is run.
"""

import ast
import importlib
import importlib.metadata
import importlib.util
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["GROUP", "Recipe", "available_recipes", "describe_recipes"]

GROUP = "nemo_xtoken.recipes"
PREFIX = "xtoken_"


@dataclass(frozen=True)
class Recipe:
    """Where a recipe is.

    Attributes:
        name: what ``--recipe`` takes.
        module: the module to import.
        function: the function in it that returns the ``run.Partial``.
    """

    name: str
    module: str
    function: str

    def load(self) -> Callable[..., Any]:
        """Imports the module and returns the function."""
        return getattr(importlib.import_module(self.module), self.function)

    @property
    def summary(self) -> str:
        """The first line of the module's docstring, read from its source; "" where there is none to read."""
        try:
            spec = importlib.util.find_spec(self.module)
            if spec is None or spec.origin is None:
                return ""
            docstring = ast.get_docstring(ast.parse(Path(spec.origin).read_text(encoding="utf-8")))
        except (ImportError, OSError, SyntaxError, ValueError):  # of another package, say: it must not break the list
            return ""
        return docstring.strip().splitlines()[0] if docstring else ""


def available_recipes(extra: Mapping[str, str] | None = None) -> dict[str, Recipe]:
    """The recipes by name, sorted; of two with one name, this package's goes before an installed one's.

    Args:
        extra: more of them, name to ``module:function``; they go before all others.
    """
    found = {point.name: point.value for point in importlib.metadata.entry_points(group=GROUP)}
    for module in pkgutil.iter_modules(__path__):
        if module.name.startswith(PREFIX):
            found[module.name] = f"{__name__}.{module.name}:{module.name}"
    found.update(extra or {})
    recipes = {}
    for name in sorted(found):
        module_name, _, function = found[name].partition(":")
        recipes[name] = Recipe(name, module_name.strip(), function.strip() or name)
    return recipes


def describe_recipes(recipes: Mapping[str, Recipe] | None = None) -> str:
    """A line per recipe: its name and its summary."""
    recipes = available_recipes() if recipes is None else recipes
    if not recipes:
        return "  (no recipe is installed)"
    width = max(map(len, recipes))
    return "\n".join(f"  {name:<{width}}  {recipe.summary}".rstrip() for name, recipe in recipes.items())

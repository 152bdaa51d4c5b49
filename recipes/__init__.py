"""The recipes: ``nemo llm distill --recipe NAME``.

A recipe NAME is a module ``nemo_xtoken.recipes.NAME``, called ``xtoken`` or ``xtoken_..``, with a function of the same
name that returns a ``run.Partial``; the first line of the module's docstring describes it in lists.  Another package
adds its own through the entry-point group ``nemo_xtoken.recipes`` (``NAME = "package.module:function"``), and with
``NAME.yaml`` beside that module they are checked on a login node as these are.

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
        source = self._source()
        docstring = ast.get_docstring(source) if source is not None else None
        return docstring.strip().splitlines()[0] if docstring else ""

    @property
    def layouts(self) -> dict[int, dict[str, int]]:
        """Its ``LAYOUTS``, read from its source: number of nodes -> the arguments of ``common.Layout``; {} if none.

        A recipe that derives from another imports them from there.
        """
        source = self._source()
        for node in source.body if source is not None else ():
            target = node.targets[0] if isinstance(node, ast.Assign) else None
            if isinstance(node, ast.ImportFrom) and any(alias.name == "LAYOUTS" for alias in node.names):
                return Recipe(self.name, node.module or "", self.function).layouts
            if isinstance(node, ast.Assign) and isinstance(target, ast.Name) and target.id == "LAYOUTS":
                table = node.value
                assert isinstance(table, ast.Dict)
                return {
                    ast.literal_eval(number): {str(k.arg): ast.literal_eval(k.value) for k in layout.keywords}
                    for number, layout in zip(table.keys, table.values, strict=True)
                    if number is not None and isinstance(layout, ast.Call)
                }
        return {}

    @property
    def ours(self) -> bool:
        """Whether it is one of this package's."""
        return self.module.startswith(f"{__name__}.")

    @property
    def yaml(self) -> Path | None:
        """Its YAML file, which for a recipe of another package lies beside its module; None where there is none."""
        file = self._file()
        folder = Path(importlib.import_module("nemo_xtoken.conf").__path__[0]) if self.ours else file and file.parent
        path = folder and folder / f"{self.name}.yaml"
        return path if path and path.is_file() else None

    def _file(self) -> Path | None:
        """Of its module."""
        try:
            spec = importlib.util.find_spec(self.module)
        except (ImportError, ValueError):  # of another package, say: it must not break the list
            return None
        return Path(spec.origin) if spec is not None and spec.origin is not None else None

    def _source(self) -> ast.Module | None:
        file = self._file()
        try:
            return ast.parse(file.read_text(encoding="utf-8")) if file is not None else None
        except (OSError, SyntaxError, ValueError):
            return None


def available_recipes(extra: Mapping[str, str] | None = None) -> dict[str, Recipe]:
    """The recipes by name, sorted; of two with one name, this package's goes before an installed one's.

    Args:
        extra: more of them, name to ``module:function``; they go before all others.
    """
    found = {point.name: point.value for point in importlib.metadata.entry_points(group=GROUP)}
    for module in pkgutil.iter_modules(__path__):
        if f"{module.name}_".startswith(PREFIX):
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

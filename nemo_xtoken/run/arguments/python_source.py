"""Python source that is looked into without importing it: importing NeMo takes its time and wants all of NeMo."""

import ast
import functools
import importlib.util
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Found", "Module", "find", "read_module"]

OURS = "nemo_xtoken."


@dataclass(frozen=True)
class Module:
    """A module's top level.

    Attributes:
        name: its full name.
        names: what each name in it is: a definition or a value here, or the full name of what is imported.
        stars: modules of which all names are imported.
    """

    name: str
    names: dict[str, ast.AST | str]
    stars: tuple[str, ...]

    def full_name(self, expression: ast.expr) -> str | None:
        """The full name of what ``a.b.C`` in this module is; None for other expressions."""
        parts = []
        while isinstance(expression, ast.Attribute):
            parts.append(expression.attr)
            expression = expression.value
        if not isinstance(expression, ast.Name):
            return None
        first = self.names.get(expression.id)
        if first is None:
            for star in self.stars:
                if (module := read_module(star)) is not None and expression.id in module.names:
                    return ".".join([star, expression.id, *reversed(parts)])
            return None
        start = first if isinstance(first, str) else f"{self.name}.{expression.id}"
        return ".".join([start, *reversed(parts)])


@dataclass(frozen=True)
class Found:
    """A definition or a value, and the module it stands in."""

    node: ast.AST
    module: Module
    name: str

    @property
    def full_name(self) -> str:
        """Where it is defined."""
        return f"{self.module.name}.{self.name}"


def find(full_name: str, steps: int = 12) -> Found | None:
    """What has this name, through the modules that only hand it on; None where it is not installed or made at run time.

    Args:
        full_name: ``package.module.Name``.
        steps: how many modules may hand it on.
    """
    parts = full_name.split(".")
    for cut in range(len(parts) - 1, 0, -1):
        module = read_module(".".join(parts[:cut]))
        if module is None:
            continue
        name, *below = parts[cut:]
        there = module.names.get(name)
        if there is None:
            named = (f"{star}.{name}" for star in module.stars)
            found = next(filter(None, (find(n, steps - 1) for n in named if steps)), None)
            return found if not below else None
        if isinstance(there, str):
            again = ".".join([there, *below])
            return find(again, steps - 1) if steps and again != full_name else None
        return Found(there, module, name) if not below else None
    return None


@functools.lru_cache(maxsize=256)
def read_module(name: str) -> Module | None:
    """The module's top level; None if its source is not found."""
    path = _path(name)
    if path is None:
        return None
    try:
        tree = ast.parse(path.read_text("utf-8"))
    except (OSError, SyntaxError, ValueError):
        return None
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    names: dict[str, ast.AST | str] = {}
    stars: list[str] = []
    for statement in _statements(tree.body):
        match statement:
            case ast.ClassDef() | ast.FunctionDef():
                names[statement.name] = statement
            case ast.Import():
                for alias in statement.names:
                    names[alias.asname or alias.name.partition(".")[0]] = (
                        alias.name if alias.asname else alias.name.partition(".")[0]
                    )
            case ast.ImportFrom():
                base = _absolute(statement, package)
                for alias in statement.names:
                    if alias.name == "*":
                        stars.append(base)
                    elif alias.name not in names or _installed(base):  # else what stands in for an absent package
                        names[alias.asname or alias.name] = f"{base}.{alias.name}"
            case ast.Assign(targets=[ast.Name(id=target)]):
                names.setdefault(target, statement.value)  # an absent package's class is None further down
    return Module(name, names, tuple(stars))


def _statements(body: Iterable[ast.stmt]) -> Iterator[ast.stmt]:
    """Those of the top level, also of its ``if`` and ``try``."""
    for statement in body:
        if isinstance(statement, ast.If):
            yield from _statements([*statement.orelse, *statement.body])
        elif isinstance(statement, ast.Try):
            yield from _statements([*(s for h in statement.handlers for s in h.body), *statement.body])
        elif isinstance(statement, ast.With):
            yield from _statements(statement.body)
        else:
            yield statement


def _installed(module: str) -> bool:
    return importlib.util.find_spec(module.partition(".")[0]) is not None


def _absolute(statement: ast.ImportFrom, package: str) -> str:
    if not statement.level:
        return statement.module or ""
    parts = package.split(".")
    above = parts[: len(parts) - statement.level + 1]
    return ".".join([*above, *([statement.module] if statement.module else [])])


def _path(name: str) -> Path | None:
    """The file of a module, found without importing the packages above it."""
    top, *below = name.split(".")
    try:
        spec = importlib.util.find_spec(top) if top else None
    except (ImportError, ValueError):
        return None
    if spec is not None and not below and spec.origin and spec.origin.endswith(".py"):
        return Path(spec.origin)
    for folder in (spec.submodule_search_locations or ()) if spec is not None and below else ():
        for path in (Path(folder, *below).with_suffix(".py"), Path(folder, *below, "__init__.py")):
            if path.is_file():
                return path
    if name.startswith(OURS):  # a package of ours may lie elsewhere in the tree
        try:
            spec = importlib.util.find_spec(name)
        except (ImportError, ValueError):
            return None
        return Path(spec.origin) if spec is not None and spec.origin else None
    return None

"""The defaults of a configuration class, read from its source: importing NeMo takes its time and wants all of NeMo."""

import ast
import functools
import importlib.util
from pathlib import Path
from typing import Any

__all__ = ["class_defaults"]


def class_defaults(target: str) -> dict[str, Any]:
    """Plain defaults of a dataclass and its bases, with its name as ``_target_``; empty where it is not installed.

    Args:
        target: ``package.module.Class``.
    """
    module, _, name = target.rpartition(".")
    found = _fields(module, name)
    return {"_target_": target, **found} if found else {}


@functools.lru_cache(maxsize=64)
def _fields(module: str, name: str) -> dict[str, Any]:
    tree = _source(module)
    node = next((n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == name), None) if tree else None
    if tree is None or node is None:
        return {}
    imported = {
        alias.asname or alias.name: (statement.module, alias.name)
        for statement in tree.body
        if isinstance(statement, ast.ImportFrom) and statement.module and not statement.level
        for alias in statement.names
    }
    found: dict[str, Any] = {}
    for base in reversed(node.bases):  # the first base goes before the others
        if isinstance(base, ast.Name):
            found |= _fields(*imported.get(base.id, (module, base.id)))
    for statement in node.body:
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name) and statement.value:
            try:
                found[statement.target.id] = ast.literal_eval(statement.value)
            except ValueError:  # made by a function
                found.pop(statement.target.id, None)
    return found


def _source(module: str) -> ast.Module | None:
    """Of a module, whose package is looked for without importing it."""
    top, *below = module.split(".")
    try:
        spec = importlib.util.find_spec(top) if top else None
    except (ImportError, ValueError):
        return None
    for folder in (spec.submodule_search_locations or ()) if spec is not None else ():
        for path in (Path(folder, *below).with_suffix(".py"), Path(folder, *below, "__init__.py")):
            if path.is_file():
                return ast.parse(path.read_text("utf-8"))
    return None

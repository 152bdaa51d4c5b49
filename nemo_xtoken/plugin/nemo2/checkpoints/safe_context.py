"""The names in ``context/io.json`` of a NeMo 2 checkpoint, checked before NeMo imports and calls them.

The file is fiddle's form of the objects that a run was made of: each has the name of its class, by which NeMo makes it
anew.  Looked at is what NeMo would import or make for the part that is asked for, and nothing else: the data or the
callbacks of another's run may be of classes that this machine does not have.
"""

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from nemo.collections import llm

from nemo_xtoken.errors import InputError
from nemo_xtoken.imported import find_attribute
from nemo_xtoken.run.arguments.trusted_names import SWITCHES, check_named, is_named_trusted, refused
from nemo_xtoken.weights.folder import read_json

__all__ = ["check_context", "context_file"]

#: Types of fiddle's objects that NeMo does not look up by a traverser of its own.
PLAIN = ("builtins", "fiddle._src.config", "fiddle._src.partial", "collections", "pathlib")


def context_file(checkpoint: Path) -> Path:
    """Where NeMo finds the context: in ``context``, or beside the weights as early versions wrote it."""
    usual = checkpoint / "context" / "io.json"
    return usual if usual.is_file() else checkpoint / "io.json"


def check_context(checkpoint: Path, part: str) -> None:
    """Reads names alone; imports those on the list.

    Args:
        part: what will be loaded: ``model.config``, ``model.tokenizer``.

    Raises:
        InputError: no context, none with this part, or a name that is not on the list.
    """
    file = context_file(checkpoint)
    content = read_json(file)
    objects = content.get("objects")
    if not isinstance(objects, Mapping):
        expected = "io.json, as NeMo 2 saves it beside the weights"
        raise InputError(f"no context in {checkpoint / 'context'}", expected, "fix the path")
    objects = {key: value for key, value in objects.items() if isinstance(value, Mapping)}
    path = f"<root>.{part}"
    root = next((key for key, value in objects.items() if path in _paths(value)), None)
    if root is None:
        raise InputError(f"no {part} in {file}", "a context with one, as NeMo 2 saves it", "import the model again")
    reached = _reached(objects, root)
    # NeMo imports the class of every object that has this path in one of its own, reached or not.
    near = {key for key, value in objects.items() if "paths" not in value or any(path in p for p in _paths(value))}
    source = str(file)
    for key in sorted(reached | near):
        kind = objects[key].get("type")
        for ref in _marked(objects[key] if key in reached else kind, "pyref"):
            if not _is_loaded_config(ref):
                check_named(_import(ref, source), ".".join(_name(ref)), source)
        own = isinstance(kind, Mapping) and not str(kind.get("module")).startswith(PLAIN)
        if key in reached and own and len(objects[key].get("items") or ()) == 1:
            raise refused(f"{kind.get('name')} in a pickle", source)  # NeMo reads its only item as a file's name
        if key in reached and (switches := _texts(objects[key]) & set(SWITCHES)):
            raise refused(f"the argument {switches.pop()}", source)


def _paths(value: Mapping[str, Any]) -> list[str]:
    paths = value.get("paths")
    return [str(path) for path in paths] if isinstance(paths, list) else [str(paths or "")]


def _reached(objects: Mapping[str, Any], root: str) -> set[str]:
    """The objects that are made for ``root``."""
    found, waiting = set(), [root]
    while waiting:
        key = waiting.pop()
        if key not in found and key in objects:
            found.add(key)
            waiting += [str(ref["key"]) for ref in _marked(objects[key], "ref") if "key" in ref]
    return found


def _marked(value: Any, kind: str) -> Iterator[Mapping[str, Any]]:
    """The mappings in ``value`` whose type is ``kind``, at any depth."""
    waiting = [value]
    while waiting:
        inner = waiting.pop()
        if isinstance(inner, Mapping):
            if inner.get("type") == kind:
                yield inner
            waiting += inner.values()
        elif isinstance(inner, list):
            waiting += inner


def _texts(value: Any) -> set[str]:
    """The texts in ``value``, at any depth; among them the names of arguments."""
    if isinstance(value, Mapping):
        return set().union(*map(_texts, value.values()))
    if isinstance(value, list):
        return set().union(*map(_texts, value))
    return {value} if isinstance(value, str) else set()


def _name(ref: Mapping[str, Any]) -> tuple[str, str]:
    return str(ref.get("module")), str(ref.get("name"))


def _is_loaded_config(ref: Mapping[str, Any]) -> bool:
    """Whether it names a model's configuration that this process has already: a family that the user has added."""
    module, name = _name(ref)
    found = getattr(sys.modules.get(module), name, None)
    return isinstance(found, type) and issubclass(found, llm.GPTConfig)


def _import(ref: Mapping[str, Any], source: str) -> Any:
    module, name = _name(ref)
    if not is_named_trusted(module, name):
        raise refused(f"{module}.{name}", source)
    try:
        return find_attribute(module, name)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(
            f"{source} names {module}.{name}, which cannot be imported ({error})",
            "classes that are installed here",
            "install the versions that trained it",
        ) from error

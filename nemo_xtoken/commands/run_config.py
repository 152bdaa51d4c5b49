"""Turns what ``--to-yaml`` wrote back into the configuration it was made from, exactly.

nemo_run's own way from a file is a list of textual overrides; it loses the target, lists of configurations, and shares
one object between arguments of one type.  Here every ``_target_`` becomes the ``run.Config`` or ``run.Partial`` it was.
What ``--to-yaml`` itself loses stays lost: tuples are lists in the file, one object under two names is two equal ones.
"""

import dataclasses
import importlib
import inspect
import typing
from collections.abc import Mapping, Sequence
from typing import Any

import nemo_run as run

from nemo_xtoken.errors import InputError
from nemo_xtoken.run.renamed_paths import current_path

__all__ = ["add_named", "config_from_dict", "plain"]


def config_from_dict(content: Mapping[str, Any], source: str) -> Any:
    """The configuration in ``content``, whose top level has a ``_target_``.

    Args:
        content: plain data, as read from the file.
        source: the file, for error messages.

    Raises:
        InputError: a target that cannot be imported, or an argument that it does not take.
    """
    return _convert(content, source, "", {})


def _convert(value: Any, source: str, where: str, done: dict[int, Any]) -> Any:
    if id(value) in done:  # one object under two names (a YAML alias) stays one
        return done[id(value)]
    if isinstance(value, list):
        done[id(value)] = result = []
        result.extend(_convert(item, source, f"{where}[{i}]", done) for i, item in enumerate(value))
        return result
    if not isinstance(value, Mapping):
        return value
    if "_target_" not in value:
        done[id(value)] = result = {}
        result.update((k, _convert(v, source, f"{where}.{k}".lstrip("."), done)) for k, v in value.items())
        return result
    target = _import(current_path(str(value["_target_"])), source, where)
    if value.get("_call_", True) is False:
        return target
    arguments = {
        k: _convert(v, source, f"{where}.{k}".lstrip("."), done)
        for k, v in value.items()
        if k not in ("_target_", "_partial_", "_call_")
    }
    kind = run.Partial if value.get("_partial_", False) else run.Config
    try:
        done[id(value)] = config = kind(target, **arguments)
    except (TypeError, AttributeError) as error:
        raise InputError(
            f"{where or 'the run'} in {source} does not fit {value['_target_']} ({error})",
            "the arguments of that function or class",
            "write the file again with --to-yaml, or correct it",
        ) from error
    return config


def plain(config: Any) -> Any:
    """A configuration as plain data, as ``--to-yaml`` writes it: the opposite of `config_from_dict`."""
    if isinstance(config, run.Config | run.Partial):
        arguments = {name: plain(value) for name, value in config.__arguments__.items()}
        target = config.__fn_or_cls__
        return arguments if target is dict else {"_target_": _full_name(target), **arguments}
    if isinstance(config, Mapping):
        return {str(name): plain(value) for name, value in config.items()}
    if isinstance(config, list | tuple):
        return [plain(value) for value in config]
    if config is None or isinstance(config, bool | int | float | str):
        return config
    if callable(config) or hasattr(config, "__qualname__"):
        return {"_target_": _full_name(config), "_call_": False}
    return {"_target_": str(config), "_call_": False}


def _full_name(target: Any) -> str:
    return f"{getattr(target, '__module__', '')}.{getattr(target, '__qualname__', target)}"


def add_named(config: Any, overrides: Sequence[str]) -> None:
    """Lets overrides reach into an argument that holds dataclasses by name: ``teachers: dict[str, TeacherConfig]``.

    nemo_run follows a name into a configuration alone, and only where it is there already.  So a dictionary becomes the
    configuration of one, and a name that an override such as ``teachers.second.path=PATH`` uses is added to it; so
    is a dataclass that a recipe left out: ``evaluate: Optional[EvaluationConfig] = None``.

    The same holds for configurations inside this one: ``data.text.sources.web.paths=PATHS``.

    Args:
        config: the run; changed in place.
        overrides: ``a.b.c=value``, or ``a.b.c``.
    """
    _add_named(config, [override.partition("=")[0] for override in overrides])


def _add_named(config: Any, overrides: Sequence[str]) -> None:
    target = config.__fn_or_cls__
    if target is dict:
        return
    # The annotations of other classes are not of their arguments.
    typed = not isinstance(target, type) or dataclasses.is_dataclass(target)
    hints = typing.get_type_hints(target) if typed else {}
    paths = [path.split(".") for path in overrides]
    for argument in inspect.signature(target).parameters:
        inner = [path.partition(".")[2] for path in overrides if path.startswith(f"{argument}.")]
        part = _part(hints.get(argument))
        deeper = any(path[0] == argument and len(path) > 1 for path in paths)
        if part is not None and deeper and config.__arguments__.get(argument) is None:
            setattr(config, argument, run.Config(part, **_parts(part)))
        if any("." in path for path in inner) and isinstance(config.__arguments__.get(argument), run.Config):
            _add_named(config.__arguments__[argument], inner)
        kind = _held_by_name(hints.get(argument))
        if kind is None:
            continue
        names = [path[1] for path in paths if path[0] == argument and len(path) > 2]
        held = config.__arguments__.get(argument)
        if isinstance(held, Mapping):
            held = run.Config(dict, **held)
        elif held is None and names:
            held = run.Config(dict)
        if held is None:
            continue
        for name in names:
            if getattr(held, name, None) is None:
                setattr(held, name, run.Config(kind))
            for part, default in _parts(kind).items():
                if part not in getattr(held, name).__arguments__:
                    setattr(getattr(held, name), part, default)
        setattr(config, argument, held)


def _held_by_name(annotation: Any) -> type | None:
    """D of ``dict[str, D]`` or ``Optional[dict[str, D]]`` where D is a dataclass."""
    for part in (annotation, *typing.get_args(annotation)):
        inner = typing.get_args(part)
        if typing.get_origin(part) is dict and len(inner) == 2 and dataclasses.is_dataclass(inner[1]):
            return inner[1] if isinstance(inner[1], type) else None
    return None


def _part(annotation: Any) -> type | None:
    """D of ``D`` and ``Optional[D]`` where D is a dataclass of ours, which a recipe may leave out."""
    kinds = [kind for kind in typing.get_args(annotation) or (annotation,) if kind is not type(None)]
    ours = len(kinds) == 1 and dataclasses.is_dataclass(kinds[0]) and kinds[0].__module__.startswith("nemo_xtoken.")
    return kinds[0] if ours else None


def _parts(kind: type) -> dict[str, Any]:
    """Configurations of the dataclasses in a dataclass, which fiddle leaves to their factories."""
    return {
        f.name: run.Config(f.default_factory, **_parts(f.default_factory))
        for f in dataclasses.fields(kind)
        if isinstance(f.default_factory, type) and dataclasses.is_dataclass(f.default_factory)
    }


def _import(path: str, source: str, where: str) -> Any:
    """``package.module.Name`` or ``package.module.Class.method``."""
    parts = path.split(".")
    for cut in range(len(parts) - 1, 0, -1):
        try:
            found: Any = importlib.import_module(".".join(parts[:cut]))
        except ModuleNotFoundError:
            continue
        try:
            for name in parts[cut:]:
                found = getattr(found, name)
        except AttributeError:
            break
        return found
    raise InputError(
        f"_target_ {path!r} of {where or 'the run'} in {source} cannot be imported",
        "the full name of a function or class that is installed here",
        "correct the name, or install what it belongs to",
    )

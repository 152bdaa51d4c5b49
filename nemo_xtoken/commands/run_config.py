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
from nemo_xtoken.files import at_home
from nemo_xtoken.run.arguments.trusted_names import check_called, check_content_trusted, check_named
from nemo_xtoken.run.renamed_paths import current_path

__all__ = ["add_named", "config_from_dict", "expand_home", "plain"]


def config_from_dict(content: Mapping[str, Any], source: str, trust: bool = True) -> Any:
    """The configuration in ``content``, whose top level has a ``_target_``.

    Args:
        content: plain data, as read from the file.
        source: the file, for error messages.
        trust: take any target; else those on the list of ``run/arguments/trusted_names.py``.

    Raises:
        InputError: a target that cannot be imported or is not on the list, or an argument that it does not take.
    """
    if not trust:
        check_content_trusted(content, source)
    return _convert(content, source, "", {}, trust)


def _convert(value: Any, source: str, where: str, done: dict[int, Any], trust: bool) -> Any:
    if id(value) in done:  # one object under two names (a YAML alias) stays one
        return done[id(value)]
    if isinstance(value, list):
        items: list[Any] = []
        done[id(value)] = items
        items.extend(_convert(item, source, f"{where}[{i}]", done, trust) for i, item in enumerate(value))
        return items
    if not isinstance(value, Mapping):
        return value
    if "_target_" not in value:
        named: dict[Any, Any] = {}
        done[id(value)] = named
        named.update((k, _convert(v, source, f"{where}.{k}".lstrip("."), done, trust)) for k, v in value.items())
        return named
    name = current_path(str(value["_target_"]))
    target = _import(name, source, where)
    called = value.get("_call_", True) is not False
    if not trust:
        (check_called if called else check_named)(target, name, source)
    if not called:
        return target
    arguments = {
        k: _convert(v, source, f"{where}.{k}".lstrip("."), done, trust)
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


def expand_home(value: Any) -> Any:
    """A configuration in which every text ``~/..`` names the home folder, which a shell leaves as it is within a word.

    Some of those whose settings these are take ``~`` for the name of a folder.

    Args:
        value: a configuration, which is changed in place, or what one holds.
    """
    if isinstance(value, run.Config | run.Partial):
        for name, argument in list(value.__arguments__.items()):
            if (expanded := expand_home(argument)) is not argument:
                setattr(value, name, expanded)
    elif isinstance(value, dict):
        value.update({name: expand_home(item) for name, item in value.items()})
    elif isinstance(value, list):
        value[:] = map(expand_home, value)
    elif isinstance(value, tuple) and type(value) is tuple:
        expanded = tuple(map(expand_home, value))
        return expanded if expanded != value else value
    elif isinstance(value, str):
        return at_home(value)
    return value


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
            for missing, default in _parts(kind).items():
                if missing not in getattr(held, name).__arguments__:
                    setattr(getattr(held, name), missing, default)
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
    made: dict[str, Any] = {field.name: field.default_factory for field in dataclasses.fields(kind)}
    return {
        name: run.Config(factory, **_parts(factory))
        for name, factory in made.items()
        if isinstance(factory, type) and dataclasses.is_dataclass(factory)
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

"""Turns what ``--to-yaml`` wrote back into the configuration it was made from, exactly.

nemo_run's own way from a file is a list of textual overrides; it loses the target, lists of configurations, and shares
one object between arguments of one type.  Here every ``_target_`` becomes the ``run.Config`` or ``run.Partial`` it was.
What ``--to-yaml`` itself loses stays lost: tuples are lists in the file, one object under two names is two equal ones.
"""

import importlib
from collections.abc import Mapping
from typing import Any

import nemo_run as run

from nemo_xtoken.errors import InputError

__all__ = ["config_from_dict"]


def config_from_dict(content: Mapping[str, Any], source: str) -> Any:
    """The configuration in ``content``, whose top level has a ``_target_``.

    Args:
        content: plain data, as read from the file.
        source: the file, for messages.

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
    target = _import(str(value["_target_"]), source, where)
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

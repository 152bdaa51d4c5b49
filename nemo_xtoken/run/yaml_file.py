"""YAML files that people write: plain data, a key once, and no surprises in numbers."""

import re
from pathlib import Path
from typing import Any, ClassVar

import yaml

from nemo_xtoken.errors import InputError

__all__ = ["read_yaml"]

#: YAML 1.1 reads ``4:00:00`` as 14400 and ``1e-5`` as text; people mean a time and a number.
_INT = re.compile(r"[-+]?(0b[01_]+|0x[0-9a-fA-F_]+|0[0-7_]*|[1-9][0-9_]*)")
_FLOAT = re.compile(
    r"[-+]?([0-9][0-9_]*)?\.[0-9][0-9_]*([eE][-+]?[0-9]+)?|[-+]?[0-9][0-9_]*\.?([eE][-+]?[0-9]+)"
    r"|[-+]?[0-9][0-9_]*\.|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"
)


_MOST_VALUES = 1_000_000  # a run has a few hundred; whoever reads a file visits all of them


class _OneKeyOnce:
    """Refuses a mapping with one key twice, of which PyYAML would take the second without a word."""

    def compose_mapping_node(self, anchor: str | None) -> yaml.MappingNode:
        node: yaml.MappingNode = super().compose_mapping_node(anchor)  # type: ignore[misc]
        seen: set[str] = set()
        for name in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.value != "<<"):
            if name.value in seen:
                raise yaml.composer.ComposerError(None, None, f"the key {name.value!r} is there twice", name.start_mark)
            seen.add(name.value)
        return node


class _Values(_OneKeyOnce, yaml.SafeLoader):
    """Numbers, truth values, None, text."""

    yaml_implicit_resolvers: ClassVar = {
        first: [(tag, pattern) for tag, pattern in pairs if not tag.endswith((":int", ":float", ":timestamp"))]
        for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


for _tag, _pattern in (("float", _FLOAT), ("int", _INT)):
    _Values.add_implicit_resolver(
        f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_pattern.pattern})$"), list("-+0123456789.")
    )


class _Text(_OneKeyOnce, yaml.BaseLoader):
    """Scalars as they are written."""


def read_yaml(path: Path, text: bool = False) -> Any:
    """What is in a file; None where it is empty.

    Args:
        text: leave every scalar as it is written (``4:00:00``, ``007``, ``yes``, ``null``), for fields whose type says
            what it means.

    Raises:
        InputError: the file cannot be read, is no YAML, has a key twice in one place, or says by its aliases more than
            anybody writes.
    """
    try:
        found = yaml.load(path.read_text("utf-8"), _Text if text else _Values)  # noqa: S506 (both are safe loaders)
        if _written_out(found, {}) > _MOST_VALUES:
            raise ValueError(f"its aliases stand for more than {_MOST_VALUES:,} values")
        return found
    except (OSError, UnicodeDecodeError, yaml.YAMLError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).replace('"<unicode string>", ', "").split())  # PyYAML's name of a text
        raise InputError(f"{path} cannot be read ({reason})", "a YAML file", "correct it, or the path") from error


def _written_out(value: Any, known: dict[int, int | None]) -> int:
    """Values in a value, those behind an alias once for each alias.

    Args:
        known: of each list and mapping by its `id`, None while it is being counted.
    """
    if not isinstance(value, dict | list):
        return 1
    if id(value) not in known:
        known[id(value)] = None
        inside = value.values() if isinstance(value, dict) else value
        known[id(value)] = 1 + sum(_written_out(one, known) for one in inside)
    size = known[id(value)]
    if size is None:
        raise ValueError("an alias stands for what it is in")
    return size

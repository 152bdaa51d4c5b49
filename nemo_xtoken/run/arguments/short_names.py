"""Short ways to write an override: ``teacher=B`` for ``teacher.path=B``, ``teachers.NAME=C``, ``log=tensorboard``."""

from collections.abc import Mapping
from typing import Any

from nemo_xtoken.run.arguments.names import argument_at
from nemo_xtoken.run.arguments.python_source import OURS
from nemo_xtoken.run.arguments.signatures import signature

__all__ = ["TRACKERS", "in_full", "short"]

_NONE = ("none", "null", "")
#: What ``track=`` may be; ``log=`` too, but for none, which is no logger at all.
TRACKERS = ("none", "tensorboard", "wandb")
PATH = ".path"


def in_full(content: Mapping[str, Any], word: str) -> str:
    """An override whose value is the path of what its name configures, written out; others as they are.

    Args:
        content: the run as plain data.
        word: ``a.b=value``.

    Raises:
        InputError: an unknown argument.
    """
    name, equals, text = word.partition("=")
    if name == "log" and text in TRACKERS[1:]:
        return f"track={text}"
    if not equals or text.strip("'\"").lower() in _NONE or name.endswith(PATH):
        return word
    parent, _, last = name.rpartition(".")
    held = None
    if last.isidentifier() and name.replace(".", "_").isidentifier():
        argument = argument_at(content, name, word)
        held = argument.kind.holds if argument is not None else None
        if held is None and parent.isidentifier():
            above = argument_at(content, parent, word)
            held = above.kind.holds_by_name if above is not None else None
    taken = signature(held) if held is not None and held.startswith(OURS) else None
    return f"{name}{PATH}={text}" if taken is not None and PATH[1:] in taken.arguments else word


def short(name: str) -> str:
    """``teacher.path`` as a user would write it."""
    return name.removesuffix(PATH)

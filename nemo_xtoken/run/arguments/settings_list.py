"""All settings of a run with their kinds, defaults and a sentence on each, read from signatures and docstrings."""

import ast
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from nemo_xtoken.run.arguments.python_source import OURS, find
from nemo_xtoken.run.arguments.signatures import NO_DEFAULT, Argument, signature
from nemo_xtoken.run.renamed_paths import current_path

__all__ = ["Setting", "settings_of"]

_SECTION = re.compile(r"^(Args|Arguments|Attributes|Parameters):\s*$")
_ENTRY = re.compile(r"^(\s*)((?:\w+)(?:, \w+)*)\s*(?:\([^)]*\))?:\s*(.*)$")
DEPTH = 6
#: The function whose arguments those of the other recipes' functions are named after.
DISTILL = "nemo_xtoken.plugin.nemo2.distill.distill"
#: What the classes of others leave unsaid.
OF_OTHERS = {
    "optim.config.optimizer": "adam or sgd",
    "optim.config.weight_decay": "of AdamW, on matrices",
    "optim.lr_scheduler.warmup_steps": "steps in which the learning rate rises to its peak",
    "optim.lr_scheduler.constant_steps": "steps at the lowest learning rate at the end",
    "optim.lr_scheduler.min_lr": "the learning rate that the cosine ends at",
}


@dataclass(frozen=True)
class Setting:
    """
    Attributes:
        name: as on the command line: ``data.text.held_out``.
        kind: what it may be, for people.
        default: as on the command line; "" where there is none or code makes it.
        sentence: what it is.
        ours: whether it belongs to this package; else to NeMo, Lightning or Megatron.
        recipe: what the recipe sets it to; None: nothing.
    """

    name: str
    kind: str
    default: str
    sentence: str
    ours: bool
    recipe: str | None = None


def settings_of(content: Mapping[str, Any]) -> list[Setting]:
    """Of a run: all arguments of this package's functions and classes, and of others those that the run sets.

    Args:
        content: the run as plain data.
    """
    return list(_below(content, str(content["_target_"]), "", DEPTH, sentences(DISTILL)))


def _below(
    node: Any, target: str, where: str, depth: int, elsewhere: Mapping[str, str] = MappingProxyType({})
) -> Iterator[Setting]:
    found = signature(target)
    if found is None or not depth:
        return
    ours = found.target.startswith(OURS)
    given = node if isinstance(node, Mapping) else {}
    said = {**elsewhere, **sentences(found.target)}
    for name, argument in found.arguments.items():
        set_here = name in given
        if not ours and not set_here:
            continue
        full, value, kind = f"{where}.{name}".lstrip("."), given.get(name), argument.kind
        held = value.get("_target_") if isinstance(value, Mapping) else None
        held = held or (kind.holds if (kind.holds or "").startswith(OURS) else None)
        if held is not None and signature(str(held)) is not None:
            yield from _below(value, str(held), full, depth - 1)
        elif kind.holds_by_name is not None:
            if name == "teachers":  # as of the one teacher
                yield _setting(f"{full}.NAME", argument, said.get(name, ""), ours, None)
            else:
                yield from _below(None, kind.holds_by_name, f"{full}.NAME", depth - 1)
        else:
            shown = _word(value) if set_here and not isinstance(value, Mapping) else None
            yield _setting(full, argument, said.get(name, ""), ours, shown)


def _setting(name: str, argument: Argument, sentence: str, ours: bool, recipe: str | None) -> Setting:
    default = "" if argument.default is NO_DEFAULT else _word(argument.default)
    sentence = sentence or OF_OTHERS.get(name, "")
    return Setting(name, str(argument.kind), default, sentence, ours, None if recipe == default else recipe)


def _word(value: Any) -> str:
    """A value as the command line takes it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return str(value)


def sentences(target: str) -> dict[str, str]:
    """The first sentence on each argument of a function or class, from its docstring and those of the classes above."""
    found = find(current_path(target))
    if found is None or not isinstance(found.node, ast.ClassDef | ast.FunctionDef):
        return {}
    said: dict[str, str] = {}
    if isinstance(found.node, ast.ClassDef):
        for base in reversed(found.node.bases):
            name = found.module.full_name(base.value if isinstance(base, ast.Subscript) else base)
            said |= sentences(name) if name is not None and name != target else {}
        own = (n for n in found.node.body if isinstance(n, ast.FunctionDef) and n.name == "__init__")
        for function in own:
            said |= _entries(ast.get_docstring(function) or "")
        for field, after in zip(found.node.body, found.node.body[1:], strict=False):  # Megatron's way
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(after, ast.Expr):
                text = after.value.value if isinstance(after.value, ast.Constant) else None
                said |= {field.target.id: _first(text)} if isinstance(text, str) else {}
    return said | _entries(ast.get_docstring(found.node) or "")


def _entries(text: str) -> dict[str, str]:
    """Of the sections on arguments of a docstring; one entry may be on several."""
    said: dict[str, str] = {}
    inside, depth, names, words = False, 0, [], []  # type: bool, int, list[str], list[str]

    def close() -> None:
        for name in names:
            said[name] = _first(" ".join(words))

    for line in [*text.splitlines(), "End:"]:
        stripped = line.strip()
        if line and not line.startswith(" "):
            close()
            names, words, inside, depth = [], [], bool(_SECTION.match(line)), 0
            continue
        if not inside or not stripped:
            continue
        entry = _ENTRY.match(line)
        indent = len(line) - len(line.lstrip())
        if entry is not None and (not depth or indent == depth):
            close()
            depth, names, words = indent, entry[2].split(", "), [entry[3]]
        else:
            words.append(stripped)
    return said


def _first(text: str) -> str:
    """The first sentence."""
    text = " ".join(text.replace("``", "`").split())
    end = re.search(r"(?<![a-z]\.[a-z])(?<!e\.g)(?<!i\.e)\.(?=\s|$)", text)
    return (text[: end.start()] if end else text).strip().rstrip(".;:")

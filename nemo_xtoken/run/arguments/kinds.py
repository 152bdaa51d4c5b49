"""What an argument may be, from its annotation, and a word of the command line as a value of that kind."""

import ast
import re
from dataclasses import dataclass
from typing import Any

from nemo_xtoken.run.arguments.python_source import Module, find

__all__ = ["ANYTHING", "Kind", "kind_of", "read_word", "why_not"]

_PLAIN = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "text", "Path": "a path"}
_TRUE, _FALSE, _NONE = ("true", "yes", "1", "on"), ("false", "no", "0", "off"), ("none", "null")
_WORDS = {"true": True, "false": False, "none": None, "null": None}


@dataclass(frozen=True)
class Kind:
    """A type.

    Attributes:
        name: int, float, bool, str, Path, None, list, dict, union, literal, class (one that the settings below belong
            to), or any: what is not known here.
        inner: of a union its members, of a list and a dict what it holds.
        values: of a literal the values, of a class its full name.
    """

    name: str
    inner: tuple["Kind", ...] = ()
    values: tuple[Any, ...] = ()

    def __str__(self) -> str:
        """For people."""
        match self.name:
            case "union":
                return " or ".join(dict.fromkeys(map(str, self.inner)))
            case "list":
                return "a list" + (f" ({self.inner[0]} each)" if self.inner and self.inner[0].name != "any" else "")
            case "literal":
                return f"one of {', '.join(map(str, self.values))}"
            case "class":
                return f"settings of a {self.values[0].rpartition('.')[2]}"
            case "None":
                return "none"
            case "dict":
                return "a dictionary"
        return _PLAIN.get(self.name, "a value")

    @property
    def members(self) -> tuple["Kind", ...]:
        """Of a union; else this one alone."""
        return self.inner if self.name == "union" else (self,)

    @property
    def holds(self) -> str | None:
        """The class whose settings stand below such an argument; None where there is none, or several."""
        classes = [kind.values[0] for kind in self.members if kind.name == "class"]
        return classes[0] if len(classes) == 1 else None

    @property
    def holds_by_name(self) -> str | None:
        """The class of the values of ``dict[str, Class]``."""
        for kind in self.members:
            if kind.name == "dict" and len(kind.inner) == 2:
                return kind.inner[1].holds
        return None


ANYTHING = Kind("any")


def kind_of(annotation: ast.expr | None, module: Module, depth: int = 6) -> Kind:
    """From source; what cannot be told is anything."""
    if annotation is None or depth == 0:
        return ANYTHING
    match annotation:
        case ast.Constant(value=None):
            return Kind("None")
        case ast.Constant(value=str(text)):
            try:
                return kind_of(ast.parse(text, mode="eval").body, module, depth - 1)
            except SyntaxError:
                return ANYTHING
        case ast.BinOp(op=ast.BitOr()):
            return _union(kind_of(annotation.left, module, depth), kind_of(annotation.right, module, depth))
        case ast.Subscript():
            return _subscript(annotation, module, depth - 1)
        case ast.Name() | ast.Attribute():
            return _named(annotation, module, depth - 1)
    return ANYTHING


def _union(*kinds: Kind) -> Kind:
    return Kind("union", tuple(member for kind in kinds for member in kind.members))


def _subscript(annotation: ast.Subscript, module: Module, depth: int) -> Kind:
    inside = annotation.slice.elts if isinstance(annotation.slice, ast.Tuple) else [annotation.slice]
    name = annotation.value.attr if isinstance(annotation.value, ast.Attribute) else getattr(annotation.value, "id", "")
    if name == "Literal":
        values = tuple(value.value for value in inside if isinstance(value, ast.Constant))
        return Kind("literal", values=values) if len(values) == len(inside) else ANYTHING
    if name == "ClassVar":
        return ANYTHING
    inner = tuple(kind_of(part, module, depth) for part in inside)
    match name:
        case "Optional":
            return _union(*inner, Kind("None"))
        case "Union":
            return _union(*inner)
        case "list" | "List":
            return Kind("list", inner)
        case "dict" | "Dict":
            return Kind("dict", inner)
        case "Annotated":
            return inner[0]
    return ANYTHING


def _named(annotation: ast.Name | ast.Attribute, module: Module, depth: int) -> Kind:
    name = annotation.attr if isinstance(annotation, ast.Attribute) else annotation.id
    full = module.full_name(annotation)
    if full is None:  # a builtin
        return Kind(name) if name in ("int", "float", "bool", "str", "list", "dict") else ANYTHING
    if full == "pathlib.Path":
        return Kind("Path")
    found = find(full)
    if found is None:
        return ANYTHING
    if isinstance(found.node, ast.ClassDef):
        return Kind("class", values=(found.full_name,))
    return kind_of(found.node, found.module, depth) if isinstance(found.node, ast.expr) else ANYTHING


def read_word(text: str, kind: Kind) -> Any:
    """A word of the command line as a value.

    Raises:
        ValueError: it is none of that kind.
    """
    text = text.strip('"')
    match kind.name:
        case "union":
            return _read_member(text, kind)
        case "None":
            if text.lower() in _NONE:
                return None
            raise ValueError(text)
        case "int":
            return int(text)
        case "float":
            return float(text)
        case "bool":
            if text.lower() in _TRUE + _FALSE:
                return text.lower() in _TRUE
            raise ValueError(text)
        case "str" | "Path":
            quoted = len(text) >= 2 and text[0] == text[-1] == "'"
            return text[1:-1] if quoted else text
        case "literal":
            return _read_literal(text, kind)
        case "list":
            return _read_list(text, kind)
        case "dict":
            found = _literal(text)
            if not isinstance(found, dict):
                raise ValueError(text)
            return found
        case "class":
            if not re.fullmatch(r"[A-Za-z_][\w.]*(\(.*\))?(\[.*\])?", text) or text.lower() in _WORDS:
                raise ValueError(text)
            return text  # the name of something that makes one
    return _literal(text)


def _read_member(text: str, kind: Kind) -> Any:
    """The first member that it is one of; numbers before text, and none before all."""
    order = ("None", "literal", "bool", "int", "float", "list", "dict", "class")
    for member in sorted(kind.members, key=lambda m: order.index(m.name) if m.name in order else len(order)):
        try:
            return read_word(text, member)
        except ValueError:
            continue
    raise ValueError(text)


def _read_literal(text: str, kind: Kind) -> Any:
    for value in kind.values:
        if text.strip("'") == str(value):
            return value
    raise ValueError(text)


def _read_list(text: str, kind: Kind) -> Any:
    """A list; a single text where it is texts that are held."""
    item = kind.inner[0] if kind.inner else ANYTHING
    found = _literal(text)
    if isinstance(found, list):
        return [read_word(str(part), item) for part in found]
    if item.name == "str" and isinstance(found, str) and not text.startswith("["):
        return [found]
    raise ValueError(text)


def _literal(text: str) -> Any:
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text


def why_not(value: Any, kind: Kind) -> str | None:
    """What is expected where a value, as a file has it, is none of that kind; None where it is."""
    return None if any(_fits(value, member) for member in kind.members) else str(kind)


def _fits(value: Any, kind: Kind) -> bool:
    if isinstance(value, dict) and "_target_" in value:  # a call makes it
        return True
    match kind.name:
        case "None":
            return value is None
        case "bool":
            return isinstance(value, bool)
        case "int":
            return isinstance(value, int) and not isinstance(value, bool)
        case "float":
            return isinstance(value, int | float) and not isinstance(value, bool)
        case "str" | "Path":
            return isinstance(value, str)
        case "literal":
            return value in kind.values
        case "list":
            items = kind.inner[0] if kind.inner else ANYTHING
            return isinstance(value, list) and all(any(_fits(v, m) for m in items.members) for v in value)
        case "dict" | "class":
            return isinstance(value, dict)
    return True

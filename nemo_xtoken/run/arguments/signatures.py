"""The arguments of functions and classes, read from their source: their names, kinds and plain defaults."""

import ast
import functools
from dataclasses import dataclass
from typing import Any

from nemo_xtoken.run.arguments.kinds import Kind, kind_of
from nemo_xtoken.run.arguments.python_source import Found, Module, find
from nemo_xtoken.run.renamed_paths import current_path

__all__ = ["NO_DEFAULT", "Argument", "Signature", "class_defaults", "signature"]


class _NoDefault:
    """There is no default, or it is made by code."""

    def __repr__(self) -> str:
        return "NO_DEFAULT"


NO_DEFAULT = _NoDefault()
#: Classes whose code hands the arguments that it does not name to a class that is none of its bases.
HANDED_ON = {"lightning.pytorch.strategies.ddp.DDPStrategy": "torch.nn.parallel.distributed.DistributedDataParallel"}


@dataclass(frozen=True)
class Argument:
    """One argument: its kind is worked out when it is asked for."""

    name: str
    annotation: ast.expr | None
    module: Module
    default: Any = NO_DEFAULT

    @property
    def kind(self) -> Kind:
        """What it may be."""
        return kind_of(self.annotation, self.module)


@dataclass(frozen=True)
class Signature:
    """What a function or class takes.

    Attributes:
        target: its full name, where it is defined.
        arguments: by name, in order.
        whole: whether these are all; else it takes others that its source does not name.
    """

    target: str
    arguments: dict[str, Argument]
    whole: bool


@functools.lru_cache(maxsize=256)
def signature(target: str) -> Signature | None:
    """Of the function or class of that full name; None if its source is not found."""
    found = find(current_path(target))
    return None if found is None else _signature(found, 16)


def class_defaults(target: str) -> dict[str, Any]:
    """Plain defaults of a configuration class, with its name as ``_target_``; empty where it is not installed.

    Args:
        target: ``package.module.Class``.
    """
    found = signature(target)
    if found is None:
        return {}
    return {"_target_": target} | {n: a.default for n, a in found.arguments.items() if a.default is not NO_DEFAULT}


def _signature(found: Found, depth: int) -> Signature | None:
    node = found.node
    if isinstance(node, ast.FunctionDef):
        return Signature(found.full_name, _parameters(node, found.module), node.args.kwarg is None)
    if not isinstance(node, ast.ClassDef) or not depth:
        return None
    own = next((s for s in node.body if isinstance(s, ast.FunctionDef) and s.name == "__init__"), None)
    if own is None and not _is_dataclass(node):
        return next((s for s in _bases(found, depth) if s is not None and (s.arguments or not s.whole)), None) or (
            Signature(found.full_name, {}, all(s is not None for s in _bases(found, depth)))
        )
    bases = _bases(found, depth)
    if found.full_name in HANDED_ON:
        further = find(HANDED_ON[found.full_name])
        bases.append(_signature(further, depth - 1) if further is not None else None)
    if own is not None:
        arguments = _parameters(own, found.module, bound=True)
        whole = own.args.kwarg is None
        if not whole and bases:  # what it does not name goes to the class above
            above = [s for s in bases if s is not None]
            for one in reversed(above):
                arguments = {**one.arguments, **arguments}
            whole = len(above) == len(bases) and all(s.whole for s in above)
        return Signature(found.full_name, arguments, whole)
    arguments = {}
    for base in reversed(bases):  # the first base goes before the others
        arguments |= base.arguments if base is not None else {}
    arguments |= _fields(node, found.module)
    return Signature(found.full_name, arguments, all(s is not None and s.whole for s in bases))


def _bases(found: Found, depth: int) -> list[Signature | None]:
    """Signatures of the classes above; None for one without source.  Protocols and the like have no arguments."""
    assert isinstance(found.node, ast.ClassDef)
    signatures: list[Signature | None] = []
    for base in found.node.bases:
        expression = base.value if isinstance(base, ast.Subscript) else base
        name = found.module.full_name(expression)
        if name is None and isinstance(expression, ast.Name):  # a builtin
            continue
        if name is not None and name.partition(".")[0] in ("abc", "typing", "typing_extensions", "collections", "enum"):
            continue
        above = find(name) if name is not None else None
        signatures.append(_signature(above, depth - 1) if above is not None else None)
    return signatures


def _is_dataclass(node: ast.ClassDef) -> bool:
    def name(decorator: ast.expr) -> str:
        function = decorator.func if isinstance(decorator, ast.Call) else decorator
        return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")

    return any(name(decorator) == "dataclass" for decorator in node.decorator_list)


def _parameters(node: ast.FunctionDef, module: Module, bound: bool = False) -> dict[str, Argument]:
    positional = [*node.args.posonlyargs, *node.args.args][int(bound) :]
    defaults: list[ast.expr | None] = [None] * (len(positional) - len(node.args.defaults)) + list(node.args.defaults)
    pairs = [*zip(positional, defaults, strict=False), *zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True)]
    return {a.arg: Argument(a.arg, a.annotation, module, _plain(default)) for a, default in pairs}


def _fields(node: ast.ClassDef, module: Module) -> dict[str, Argument]:
    found = {}
    for statement in node.body:
        if not (isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name)):
            continue
        if "ClassVar" in ast.dump(statement.annotation):
            continue
        options = {}
        if isinstance(statement.value, ast.Call) and getattr(statement.value.func, "id", "") == "field":
            options = {keyword.arg: keyword.value for keyword in statement.value.keywords}
            if isinstance(options.get("init"), ast.Constant) and options["init"].value is False:  # type: ignore[attr-defined]
                continue
        value = options.get("default") if options else statement.value
        name = statement.target.id
        found[name] = Argument(name, statement.annotation, module, _plain(value))
    return found


def _plain(value: ast.expr | None) -> Any:
    """A literal; what a name stands for may depend on what is installed."""
    try:
        return NO_DEFAULT if value is None else ast.literal_eval(value)
    except (ValueError, TypeError):
        return NO_DEFAULT

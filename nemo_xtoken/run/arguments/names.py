"""Whether a run has an argument of some name, by the signatures of the functions and classes that it is made of."""

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from nemo_xtoken.errors import InputError, nearest
from nemo_xtoken.run.arguments.kinds import why_not
from nemo_xtoken.run.arguments.python_source import OURS
from nemo_xtoken.run.arguments.signatures import NO_DEFAULT, Argument, Signature, signature

__all__ = ["MARKS", "argument_at", "check_content"]

#: Keys of a configuration that are not arguments.
MARKS = ("_target_", "_partial_", "_call_")
LISTED = 30  # arguments that a message names


@dataclass(frozen=True)
class _Place:
    """A part of a run.

    Attributes:
        name: ``a.b``; "" for the run itself.
        node: its settings; None where there are none yet.
        held: the class that its argument is annotated with.
        made: whether the run makes one of that class where none is configured.
    """

    name: str
    node: Any
    held: str | None = None
    made: bool = False

    @property
    def signature(self) -> Signature | None:
        """Of what is configured here, or would be made; None: not known here."""
        target = self.node.get("_target_") if isinstance(self.node, Mapping) else None
        found = signature(str(target)) if target is not None else None
        return signature(self.held) if found is None and self.held and self.made else found

    def below(self, name: str, held: str | None = None, by_name: bool = False) -> "_Place":
        """The part of that name in this one.

        Args:
            held: the class that it is annotated with; one of ours is made where none is configured.
            by_name: whether this part holds such ones by name, which are made as well.
        """
        node = self.node.get(name) if isinstance(self.node, Mapping) else None
        return _Place(f"{self.name}.{name}".lstrip("."), node, held, by_name or (held or "").startswith(OURS))


def argument_at(content: Mapping[str, Any], name: str, word: str) -> Argument | None:
    """The argument that ``a.b.c`` is; None where that is not known here.

    Args:
        content: a run as plain data, with ``_target_``.
        word: the override, for error messages.

    Raises:
        InputError: there is no such argument, or what it would belong to is not configured.
    """
    place, parts = _Place("", content), name.split(".")
    while (taken := place.signature) is not None:
        first, *parts = parts
        plain, bracket, _ = first.partition("[")
        argument = taken.arguments.get(plain)
        if argument is None:
            if taken.whole:
                raise _unknown(content, place, plain, taken, word)
            return None
        if bracket or not parts:
            return None if bracket else argument
        kind = argument.kind
        if kind.holds_by_name is not None:
            place = place.below(plain).below(parts.pop(0), kind.holds_by_name, by_name=True)
            if not parts:
                return None
            continue
        place = place.below(plain, kind.holds)
        known = all(member.name != "any" for member in kind.members)
        if known and not isinstance(place.node, Mapping) and not place.made:
            raise InputError(
                f"{place.name} is not configured in this run\n  in: {word}",
                f"{kind}, and then {'.'.join(parts)}",
                f"set {place.name} in the recipe or in its YAML file, or leave this out",
            )
    return None


def _unknown(content: Mapping[str, Any], place: _Place, name: str, taken: Signature, word: str) -> InputError:
    """With the same name elsewhere in the run, else the nearest name here."""
    elsewhere = [full for full in _names(_Place("", content), 5) if full.rpartition(".")[2] == name]
    best = max(elsewhere, key=lambda full: len(_common(full, f"{place.name}.{name}")), default=None)
    hint = f"; did you mean {best}?" if best else nearest(name, taken.arguments)
    listed = list(taken.arguments)
    if len(listed) > LISTED:
        listed = [*difflib.get_close_matches(name, listed, n=10, cutoff=0), ".."]
    return InputError(
        f"there is no argument {name!r} in {place.name or 'the run'}{hint}\n  in: {word}",
        f"one of {', '.join(listed)}" if listed else "nothing below it",
        "correct the name",
    )


def _common(one: str, other: str) -> list[str]:
    pairs = list(zip(one.split("."), other.split("."), strict=False))
    differ = next((i for i, (a, b) in enumerate(pairs) if a != b), len(pairs))
    return one.split(".")[:differ]


def _names(place: _Place, depth: int) -> Iterator[str]:
    """All arguments of a run, as far as they are known."""
    taken = place.signature
    for name, argument in (taken.arguments if taken is not None and depth else {}).items():
        below = place.below(name, argument.kind.holds)
        yield below.name
        yield from _names(below, depth - 1)


def check_content(content: Mapping[str, Any]) -> Iterator[InputError]:
    """All unknown names and all values of a wrong type in a run; a file may have several."""
    yield from _wrong(content, _Place("", content))


def _wrong(content: Mapping[str, Any], place: _Place) -> Iterator[InputError]:
    if isinstance(place.node, list):
        for number, item in enumerate(place.node):
            yield from _wrong(content, _Place(f"{place.name}[{number}]", item))
        return
    if not isinstance(place.node, Mapping):
        return
    taken = place.signature
    for name, value in place.node.items():
        if name in MARKS:
            continue
        argument = taken.arguments.get(str(name)) if taken is not None else None
        if argument is None:
            if taken is not None and taken.whole:
                full = f"{place.name}.{name}".lstrip(".")
                yield _unknown(content, place, str(name), taken, f"{full}: ..")
            else:
                yield from _wrong(content, place.below(name))
            continue
        kind = argument.kind
        left_to_the_user = value is None and argument.default in (None, NO_DEFAULT)
        expected = None if left_to_the_user else why_not(value, kind)
        if expected is not None:
            yield InputError(f"{place.name}.{name}={value!r}".lstrip("."), expected, "correct it")
        elif kind.holds_by_name is not None and isinstance(value, Mapping):
            for key in (k for k in value if k not in MARKS):
                yield from _wrong(content, place.below(name).below(key, kind.holds_by_name, by_name=True))
        else:
            yield from _wrong(content, place.below(name, kind.holds))

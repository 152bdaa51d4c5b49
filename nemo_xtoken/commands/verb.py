"""What a verb is, and how its arguments are read: ``key=value``, ``--key value``, ``--key=value`` and ``--flag``."""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from nemo_xtoken.errors import InputError, nearest
from nemo_xtoken.limits import MOST_PARTS

__all__ = ["PART_OPTIONS", "Option", "UsageError", "Verb", "keep_inputs", "parse_arguments"]

#: Files that a tokenizer's or a model's folder consists of.
PARTS = ("*token*.json", "*token*.model", "*.tiktoken", "tekken.json", "vocab.*", "merges.txt", "*config.json",
         "chat_template.*", "model*.safetensors*", "pytorch_model*")  # fmt: skip


class UsageError(Exception):
    """A command line that cannot be read; the text says what was found and what would be right."""


@dataclass(frozen=True)
class Option:
    """One argument of a verb.

    Attributes:
        name: with underscores; on the command line dashes are accepted too.
        help: one line.
        kind: ``str``, ``int`` or ``float``; ``bool`` makes a flag (``--json``, ``--no-json``, ``json=true``).
        default: its value when it is not given; shown in the help unless None.
        required: whether a run without it is refused.
        choices: the only values allowed, when not empty.
        least, most: of a number, both ends allowed; a float must be finite in any case.
        above: of a number, what it must be more than.
        empty: whether an empty text is a value, and not a slip.
        goes_with: another argument without which this one does nothing.
        writes: "file" or "folder": what the verb writes at the path that it names.
        adds: whether it adds to what is there, so that this may be an input too.
    """

    name: str
    help: str
    kind: type = str
    default: Any = None
    required: bool = False
    choices: tuple[str, ...] = ()
    least: float | None = None
    most: float | None = None
    above: float | None = None
    empty: bool = False
    goes_with: str | None = None
    writes: str = ""
    adds: bool = False

    @property
    def range(self) -> str:
        """What a number must be, for people; empty where any will do."""
        least, most, above = (None if x is None else f"{x:,}" for x in (self.least, self.most, self.above))
        if above is not None:
            return f"more than {above}" + (f", up to {most}" if most is not None else "")
        if least is not None and most is not None:
            return f"from {least} to {most}"
        return f"{least} or more" if least is not None else ""

    def holds(self, value: float) -> bool:
        """Whether a number is in range."""
        return (
            math.isfinite(value)
            and (self.least is None or value >= self.least)
            and (self.most is None or value <= self.most)
            and (self.above is None or value > self.above)
        )


#: Which part of the work a process does.
PART_OPTIONS = (
    Option(
        "part",
        "which part this is, from 0; default the task's number in a Slurm array",
        int,
        least=0,
        most=MOST_PARTS,
    ),
    Option(
        "parts",
        "how many parts there are; default the tasks of the Slurm array, else 1",
        int,
        least=1,
        most=MOST_PARTS,
    ),
)


@dataclass(frozen=True)
class Verb:
    """One verb.

    Attributes:
        name: as typed.
        summary: one line for the list of verbs.
        description: paragraphs for the verb's own help.
        options: its arguments.
        examples: pairs of (arguments, what they do); shown after the name of the command.
        run: does the work; gets every option by name and returns the exit status.
        rest: what else may be given as ``key=value``, for the help; those words arrive as a list under ``rest``.
        actions: words one of which may come first; it arrives under ``action``, None without one.
        first: the option that a first word alone is the value of.
    """

    name: str
    summary: str
    description: str
    options: tuple[Option, ...]
    examples: tuple[tuple[str, str], ...]
    run: Callable[[Mapping[str, Any]], int]
    rest: str = ""
    actions: tuple[str, ...] = ()
    first: str = ""


def parse_arguments(verb: Verb, arguments: Sequence[str]) -> dict[str, Any]:
    """The value of every option of ``verb``.

    Raises:
        UsageError: an unknown, repeated, missing or unreadable argument, a number out of range, an empty text, or one
            that does nothing without another; where the verb takes others as well, one that is nearly the name of an
            option counts as unknown.
    """
    options = {option.name: option for option in verb.options}
    given: dict[str, Any] = {}
    rest: list[str] = []
    action = arguments[0] if arguments and arguments[0] in verb.actions else None
    if verb.first and arguments and not arguments[0].startswith("-") and "=" not in arguments[0]:
        arguments = [f"{verb.first}={arguments[0]}", *arguments[1:]]
    words = iter(arguments[1:] if action else arguments)
    for word in words:
        dashed = word.startswith("--")
        key, equals, value = word.removeprefix("--").partition("=")
        name = key.replace("-", "_")
        negated = dashed and not equals and name.startswith("no_") and name[3:] in options
        name = name[3:] if negated else name
        option = options.get(name)
        if option is None and verb.rest and equals and key and not dashed and not nearest(name, options, 0.8):
            _check_utf8(key, value)
            rest.append(word)
            continue
        if option is None or (negated and option.kind is not bool):
            shown = f"--{key}" if dashed else key
            raise UsageError(
                f"{verb.name!r} has no argument {shown!r}{nearest(name, options)}\n"
                f"  its arguments: {', '.join(f'{n}=' for n in options)}"
            )
        if name in given:
            raise UsageError(f"{name!r} is given twice")
        if equals:
            given[name] = _convert(option, value)
        elif option.kind is bool and dashed:
            given[name] = not negated
        elif dashed:
            following = next(words, None)
            if following is None:
                raise UsageError(f"--{key} needs a value: --{key} VALUE or {name}=VALUE")
            given[name] = _convert(option, following)
        else:
            raise UsageError(f"{word!r} has no value: write {name}=VALUE")
    if missing := [option.name for option in verb.options if option.required and option.name not in given]:
        raise UsageError(f"{verb.name!r} needs {' and '.join(f'{name}=' for name in missing)}")
    for option in verb.options:
        if option.name in given and option.goes_with and not given.get(option.goes_with):
            raise UsageError(f"{option.name}= does nothing without {option.goes_with}=: leave it out, or give both")
    values = {name: given.get(name, option.default) for name, option in options.items()}
    return values | ({"rest": rest} if verb.rest else {}) | ({"action": action} if verb.actions else {})


def keep_inputs(verb: Verb, arguments: Mapping[str, Any]) -> None:
    """Nothing that a command reads is to be replaced by what it writes.

    Raises:
        InputError: a file or folder that is to be written is one that another argument names, holds one of these, or
            is a part of a tokenizer or a model that one of these holds.
    """
    given = {option: arguments[option.name] for option in verb.options if isinstance(arguments[option.name], str)}
    there = {option: path for option, text in given.items() if not option.choices and (path := _regular(text))}
    inputs = {option.name: path for option, path in there.items() if not option.writes}
    for option, out in ((option, path) for option, path in there.items() if option.writes and not option.adds):
        for name, read in inputs.items():
            part = out.is_file() and out.parent == read and any(fnmatch(out.name, pattern) for pattern in PARTS)
            if read == out or out in read.parents or part:
                raise InputError(
                    f"{option.name}={given[option]}, which {name}={arguments[name]} reads",
                    "another file or folder: what is read would be lost",
                    f"name another with {option.name}=",
                )


def _regular(text: str) -> Path | None:
    """The file or folder of that name, without links; None where there is none, or a terminal or a pipe."""
    path = os.path.expanduser(text)  # os.path answers for any text; Path raises for one that is too long to be a name
    return Path(os.path.realpath(path)) if text and (os.path.isfile(path) or os.path.isdir(path)) else None


def _check_utf8(name: str, text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:  # bytes of the command line that are not UTF-8
        raise UsageError(f"{name}={text!r} is not UTF-8 (the bytes that are not are shown as \\udc..)") from None


def _convert(option: Option, text: str) -> Any:
    _check_utf8(option.name, text)
    if option.choices and text not in option.choices:
        raise UsageError(f"{option.name}={text!r}{nearest(text, option.choices)}: one of {', '.join(option.choices)}")
    if option.kind is bool:
        words = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
        if text.lower() not in words:
            raise UsageError(f"{option.name}={text!r}: true or false is expected")
        return words[text.lower()]
    if not text and not option.empty:
        raise UsageError(f"{option.name}= is empty: give it a value, or leave it out")
    if option.writes:  # where not every shell does it, as in --out=~/w.safetensors
        return os.path.expanduser(text)
    try:
        value = option.kind(text)
        if isinstance(value, int | float) and not option.holds(value):
            raise UsageError(f"{option.name}={text}: {option.range or 'a finite number'} is expected")
        return value
    except ValueError:
        wanted = {"int": "a whole number", "float": "a number"}.get(option.kind.__name__, option.kind.__name__)
        raise UsageError(f"{option.name}={text!r}: {wanted} is expected") from None

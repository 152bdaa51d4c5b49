"""What a verb is, and how its arguments are read: ``key=value``, ``--key value``, ``--key=value`` and ``--flag``."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nemo_xtoken.errors import nearest

__all__ = ["Option", "UsageError", "Verb", "parse_arguments"]


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
    """

    name: str
    help: str
    kind: type = str
    default: Any = None
    required: bool = False
    choices: tuple[str, ...] = ()


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
    """

    name: str
    summary: str
    description: str
    options: tuple[Option, ...]
    examples: tuple[tuple[str, str], ...]
    run: Callable[[Mapping[str, Any]], int]
    rest: str = ""


def parse_arguments(verb: Verb, arguments: Sequence[str]) -> dict[str, Any]:
    """The value of every option of ``verb``.

    Raises:
        UsageError: an unknown, repeated, missing or unreadable argument; where the verb takes others as well, one that
            is nearly the name of an option counts as unknown.
    """
    options = {option.name: option for option in verb.options}
    given: dict[str, Any] = {}
    rest: list[str] = []
    words = iter(arguments)
    for word in words:
        dashed = word.startswith("--")
        key, equals, value = word.removeprefix("--").partition("=")
        name = key.replace("-", "_")
        negated = dashed and not equals and name.startswith("no_") and name[3:] in options
        name = name[3:] if negated else name
        option = options.get(name)
        if option is None and verb.rest and equals and not dashed and not nearest(name, options, 0.8):
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
    values = {name: given.get(name, option.default) for name, option in options.items()}
    return values | ({"rest": rest} if verb.rest else {})


def _convert(option: Option, text: str) -> Any:
    if option.choices and text not in option.choices:
        raise UsageError(f"{option.name}={text!r}{nearest(text, option.choices)}: one of {', '.join(option.choices)}")
    if option.kind is bool:
        words = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
        if text.lower() not in words:
            raise UsageError(f"{option.name}={text!r}: true or false is expected")
        return words[text.lower()]
    try:
        return option.kind(text)
    except ValueError:
        wanted = {"int": "a whole number", "float": "a number"}.get(option.kind.__name__, option.kind.__name__)
        raise UsageError(f"{option.name}={text!r}: {wanted} is expected") from None

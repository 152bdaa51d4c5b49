"""``xtoken settings``: what can be set in a run, with kinds, defaults and a sentence on each."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from nemo_xtoken.commands.verb import Option, Verb
from nemo_xtoken.errors import InputError, nearest

if TYPE_CHECKING:
    from nemo_xtoken.run.arguments.settings_list import Setting

__all__ = ["VERB", "settings_text"]

WIDTH = 78
CHOSEN = "chosen by the machine"
HEAD = """\
# Every setting of a run

Of `nemo llm distill --recipe xtoken`, as they are written on its command line: `data.text.held_out=100`. The other
recipes have the same, with other values. `xtoken settings WORD` finds some of them at a shell, and
`xtoken settings recipe=NAME` has another recipe's values. What NeMo, Lightning and Megatron have besides can be set by
the same way; here are those of theirs that the recipe sets. `teacher=PATH` is short for `teacher.path=PATH`, and
`teachers.NAME=PATH` adds a teacher, with all the settings of `teacher` below that name.

This page is written by `xtoken settings --markdown`, from the signatures and docstrings in the code.
"""


def _run(arguments: Mapping[str, Any]) -> int:
    from nemo_xtoken.commands.run_settings import find_recipe, read_settings
    from nemo_xtoken.preflight.fitting import left_open
    from nemo_xtoken.run.arguments.settings_list import settings_of

    recipe = find_recipe(arguments["recipe"])
    settings = read_settings(recipe, None, (), None)
    found, chosen = settings_of(settings.content), left_open(settings)
    word = arguments["word"]
    if word:
        shown = [s for s in found if word.lower() in s.name.lower()] or [
            s for s in found if word.lower() in s.sentence.lower()
        ]
        if not shown:
            names = [s.name for s in found]
            last = {name.rpartition(".")[2] for name in names}
            raise InputError(
                f"no setting of {recipe.name} has {word!r} in its name or its sentence{nearest(word, last)}",
                "a part of a name, such as scale, or a word of what it does",
                "`xtoken settings` without a word lists all",
            )
        found = shown
    print(_markdown(found, chosen) if arguments["markdown"] else settings_text(found, chosen), end="")
    return 0


def settings_text(found: Sequence["Setting"], chosen: Sequence[str] = ()) -> str:
    """Two lines or more for each, 80 columns wide.

    Args:
        chosen: names of what the machine chooses.
    """
    lines = []
    for setting in found:
        value = f": {CHOSEN}" if setting.name in chosen else f"={_value(setting)}"
        lines.append(f"{setting.name}{value}  ({setting.kind})")
        lines += textwrap.wrap(setting.sentence, WIDTH, initial_indent="    ", subsequent_indent="    ")
    return "\n".join(lines) + "\n"


def _markdown(found: Sequence["Setting"], chosen: Sequence[str]) -> str:
    lines, group = [HEAD], None
    for setting in found:
        first = setting.name.partition(".")[0]
        now = first if "." in setting.name else "the run"
        if now != group:
            group = now
            lines += [
                f"\n## `{now}`\n" if now != "the run" else "\n## The run itself\n",
                "| | default | |",
                "|---|---|---|",
            ]
        value = f"`{_value(setting)}`" if _value(setting) else ""
        value = CHOSEN if setting.name in chosen else value
        kind = setting.kind.replace("|", "\\|")
        says = setting.sentence.replace("|", "\\|")
        lines.append(f"| `{setting.name}` | {value} | {says} ({kind}) |")
    return "\n".join(lines) + "\n"


def _value(setting: "Setting") -> str:
    """The recipe's, else the default."""
    return setting.default if setting.recipe is None else setting.recipe


VERB = Verb(
    name="settings",
    summary="list what can be set in a run: names, kinds, defaults, a sentence on each",
    description=(
        "With a word, the settings that have it in their name, else those that have it in what they do. Values are the "
        "recipe's, else the defaults. They are read from the code's signatures and docstrings; those of NeMo, "
        "Lightning and Megatron that a recipe sets are listed where these are installed."
    ),
    options=(
        Option("word", "a part of a name, or a word; it can be written alone: xtoken settings scale"),
        Option("recipe", "whose values are shown", default="xtoken"),
        Option("markdown", "print the page docs/settings.md", bool, False),
    ),
    examples=(
        ("settings", "all of them"),
        ("settings held_out", "those with held_out in their name"),
        ("settings temperature recipe=xtoken_swap", "with the values of another recipe"),
    ),
    run=_run,
    first="word",
)

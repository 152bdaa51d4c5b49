"""``xtoken env``: which of NeMo, Megatron, Transformer Engine and Apex is here, and what is lost without the others."""

import json
from collections.abc import Mapping
from typing import Any

from nemo_xtoken.commands.verb import Option, Verb

__all__ = ["VERB"]


def _run(arguments: Mapping[str, Any]) -> int:
    from nemo_xtoken.environment import find_stack, missing_requirements

    if arguments["missing"]:
        print("\n".join(missing_requirements()))
        return 0
    stack = find_stack()
    if arguments["json"]:
        print(json.dumps({f.component.name: {"version": f.version, "remark": f.remark} for f in stack.found}))
    else:
        print(stack)
    return 0


VERB = Verb(
    name="env",
    summary="say which of NeMo, Megatron, Transformer Engine and Apex is here, and what is lost without the others",
    description=(
        "Looks for the packages that training uses, imports none of them, and says what is lost without each. "
        "In Python it is nemo_xtoken.stack; a run writes it to its log in one line."
    ),
    options=(
        Option(
            "missing",
            "print what this package and a teacher elsewhere require and is not installed, a line each for pip",
            bool,
            False,
        ),
        Option("json", "print JSON", bool, False),
    ),
    examples=(("env", "the list"), ("env --missing", "what an installation with --no-deps left out")),
    run=_run,
)

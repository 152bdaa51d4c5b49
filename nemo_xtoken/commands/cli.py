"""The console script ``xtoken VERB``: light verbs that load neither NeMo nor Megatron.

Exit status: 0 done, 1 unexpected error, 2 wrong input or wrong command line, 130 interrupted.
"""

import codecs
import io
import json
import logging
import os
import sys
import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TextIO

import nemo_xtoken
from nemo_xtoken.commands.verb import Option, UsageError, Verb, keep_inputs, parse_arguments
from nemo_xtoken.commands.verbs import all_verbs
from nemo_xtoken.environment import missing_package
from nemo_xtoken.errors import InputError, nearest
from nemo_xtoken.file_errors import check_target, file_problem

__all__ = ["main", "refusal", "report_error"]

_ESCAPED = "nemo_xtoken.escaped"


def main(arguments: Sequence[str] | None = None, program: str = "xtoken") -> int:
    """Runs one verb and returns the exit status.

    Args:
        arguments: without the program's name; ``sys.argv[1:]`` by default.
        program: how the command was called, for help and messages.
    """
    # PyTorch's, of a module that it imports by itself.  (Under `nemo`, nemo_run imports it before it looks for us.)
    warnings.filterwarnings("ignore", "The pynvml package is deprecated", FutureWarning)
    try:
        status = _main(list(sys.argv[1:] if arguments is None else arguments), program)
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # the reader of a pipe has gone, as with `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _main(words: list[str], program: str) -> int:
    _escape_what_cannot_be_shown()
    verbs = all_verbs()
    if not words or words[0] in ("-h", "--help", "help"):
        verb = verbs.get(words[1]) if len(words) > 1 else None
        print(_verb_help(verb, program) if verb else _general_help(verbs, program))
        return 0
    if words[0] in ("-V", "--version", "version"):
        print(f"nemo_xtoken {nemo_xtoken.__version__}")
        return 0
    verb = verbs.get(words[0])
    if verb is None:
        report_error(f"there is no verb {words[0]!r}{nearest(words[0], verbs)}\n  the verbs: {', '.join(verbs)}")
        return 2
    if any(word in ("-h", "--help") for word in words[1:]):
        print(_verb_help(verb, program))
        return 0
    try:
        values = parse_arguments(verb, words[1:])
        for option in verb.options:
            if option.writes and values[option.name] is not None:
                check_target(option.name, values[option.name], option.writes == "folder")
        keep_inputs(verb, values)
        with _terminal():
            return verb.run(values)
    except UsageError as error:
        report_error(f"{error}\n  see `{program} {verb.name} --help`")
        return 2
    except InputError as error:
        report_error(str(error))
        return 2
    except BrokenPipeError:
        raise
    except KeyboardInterrupt:
        report_error("interrupted")
        return 130
    except Exception as error:
        problem = refusal(error, f"{program} {verb.name}")
        if problem is None and isinstance(error, FileNotFoundError) and error.filename is not None:
            problem = InputError(
                f"{error.filename} is not there, and cannot be made", "a place for files", "correct the path"
            )
        if problem is None:
            raise
        report_error(str(problem))
        return 2


def _escape_what_cannot_be_shown() -> None:
    """Characters that an output's encoding lacks (an ASCII terminal) are shown as JSON writes them: ``\\u00e9``."""
    codecs.register_error(_ESCAPED, _escaped)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors in ("strict", "backslashreplace"):
            stream.reconfigure(errors=_ESCAPED)


def _escaped(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return json.dumps(error.object[error.start : error.end])[1:-1], error.end


def _terminal() -> AbstractContextManager[Any]:
    """Shows progress and warnings; where rich is absent, as on a login node with little installed, warnings alone."""
    try:
        from nemo_xtoken.commands.terminal import Terminal  # loads rich, which help does not need
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] != "rich":
            raise
        return nullcontext()
    return Terminal(level=logging.WARNING, captures=False)


def refusal(error: BaseException, what: str) -> InputError | None:
    """What the user can do about an error that is no fault of this package; None: it shows its traceback.

    Args:
        what: was to be done: ``xtoken bits``.
    """
    if type(error).__name__ == "MisconfigurationException":  # Lightning's, of a trainer that cannot be
        return InputError(" ".join(str(error).split()), "settings that Lightning's trainer takes", "correct trainer.*")
    return file_problem(error) or missing_package(error, what)


def report_error(message: str, stream: TextIO | None = None) -> None:
    """Prints ``error: message``, in red on a terminal (unless ``NO_COLOR`` is set), plain elsewhere."""
    stream = sys.stderr if stream is None else stream
    text = f"error: {message}"
    if stream.isatty() and not os.environ.get("NO_COLOR"):
        text = f"\x1b[31m{text}\x1b[0m"
    print(text, file=stream, flush=True)


def _general_help(verbs: dict[str, Verb], program: str) -> str:
    width = max(map(len, verbs))
    return "\n".join(
        [
            f"usage: {program} VERB [key=value | --key value ...]",
            "",
            "Tools for distillation across tokenizers. They need no GPU. import, export, cache, serve and",
            "evaluate run= need NeMo or Megatron-Bridge.",
            "",
            "verbs:",
            *(f"  {verb.name:<{width}}  {verb.summary}" for verb in verbs.values()),
            "",
            "examples:",
            *(f"  {program} {verb.examples[0][0]}" for verb in verbs.values() if verb.examples),
            "",
            f"`{program} VERB --help` explains a verb, `{program} --version` prints the version.",
            "Training is `nemo llm distill --recipe NAME`; `nemo llm distill --list-recipes` lists the recipes.",
        ]
    )


def _verb_help(verb: Verb, program: str) -> str:
    import textwrap

    width = max((len(option.name) for option in verb.options), default=0) + 1
    rest = [f"  {'':<{width}}  {line}" for line in textwrap.wrap(verb.rest, 100)]
    return "\n".join(
        [
            f"usage: {program} {verb.name} {' '.join([*map(_usage, verb.options), *['[KEY=VALUE ..]'] * bool(rest)])}",
            "",
            *textwrap.wrap(verb.description, 100),
            "",
            "arguments (key=value, --key value and --key=value are the same):",
            *(f"  {option.name + '=':<{width}}  {option.help}{_remark(option)}" for option in verb.options),
            *rest,
            "",
            "examples:",
            *(f"  # {what}\n  {program} {words}" for words, what in verb.examples),
        ]
    )


def _usage(option: Option) -> str:
    text = f"--{option.name}" if option.kind is bool else f"{option.name}=VALUE"
    return text if option.required else f"[{text}]"


def _remark(option: Option) -> str:
    remarks = ["required"] if option.required else []
    if option.choices:
        remarks.append("one of " + ", ".join(option.choices))
    if option.default is not None and option.kind is not bool:
        remarks.append(f"default {option.default}")
    return f" ({'; '.join(remarks)})" if remarks else ""


if __name__ == "__main__":
    sys.exit(main())

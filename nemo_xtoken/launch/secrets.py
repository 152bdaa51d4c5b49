"""Keeps secrets out of scripts: they travel by name, from the shell that submits to the job."""

import re
from collections.abc import Iterable, Mapping

from nemo_xtoken.errors import InputError

__all__ = ["check_environment", "check_words"]

NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)
SECRET_NAME = re.compile(
    r"(^|_)(TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIALS?|API_?KEY|ACCESS_?KEY|PRIVATE_?KEY|AUTH)($|_)", re.I
)
# What tokens of Hugging Face, NGC, GitHub, GitLab, OpenAI-style services and AWS look like.
SECRET_VALUE = re.compile(
    r"\b(hf_[A-Za-z0-9]{20,}|nvapi-[\w-]{20,}|gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,}|glpat-[\w-]{15,}"
    r"|sk-[\w-]{20,}|AKIA[A-Z0-9]{16})"
)

ASSIGNMENT = re.compile(r"\b([A-Z][A-Z0-9_]*)=[\"']?([^\s\"']+)")


def check_environment(values: Mapping[str, str], names: Iterable[str]) -> None:
    """Refuses variables with an invalid name, and values that look like secrets."""
    for name in (*values, *names):
        if not NAME.fullmatch(name):
            raise InputError(f"a variable named {name!r}", "letters, digits and _; for pass_env no value", "correct it")
    for name in values:
        if SECRET_NAME.search(name):
            raise InputError(
                f"a value for {name} in env_vars, which would be written into the script",
                "the name alone",
                f"export {name} in your shell and put {name} into executor.pass_env",
            )
    check_words(values.values())


def check_words(words: Iterable[str]) -> None:
    """Refuses words of a script that look like an access token; the message does not show it."""
    for word in words:
        if match := SECRET_VALUE.search(word):
            raise InputError(
                f"what looks like a secret ({match[0][:4]}..) in a value that would be written into the script",
                "no secrets in scripts",
                "export it in your shell and put its name into executor.pass_env",
            )
        for name, value in ASSIGNMENT.findall(word):
            if SECRET_NAME.search(name) and not value.startswith("$"):
                raise InputError(
                    f"a value for {name}, which would be written into the script",
                    "no secrets in scripts",
                    f"export {name} in your shell and put the name into executor.pass_env",
                )

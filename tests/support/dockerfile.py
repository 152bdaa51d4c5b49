"""The Dockerfile's instructions, and the files that docker sends with it."""

import fnmatch
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]


def instructions() -> Iterator[tuple[str, str]]:
    """(instruction, the rest) of every line, continued lines joined, comments left out."""
    text = "\n".join(line for line in (ROOT / "Dockerfile").read_text().splitlines() if not line.startswith("#"))
    for line in re.sub(r"\\\n", "", text).splitlines():
        if line.strip():
            word, _, rest = line.strip().partition(" ")
            yield word, rest.strip()


def stages() -> dict[str, list[tuple[str, str]]]:
    """Stage name -> its instructions."""
    found: dict[str, list[tuple[str, str]]] = {}
    for word, rest in instructions():
        if word == "FROM":
            name = rest.split()[2]
            assert rest.split()[1] == "AS"
            found[name] = []
        if found:
            found[name].append((word, rest))
    return found


def copied(stage: list[tuple[str, str]]) -> Iterator[str]:
    """What a stage copies from the context: files and folders."""
    for word, rest in stage:
        if word == "COPY" and "--from=" not in rest:
            yield from [part for part in rest.split() if not part.startswith("--")][:-1]


def context() -> Iterator[str]:
    """The files that docker sends: what .dockerignore leaves, its rules applied in order."""
    rules = [r for r in (ROOT / ".dockerignore").read_text().split("\n") if r and not r.startswith("#")]
    assert not any(rule.startswith("!**/") for rule in rules)  # nothing in a folder that is left out is taken again
    for top in ROOT.iterdir():
        if _ignored(top.name, rules):
            continue
        for path in top.rglob("*") if top.is_dir() else (top,):
            if path.is_file() and not _ignored(name := path.relative_to(ROOT).as_posix(), rules):
                yield name


def _ignored(name: str, rules: list[str]) -> bool:
    ignored, parts = False, name.split("/")
    for rule in rules:
        pattern = rule.removeprefix("!")
        anywhere = pattern.removeprefix("**/")
        several = parts if anywhere != pattern else parts[:1]
        if any(fnmatch.fnmatch(part, anywhere) for part in several):
            ignored = not rule.startswith("!")
    return ignored

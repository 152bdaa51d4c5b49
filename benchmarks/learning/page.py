"""The part of docs/learning.md about this study: every number, table and picture of it from the files of results."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nemo_xtoken.files import atomic_path

from .lengths import QUICK
from .report import COLUMNS, claims_table, draw, summary, table
from .statistics import difference
from .study import TEACHER_NAMES

__all__ = ["PAGE", "RESULTS", "kept", "page", "write_page"]

Results = Mapping[str, Mapping[int, Mapping[str, Any]]]

RESULTS = Path(__file__).parent / "results"
PAGE = Path(__file__).parents[2] / "docs" / "learning.md"
TEXT = Path(__file__).with_name("page.md")
PICTURE = "learning.png"
BEGIN = "<!-- from here: python -m benchmarks.learning --page, of benchmarks/learning/page.md and results -->\n"
END = "<!-- to here -->\n"


def kept(folder: Path = RESULTS) -> dict[str, dict[int, dict[str, Any]]]:
    """Results of the study of the page by name and seed; teachers and the start have seed 0."""
    found: dict[str, dict[int, dict[str, Any]]] = {}
    for file in sorted((folder / QUICK.name).glob("*.json")):
        result = json.loads(file.read_text("utf-8"))
        found.setdefault(result["name"], {})[result["seed"]] = result
    return found


class _Figures:
    """``{arm:measure}`` in a text: its mean; ``{arm-other:measure}``: the difference, paired by seed."""

    def __init__(self, results: Results, name: str) -> None:
        self.results, (self.arm, _, self.other) = results, name.partition("-")

    def _values(self, name: str, measure: str) -> dict[int, float]:
        return {seed: result["measures"][measure] for seed, result in self.results[name].items()}

    def __format__(self, measure: str) -> str:
        _, factor, digits = COLUMNS[measure]
        values = self._values(self.arm, measure)
        if not self.other:
            return f"{factor * sum(values.values()) / len(values):.{digits}f}"
        found = difference(values, self._values(self.other, measure))
        if found is None:
            raise ValueError(f"{self.arm} and {self.other} share no seed")
        return found.written(factor, digits, sign=True).strip("*")


class _Names(dict[str, Any]):
    """Of a text's fields."""

    def __init__(self, results: Results, texts: Mapping[str, str]) -> None:
        super().__init__(texts)
        self.results = results

    def __missing__(self, name: str) -> _Figures:
        return _Figures(self.results, name)


def page(folder: Path = RESULTS) -> str:
    """The part of the page, with both marks."""
    results = kept(folder)
    arms, teachers = _parted(results)
    about = {
        "claims": claims_table(summary(arms)).rstrip(),
        "results": _results(arms, teachers) if arms else "No student has been trained yet.",
        **{name: str(value) for name, value in asdict(QUICK).items()},
    }
    return BEGIN + TEXT.read_text("utf-8").format_map(_Names(results, about)) + END


def write_page(folder: Path = RESULTS) -> None:
    """Writes the part anew, and its picture."""
    text = PAGE.read_text("utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    with atomic_path(PAGE) as temporary:
        temporary.write_text(before + page(folder) + after, "utf-8")
    arms, teachers = _parted(kept(folder))
    if arms:
        draw(summary(arms), teachers, PAGE.with_name(PICTURE))


def _parted(results: Results) -> tuple[dict[str, Any], dict[str, Any]]:
    """The students by arm and seed, and the teachers."""
    arms = {name: by_seed for name, by_seed in results.items() if all(r["arm"] for r in by_seed.values())}
    return arms, {name: results[name][0] for name in TEACHER_NAMES if name in results}


def _results(arms: Results, teachers: Mapping[str, Any]) -> str:
    every = [result for by_seed in arms.values() for result in by_seed.values()]
    seeds = ", ".join(map(str, sorted({result["seed"] for result in every})))
    made = "; ".join(sorted({_made_with(result["machine"]) for result in every}))
    return "\n\n".join(
        [
            f"{len(every)} students, seeds {seeds}: {made}.",
            table(summary(arms), teachers).rstrip(),
            f"![right answers, nats beside cross-entropy only, numerals over training]({PICTURE})",
        ]
    )


def _made_with(machine: Mapping[str, Any]) -> str:
    return f"Python {machine['python']}, torch {machine['packages']['torch']}, {machine['system']}"

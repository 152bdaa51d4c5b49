"""What the documents say of teachers elsewhere, from ``benchmarks/teachers.json``.

Used by ``benchmarks/teachers.py --page``.
"""

import json
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench import markdown
from blocks import fill

__all__ = ["DOCUMENTS", "RESULTS", "WORD", "blocks", "fill_documents", "merged", "with_rows"]

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "teachers.json"
#: Where blocks of this word are filled in.
WORD = "teachers"
DOCUMENTS = (ROOT / "benchmarks" / "REPORT.md", ROOT / "docs" / "teachers.md")


def fill_documents() -> None:
    """Writes the blocks."""
    fill(DOCUMENTS, WORD, blocks(json.loads(RESULTS.read_text("utf-8"))))


def blocks(results: Mapping[str, Any]) -> dict[str, str]:
    """Every block by its name.

    Args:
        results: what the file has.
    """
    part = results["sources"]
    return {
        "sources": _sources(part),
        "training": _training(results["training"]),
        "waiting": _waiting(part),
        "reading": _reading(part),
        "angles": _angles(results["models"]),
    }


def _machine(part: Mapping[str, Any]) -> str:
    """Where and when a part was measured."""
    about = part["machine"]
    share = f", of which a busy process had {part['core']:.0%} of one" if "core" in part else ""
    return (
        f"Measured {about['date']} on {about['processor']}, {about['cores']} cores{share}, load {about['load']:.0f}; "
        f"Python {about['python']}, torch {about['packages']['torch']}."
    )


def _share(value: float) -> str:
    return f"{value:.1%}" if value >= 5e-4 else "< 0.05%"


def _sources(part: Mapping[str, Any]) -> str:
    shape = part["shape"]
    head = (
        f"{_machine(part)} H = {shape['hidden']:,}; a step is {shape['rows']} rows of {shape['length']:,} tokens and a "
        f"pause of {shape['seconds']:g} s in place of the student; a teacher gives {shape['rate']:,.0f} tokens/s, so "
        f"that {_needed(shape):.2f} suffice; {shape['steps']} steps after a first one. Files lie in the page cache."
    )
    anew: dict[str, list[str]] = {}
    for row in part["sources"]:
        if "machine" in row:
            anew.setdefault(_machine(row), []).append(f'"{row["teacher"]}"')
    for said, names in anew.items():
        head += f" {' and '.join(names)}: {said[0].lower()}{said[1:]}"
    rows = [
        (row["teacher"], f"{row['tokens/s']:,.0f}", _share(row["waiting"]), _wire(row, shape))
        for row in part["sources"]
    ]
    steps = markdown(
        ("teacher", "tokens/s of the student", "it waits", "bytes a token on the wire, times those of the states"), rows
    )
    disk = markdown(
        ("format", "bytes a token on disk", "tokens/s written", "read and checked", "read again"),
        [
            (row["format"], *(f"{row[key]:,.0f}" for key in ("bytes a token", "write", "read, checked", "read again")))
            for row in part["disk"]
        ],
    )
    fast = part["service"]
    service = (
        f"As fast as it goes, without either pause, one replica and one student exchange {fast['tokens/s']:,.0f} "
        f"tokens/s, encrypted, of {shape['hidden'] * 2:,} bytes each. A core writes and reads states of random numbers "
        "at these rates, in seconds of its own:"
    )
    return f"{head}\n\n{steps}\n\n{service}\n\n{disk}\n"


def _wire(row: Mapping[str, Any], shape: Mapping[str, Any]) -> str:
    return f"{row['wire'] * 2 * shape['hidden']:,.1f}, {row['wire']:.5f}" if "wire" in row else ""


def _waiting(part: Mapping[str, Any]) -> str:
    """In a few sentences."""
    shape = part["shape"]
    shares = {row["teacher"].removeprefix("remote, "): _share(row["waiting"]) for row in part["sources"]}
    wire = max(row.get("wire", 0.0) for row in part["sources"])
    said = ", ".join(f"by {name} {share}" for name, share in shares.items() if "replica" in name)
    disk = ", ".join(f"as `{name[8:]}` {share}" for name, share in shares.items() if name.startswith("cached, "))
    return (
        f"Teachers of {shape['rate']:,.0f} tokens a second, and a student that takes {shape['seconds']:g} s for "
        f"{shape['rows']} rows of {shape['length']:,} tokens at\nH = {shape['hidden']:,}, so that {_needed(shape):.2f} "
        f"suffice: the share of its time in which it waits is {shares['colocated']} by one beside it,\n{said}, "
        f"by states on disk {disk}. On the\nwire are {wire:.4f} times the bytes of the "
        f"states ([all figures](../benchmarks/REPORT.md)).\n"
    )


def _reading(part: Mapping[str, Any]) -> str:
    """In a sentence."""
    rates = {row["format"]: f"{row['read, checked']:,.0f}" for row in part["disk"]}
    return (
        f"A second of a core reads and checks {rates['bf16']} tokens as `bf16` at H = {part['shape']['hidden']:,} and "
        f"{rates['fp8']} as `fp8` from\nfiles in memory, on the machine of [the figures](../benchmarks/REPORT.md).\n"
    )


def _needed(shape: Mapping[str, float]) -> float:
    return shape["rows"] * shape["length"] / shape["seconds"] / shape["rate"]


def _training(part: Mapping[str, Any]) -> str:
    about = part["shape"]
    head = (
        f"{_machine(part)} The models and the kind of text of `xtoken_tiny`, {about['steps']} steps of "
        f"{about['batch']} samples with P-KL at scale 1 in float32, by a teacher of {about['teacher_steps']} steps; "
        "the same start, seed, samples and order for all, once. Losses are means of the last 10 steps, in nats; bits a "
        "byte are of held-out text. The value of KD by samples, unlike its gradient, is too large.\n\n"
    )
    rows = [
        (
            row["form"] if row["form"] == "colocated" else f"cached, {row['form']}",
            f"{row['bytes a token']:,.0f}" if "bytes a token" in row else "",
            f"{row['CE']:.4f}",
            f"{row['KD']:.4f}",
            f"{row['held-out bits a byte']:.4f}",
        )
        for row in part["training"]
    ]
    return head + markdown(("teacher", "bytes a token on disk", "CE", "KD", "held-out bits a byte"), rows) + "\n"


#: What is refused is in brackets, and so is what this package does not store.
_FORMS = ("bf16", "fp8", "sampled", "top 12", "top 50")


def _angles(part: Mapping[str, Any]) -> str:
    """Degrees by loss and form, and what the mean of several draws of samples makes of them."""
    about = part["shape"]
    found: dict[str, dict[str, Mapping[str, Any]]] = {}
    for row in part["gradients"]:
        found.setdefault(row["loss"], {})[row["form"]] = row
    head = (
        "What a form does to the gradient: degrees between the one by it and the one by exact states, on "
        f"{about['student']} as the student and {about['teacher']} as the teacher, {about['positions']:,} positions of "
        f"English text in {about['chunks']:,} chunks, by the student's output layer ({part['machine']['date'][:10]}). "
        "What is refused is in brackets, and so are plain lists of the most probable 12 or 50 tokens, which this "
        "package does not store:"
    )
    rows = [(f"`{loss}`", *(_angle(forms[form]) for form in _FORMS)) for loss, forms in found.items()]
    names = [f"(top {form[4:]})" if form.startswith("top") else f"`{form}`" for form in _FORMS]
    draws = f"{about['draws']} x sampled"
    means = [
        f"{_degrees(forms[draws]['degrees, weight'])} degrees off for `{loss}`, by one draw "
        f"{_degrees(forms['sampled']['degrees, weight'])}"
        for loss, forms in found.items()
        if draws in forms and forms["sampled"]["degrees, weight"] >= 0.5
    ]
    tail = (
        "The angle of samples is noise, which averages out over the positions of a batch, and that of a list is a "
        f"bias, which stays: the mean of the gradients by {about['draws']} draws for these positions, which has the "
        f"noise of a batch {about['draws']} times as large, is {'; '.join(means)}."
    )
    return f"{textwrap.fill(head, 120)}\n\n{markdown(('loss', *names), rows)}\n\n{textwrap.fill(tail, 120)}\n"


def _angle(row: Mapping[str, Any]) -> str:
    said = _degrees(row["degrees, weight"])
    return said if row["accepted"] else f"({said})"


def _degrees(angle: float) -> str:
    return f"{angle:.2g}" if angle >= 0.005 else "0"


def with_rows(path: Path, shape: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What a file of results has, with some of its sources measured anew.

    Args:
        rows: with the machine of each, which may be other than that of the rest.

    Raises:
        ValueError: the rest was measured by another shape.
    """
    before: dict[str, Any] = json.loads(path.read_text("utf-8"))
    part, new = before["sources"], {row["teacher"]: dict(row) for row in rows}
    if part["shape"] != shape:
        raise ValueError(f"{path} has figures by {part['shape']}, and these are by {shape}")
    kept = [new.pop(row["teacher"], row) for row in part["sources"]]
    return merged(path, "sources", part | {"sources": [*kept, *new.values()]})


def merged(path: Path, part: str, result: Mapping[str, Any]) -> dict[str, Any]:
    """What a file of results has, with this part of it measured anew."""
    before: dict[str, Any] = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    before.pop("machine", None)
    return before | {part: result}

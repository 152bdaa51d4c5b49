"""What the documents say of teachers elsewhere, from ``benchmarks/teachers.json``.

Used by ``benchmarks/teachers.py --page``.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench import markdown

from nemo_xtoken.files import atomic_path

__all__ = ["DOCUMENTS", "RESULTS", "blocks", "fill_documents", "filled", "merged"]

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "teachers.json"
#: Where blocks are filled in: between ``<!-- teachers: NAME -->`` and ``<!-- end of NAME -->``.
DOCUMENTS = (ROOT / "benchmarks" / "REPORT.md", ROOT / "docs" / "teachers.md")
_BLOCK = re.compile(r"(<!-- teachers: (\w+) -->\n)(.*?)(<!-- end of \2 -->)", re.DOTALL)


def fill_documents() -> None:
    """Writes the blocks."""
    made = blocks(json.loads(RESULTS.read_text("utf-8")))
    for document in DOCUMENTS:
        text = filled(document.read_text("utf-8"), made)
        with atomic_path(document) as temporary:
            temporary.write_text(text, "utf-8")


def filled(text: str, made: Mapping[str, str]) -> str:
    """A document with its blocks as they are now."""
    return _BLOCK.sub(lambda match: f"{match[1]}{made[match[2]]}{match[4]}", text)


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
        f"that {_needed(shape):.2f} suffice; {shape['steps']} steps after a first one. Files lie in the page cache.\n\n"
    )
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
    return f"{head}{steps}\n\n{service}\n\n{disk}\n"


def _wire(row: Mapping[str, Any], shape: Mapping[str, Any]) -> str:
    return f"{row['wire'] * 2 * shape['hidden']:,.1f}, {row['wire']:.5f}" if "wire" in row else ""


def _waiting(part: Mapping[str, Any]) -> str:
    """In a few sentences."""
    shape = part["shape"]
    shares = {row["teacher"].removeprefix("remote, "): _share(row["waiting"]) for row in part["sources"]}
    wire = max(row.get("wire", 0.0) for row in part["sources"])
    said = ", ".join(f"by {name} {share}" for name, share in shares.items() if "replica" in name)
    return (
        f"Teachers of {shape['rate']:,.0f} tokens a second, and a student that takes {shape['seconds']:g} s for "
        f"{shape['rows']} rows of {shape['length']:,} tokens at\nH = {shape['hidden']:,}, so that {_needed(shape):.2f} "
        f"suffice: the share of its time in which it waits is {shares['colocated']} by one beside it,\n{said}. On the "
        f"wire are {wire:.4f} times the bytes of the\nstates ([all figures](../benchmarks/REPORT.md)).\n"
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


def merged(path: Path, part: str, result: Mapping[str, Any]) -> dict[str, Any]:
    """What a file of results has, with this part of it measured anew."""
    before: dict[str, Any] = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    before.pop("machine", None)
    return before | {part: result}

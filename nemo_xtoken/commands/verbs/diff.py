"""``xtoken diff``: what differs between two W files."""

import json
from collections.abc import Mapping
from typing import Any

from nemo_xtoken.commands.verb import Option, UsageError, Verb
from nemo_xtoken.errors import InputError
from nemo_xtoken.limits import MOST_ROWS

__all__ = ["VERB"]


def _run(arguments: Mapping[str, Any]) -> int:
    from nemo_xtoken.projection.compare import compare, describe_difference
    from nemo_xtoken.projection.matrix import ProjectionMatrix
    from nemo_xtoken.projection.nemo_rl import is_torch_file, read_projection
    from nemo_xtoken.vocab.loading import load_vocabulary

    sources = [arguments["student"], arguments["teacher"]]
    if any(sources) and not all(sources):
        raise UsageError("student= and teacher= are given together, or neither")
    foreign = [arguments[name] for name in ("a", "b") if is_torch_file(arguments[name])]
    if foreign and not all(sources):
        found = f"{foreign[0]}, which does not say what its tokenizers are"
        raise InputError(found, "student= and teacher= beside it", "name the tokenizers")
    student, teacher = (load_vocabulary(source) if source else None for source in sources)
    if student is not None and teacher is not None:
        a, b = (read_projection(arguments[name], student, teacher)[0] for name in ("a", "b"))
    else:
        a, b = (ProjectionMatrix.load(arguments[name]) for name in ("a", "b"))
    # In a comparison with a file in bfloat16, rounding does not count as a change.
    tolerance = arguments["tolerance"] if arguments["tolerance"] is not None else 0.005 if foreign else 1e-6
    if not 0 <= tolerance <= 1:
        raise UsageError(f"tolerance={tolerance}: 0 to 1 is expected, the share of a row's weight that may differ")
    difference = compare(a, b, tolerance)
    result = describe_difference(difference, a, b, student, teacher, arguments["limit"])
    if arguments["json"]:
        print(json.dumps(result | {"tolerance": tolerance}, ensure_ascii=False))
    else:
        _print(arguments["a"], arguments["b"], result)
    return 0


def _print(a: str, b: str, result: dict[str, Any]) -> None:
    from rich.console import Console

    from nemo_xtoken.projection.rows import readable
    from nemo_xtoken.report.learned_projection import ChangedRow, changed_rows

    console = Console()
    plain: dict[str, Any] = {"highlight": False, "soft_wrap": True, "markup": False}
    console.print(f"a: {a}  {json.dumps(result['rules'][0], sort_keys=True)}", **plain)
    console.print(f"b: {b}  {json.dumps(result['rules'][1], sort_keys=True)}", **plain)
    counts = ", ".join(f"{result[name]['count']:,} {name}" for name in ("added", "removed", "changed"))
    console.print("no row differs" if result["same"] else f"rows: {counts}", **plain)
    for name, meaning in (("added", "empty in a"), ("removed", "empty in b"), ("changed", "farthest apart first")):
        rows = [
            ChangedRow(r["id"], r.get("token", ""), r["distance"], readable(r), readable({"entries": r["after"]}))
            for r in result[name]["rows"]
        ]
        if rows:
            console.print()
            console.print(changed_rows(f"{name} ({meaning})", rows, "a", "b"))


VERB = Verb(
    name="diff",
    summary="compare two W files row by row",
    description=(
        "Prints how many rows only one of two W files has, how many differ, and the rows that are farthest apart; the "
        "distance is the share of a row's weight that lies on other tokens. With the tokenizers the rows are readable; "
        "NeMo-RL's .pt files need them."
    ),
    options=(
        Option("a", "a file of W (.safetensors), or NeMo-RL's (.pt)", required=True),
        Option("b", "another, for the same tokenizers", required=True),
        Option("student", "the student's tokenizer, to show tokens instead of ids"),
        Option("teacher", "the teacher's tokenizer, in the same forms"),
        Option(
            "tolerance",
            "distance up to which rows count as equal (0.000001; 0.005 beside a .pt file)",
            float,
            least=0,
            most=1,
        ),
        Option("limit", "most rows of each kind to print", int, 20, least=0, most=MOST_ROWS),
        Option("json", "print JSON", bool, False),
    ),
    examples=(
        ("diff a=w.safetensors b=learned.safetensors student=models/llama teacher=models/qwen", "what training moved"),
        ("diff a=w.safetensors b=projection.pt student=a teacher=b limit=5", "against a file of NeMo-RL"),
    ),
    run=_run,
)

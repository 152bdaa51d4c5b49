"""``xtoken inspect``: the rows of W in readable text, its statistics, and weights that no rule put there."""

import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemo_xtoken.commands.verb import Option, UsageError, Verb
from nemo_xtoken.limits import MOST_ROWS

if TYPE_CHECKING:
    from nemo_xtoken.projection.matrix import ProjectionMatrix
    from nemo_xtoken.vocab.vocabulary import Vocabulary

__all__ = ["VERB"]


def _run(arguments: Mapping[str, Any]) -> int:
    from nemo_xtoken.projection.inspection import find_tokens, statistics, unexpected_weights, unreached_tokens
    from nemo_xtoken.projection.nemo_rl import read_projection
    from nemo_xtoken.projection.rows import describe_row
    from nemo_xtoken.report.pictures import picture_path
    from nemo_xtoken.vocab.loading import load_vocabulary

    figure = picture_path(arguments["figure"]) if arguments["figure"] is not None else None
    asked = {name: arguments[name] for name in ("token", "regex", "id") if arguments[name] is not None}
    if len(asked) + arguments["unreached"] > 1:
        names = [f"{name}=" for name in asked] + ["--unreached"] * arguments["unreached"]
        raise UsageError(f"{' and '.join(names)} are given: name one of them")
    student, teacher = load_vocabulary(arguments["student"]), load_vocabulary(arguments["teacher"])
    matrix, report = read_projection(arguments["w"], student, teacher)
    if asked:
        found = find_tokens(student, **asked)
        rows = [describe_row(matrix, s, student, teacher) for s in found[: arguments["limit"]]]
        result: dict[str, Any] = {"matching": len(found), "rows": rows}
    elif arguments["unreached"]:
        missed = unreached_tokens(matrix, teacher)
        tokens = [{"id": t, "token": teacher.display(t)} for t in missed[: arguments["limit"]]]
        result = {"matching": len(missed), "tokens": tokens}
    else:
        result = statistics(matrix, student, teacher)
        result["unexpected"] = unexpected_weights(matrix, student, teacher)
        if report is not None:
            result["read"] = report.to_json()
    if figure is not None:
        _draw(matrix, student, teacher, found if asked else _samples(matrix, student, teacher), figure)
    if arguments["json"]:
        print(json.dumps(result, ensure_ascii=False))
    elif asked or arguments["unreached"]:
        _print_rows(result)
    else:
        _print_statistics(arguments["w"], result, report.warnings() if report else [])
    if figure is not None and not arguments["json"]:
        print(f"saved in {figure}")
    return 0


def _samples(matrix: "ProjectionMatrix", student: "Vocabulary", teacher: "Vocabulary") -> list[int]:
    """Student tokens whose rows make a telling picture: numerals, then words and signs of several teacher tokens."""
    from nemo_xtoken.projection.token_classes import CLASSES, classify
    from nemo_xtoken.report.pictures import drawable

    found = [s for s in (student.id_of_bytes.get(text) for text in (b"2", b"12", b"20", b"201")) if s is not None]
    several = (matrix.ids >= 0).sum(axis=1) > 1
    classes = classify(student)
    for number, token_class in enumerate(CLASSES):
        if token_class.name in ("alphabetic", "multibyte", "code"):
            of_class = (several & (classes == number)).nonzero()[0].tolist()
            found += itertools.islice((s for s in of_class if drawable(student.display(s))), 2)
    return found


def _draw(
    matrix: "ProjectionMatrix", student: "Vocabulary", teacher: "Vocabulary", tokens: list[int], path: Path
) -> None:
    from nemo_xtoken.projection.audit import audit_coverage
    from nemo_xtoken.projection.inspection import statistics
    from nemo_xtoken.projection.rows import describe_row
    from nemo_xtoken.report.projection_figure import draw_projection

    found = statistics(matrix, student, teacher)
    draw_projection(
        (Path(student.name).name, Path(teacher.name).name),
        audit_coverage(student, teacher, matrix).to_json()["classes"],
        found["teacher"],
        found["entries_per_row"],
        [describe_row(matrix, s, student, teacher) for s in tokens[:200]],
        path,
    )


def _print_rows(result: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from nemo_xtoken.projection.rows import readable

    table = Table(show_edge=False, pad_edge=False)
    table.add_column("id", justify="right", style="dim")
    if "rows" in result:
        table.add_column("student token", overflow="fold")
        table.add_column("teacher tokens and weights", overflow="fold")
    else:
        table.add_column("teacher token without mass", overflow="fold")
    listed = result["rows"] if "rows" in result else result["tokens"]
    for row in listed:
        cells = [f"'{row['token']}'"] + ([readable(row, most=12)] if "entries" in row else [])
        table.add_row(str(row["id"]), *map(escape, cells))
    console = Console()
    console.print(table)
    if (more := result["matching"] - len(listed)) > 0:
        console.print(f"\nand {more:,} more; limit= shows more of them", highlight=False)


def _print_statistics(name: str, result: dict[str, Any], warnings: list[str]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from nemo_xtoken.projection.rows import readable

    table = Table(title=escape(name), title_style="bold", show_header=False)
    table.add_column("what")
    table.add_column("number", justify="right")
    for kind, meaning in (("exact", "the same token"), ("multi", "other teacher tokens"), ("empty", "none")):
        table.add_row(f"rows: {kind} ({meaning})", f"{result['rows'][kind]:,}")
    table.add_section()
    for entries, count in result["entries_per_row"].items():
        table.add_row(f"rows with {entries} {'entry' if entries == '1' else 'entries'}", f"{count:,}")
    table.add_section()
    teacher, junk = result["teacher"], result["unexpected"]
    table.add_row("teacher tokens reached", f"{teacher['reached']:,}")
    table.add_row("teacher tokens that get no mass", f"{teacher['unreached']:,}")
    for token_class, count in teacher["unreached_by_class"].items():
        table.add_row(f"  of these {token_class}", f"{count:,}")
    table.add_section()
    table.add_row(f"rows that differ from {junk['compared_with']}", f"{junk['differing']:,}")
    table.add_row("  of these empty by that rule, but filled", f"{junk['filled']:,}")
    table.add_row("  of these filled by that rule, but empty", f"{junk['emptied']:,}")
    table.add_row("rows with weight on tokens that are not their pieces", f"{junk['stray']:,}")
    console = Console()
    console.print(table)
    plain: dict[str, Any] = {"highlight": False, "soft_wrap": True, "markup": False}
    if teacher["unreached_examples"]:
        tokens = "  ".join(f"'{t['token']}'" for t in teacher["unreached_examples"])
        console.print(f"no mass, first of them: {tokens}  (--unreached lists them all)", **plain)
    if junk["stray"]:
        tokens = "  ".join(f"'{t['token']}' in {t['rows']:,} rows" for t in junk["stray_tokens"])
        console.print(
            f"JUNK WEIGHTS: {junk['stray']:,} rows give {junk['stray_weight']:.1%} of their weight, on average, to "
            f"tokens that are not their pieces, most often to {tokens}",
            **plain,
        )
        for row in junk["examples"][:5]:
            expected = readable({"entries": row["expected"]})
            console.print(f"  '{row['token']}' -> {readable(row)}   by the rule: {expected}", **plain)
    for warning in warnings:
        console.print(f"warning: {warning}", **plain)


VERB = Verb(
    name="inspect",
    summary="show rows of W in readable text, or its statistics",
    description=(
        "With token=, regex= or id= prints the rows of these student tokens, with --unreached the teacher tokens that "
        "get no mass from any row. Without, prints statistics: rows by kind, entries per row, teacher tokens that get "
        "no mass, and rows whose weights are not what the rule in the file's header (else the paper's rule) gives."
    ),
    options=(
        Option("w", "the file of W (.safetensors), or NeMo-RL's (.pt)", required=True),
        Option("student", "the student's tokenizer: a folder, a tokenizer file or a hub name", required=True),
        Option("teacher", "the teacher's tokenizer, in the same forms", required=True),
        Option("token", 'a student token by its text, as " the" or <eos>'),
        Option("regex", "all student tokens whose text it matches somewhere"),
        Option("id", "a student token by its id", int, least=0, most=MOST_ROWS),
        Option("unreached", "list the teacher tokens that get no mass", bool, False),
        Option("limit", "most rows or tokens to print", int, 50, least=0, most=MOST_ROWS),
        Option(
            "figure",
            "a picture (.png) of W and of some rows (those asked for, else a choice), to be written",
            writes="file",
        ),
        Option("json", "print JSON", bool, False),
    ),
    examples=(
        ("inspect w=w.safetensors student=a teacher=b", "statistics"),
        ("inspect w=w.safetensors student=a teacher=b token=201", "one token's row"),
        ("inspect w=w.safetensors student=a teacher=b figure=w.png", "statistics, also as a picture"),
        (r"inspect w=projection.pt student=a teacher=b regex='^\d{3}$' limit=10", "rows of a file of NeMo-RL"),
    ),
    run=_run,
)

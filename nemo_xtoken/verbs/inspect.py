"""``xtoken inspect``: the rows of W in readable text, its statistics, and weights that no rule put there."""

import json
from collections.abc import Mapping
from typing import Any

from nemo_xtoken.verbs.base import Option, UsageError, Verb

__all__ = ["VERB"]


def _run(arguments: Mapping[str, Any]) -> int:
    from nemo_xtoken.projection.inspection import find_tokens, statistics, unexpected_weights
    from nemo_xtoken.projection.nemo_rl import read_projection
    from nemo_xtoken.projection.rows import describe_row
    from nemo_xtoken.vocab.loading import load_vocabulary

    asked = {name: arguments[name] for name in ("token", "regex", "id") if arguments[name] is not None}
    if len(asked) > 1:
        raise UsageError(f"{' and '.join(f'{name}=' for name in asked)} are given: name one of them")
    student, teacher = load_vocabulary(arguments["student"]), load_vocabulary(arguments["teacher"])
    matrix, report = read_projection(arguments["w"], student, teacher)
    if asked:
        found = find_tokens(student, **asked)
        rows = [describe_row(matrix, s, student, teacher) for s in found[: max(arguments["limit"], 0)]]
        result: dict[str, Any] = {"matching": len(found), "rows": rows}
    else:
        result = statistics(matrix, student, teacher)
        result["unexpected"] = unexpected_weights(matrix, student, teacher)
        if report is not None:
            result["read"] = report.to_json()
    if arguments["json"]:
        print(json.dumps(result, ensure_ascii=False))
    elif asked:
        _print_rows(result)
    else:
        _print_statistics(arguments["w"], result, report.warnings() if report else [])
    return 0


def _print_rows(result: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from nemo_xtoken.projection.rows import readable

    table = Table(show_edge=False, pad_edge=False)
    table.add_column("id", justify="right", style="dim")
    table.add_column("student token", overflow="fold")
    table.add_column("teacher tokens and weights", overflow="fold")
    for row in result["rows"]:
        table.add_row(str(row["id"]), escape(f"'{row['token']}'"), escape(readable(row, most=12)))
    console = Console()
    console.print(table)
    if (more := result["matching"] - len(result["rows"])) > 0:
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
    table.add_row("rows with weight on tokens that are no piece of theirs", f"{junk['stray']:,}")
    console = Console()
    console.print(table)
    plain: dict[str, Any] = {"highlight": False, "soft_wrap": True, "markup": False}
    if teacher["unreached_examples"]:
        tokens = "  ".join(f"'{t['token']}'" for t in teacher["unreached_examples"])
        console.print(f"no mass, first of them: {tokens}", **plain)
    if junk["stray"]:
        tokens = "  ".join(f"'{t['token']}' in {t['rows']:,} rows" for t in junk["stray_tokens"])
        console.print(
            f"JUNK WEIGHTS: {junk['stray']:,} rows give {junk['stray_weight']:.1%} of their weight, on average, to "
            f"tokens that are no piece of theirs, most often to {tokens}",
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
        "With token=, regex= or id= prints the rows of these student tokens. Without, prints statistics: rows by kind, "
        "entries per row, teacher tokens that get no mass, and rows whose weights are not what the rule in the file's "
        "header (else the paper's rule) gives."
    ),
    options=(
        Option("w", "the file of W (.safetensors), or NeMo-RL's (.pt)", required=True),
        Option("student", "the student's tokenizer: a folder, a tokenizer file or a hub name", required=True),
        Option("teacher", "the teacher's, likewise", required=True),
        Option("token", 'a student token by its text, as " the" or <eos>'),
        Option("regex", "all student tokens whose text it matches somewhere"),
        Option("id", "a student token by its id", int),
        Option("limit", "most rows to print", int, 50),
        Option("json", "print JSON", bool, False),
    ),
    examples=(
        ("inspect w=w.safetensors student=a teacher=b", "statistics"),
        ("inspect w=w.safetensors student=a teacher=b token=201", "one token's row"),
        (r"inspect w=projection.pt student=a teacher=b regex='^\d{3}$' limit=10", "rows of a file of NeMo-RL"),
    ),
    run=_run,
)

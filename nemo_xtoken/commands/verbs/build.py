"""``xtoken build``: W, the sparse matrix from the student's to the teacher's vocabulary."""

from collections.abc import Mapping
from typing import Any

from nemo_xtoken.commands.verb import Option, Verb

__all__ = ["VERB"]


def _run(arguments: Mapping[str, Any]) -> int:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from nemo_xtoken.files import cache_root
    from nemo_xtoken.projection.build import ProjectionRule, build_projection, load_or_build
    from nemo_xtoken.vocab.loading import load_vocabulary

    parameters = ("beta", "gamma", "max_pieces", "overflow")
    changes = {name: arguments[name] for name in parameters if arguments[name] is not None}
    rule = ProjectionRule.named(arguments["rule"], **changes)
    student, teacher = load_vocabulary(arguments["student"]), load_vocabulary(arguments["teacher"])
    if arguments["out"]:
        matrix = build_projection(student, teacher, rule)
        matrix.save(arguments["out"])
        place = arguments["out"]
    else:
        matrix = load_or_build(student, teacher, rule, must_keep=True)
        place = f"the cache, {cache_root() / 'projection'}; runs with these tokenizers and rule find it there"

    kinds = (
        ("exact", "the teacher has the token"),
        ("multi", "cut into pieces of the teacher"),
        ("truncated", "more pieces than a row holds: the first kept"),
        ("empty", "nothing fits: the mass goes to REST"),
    )
    table = Table(
        title=escape(f"W: {student.name} ({student.size:,}) -> {teacher.name} ({teacher.size:,})"), title_style="bold"
    )
    table.add_column("rows")
    table.add_column("number", justify="right")
    table.add_column("share", justify="right")
    table.add_column("meaning", style="dim")
    for kind, meaning in kinds:
        count = int(matrix.coverage.get(kind, 0))
        table.add_row(kind, f"{count:,}", f"{count / max(student.size, 1):.1%}", meaning)
    reached = int(matrix.reached.sum())
    table.add_section()
    table.add_row("teacher tokens reached", f"{reached:,}", f"{reached / max(teacher.size, 1):.1%}", "the rest is REST")
    console = Console()
    console.print(table)
    console.print(f"saved in {place}", soft_wrap=True, highlight=False, markup=False)
    return 0


VERB = Verb(
    name="build",
    summary="build W, the projection from the student's to the teacher's vocabulary",
    description=(
        "Builds W in two passes: a token that both vocabularies have gets weight 1; any other student token is cut "
        "into the teacher's pieces, weighted beta*gamma**i and normalised. Training builds and caches it by itself: "
        "this verb is for looking at the coverage beforehand, or for a file to carry elsewhere."
    ),
    options=(
        Option("student", "the student's tokenizer: a folder, a tokenizer file or a hub name", required=True),
        Option("teacher", "the teacher's tokenizer, in the same forms", required=True),
        Option("out", "the file to write (.safetensors); without it W goes to the cache", writes="file"),
        Option(
            "rule",
            "paper: decaying weights; prefix: all weight on the first piece; whole: as paper, longer tokens empty",
            default="paper",
            choices=("paper", "prefix", "whole"),
        ),
        Option(
            "beta", "weight of the first piece before normalising, instead of the rule's 0.9", float, above=0, most=1
        ),
        Option(
            "gamma",
            "factor from one piece to the next, instead of the rule's (paper 0.1, prefix 0)",
            float,
            least=0,
            most=1,
        ),
        Option("max_pieces", "most pieces in a row, instead of the rule's 4", int, least=1, most=64),
        Option(
            "overflow",
            "what to do with tokens of more pieces, instead of the rule's (truncate; whole: empty)",
            choices=("empty", "truncate"),
        ),
    ),
    examples=(
        ("build student=models/llama teacher=models/qwen", "build it, keep it in the cache, print the coverage"),
        ("build student=a/tokenizer.json teacher=b/tokenizer.model out=w.safetensors", "write it to a file"),
        ("build --student a --teacher b --overflow empty", "no rows for tokens of more than 4 pieces"),
        ("build student=a teacher=b rule=prefix", "all weight on the first piece"),
    ),
    run=_run,
)

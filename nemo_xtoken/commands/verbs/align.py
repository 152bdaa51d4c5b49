"""``xtoken align``: the chunks of one text under two tokenizers, side by side."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemo_xtoken.commands.verb import Option, Verb
from nemo_xtoken.commands.verbs.texts import read_text

if TYPE_CHECKING:
    from rich.text import Text

    from nemo_xtoken.vocab.vocabulary import Vocabulary

__all__ = ["VERB"]

Row = tuple[str, list[int], list[int]]  # kind (chunk or gap), student token indices, teacher token indices


def _run(arguments: Mapping[str, Any]) -> int:
    from nemo_xtoken.alignment.aligner import Aligner
    from nemo_xtoken.report.pictures import picture_path
    from nemo_xtoken.vocab.loading import load_vocabulary

    figure = picture_path(arguments["figure"]) if arguments["figure"] is not None else None
    text = read_text(arguments["text"])
    student, teacher = load_vocabulary(arguments["student"]), load_vocabulary(arguments["teacher"])
    ids = [_encode(side, text, special=arguments["special"]) for side in (student, teacher)]
    chunks = [[int(i) for i in chunk] for chunk in Aligner(student, teacher, arguments["method"]).align(*ids)]
    if figure is not None:
        _draw((student, teacher), ids, chunks, figure)
    if arguments["json"]:
        _print_json(text, (student, teacher), ids, chunks)
    else:
        _print_table((student, teacher), ids, chunks)
        if figure is not None:
            print(f"saved in {figure}")
    return 0


def _encode(vocabulary: "Vocabulary", text: str, special: bool) -> Any:
    """int32 ``[T]``; with ``special`` the beginning and end that a training document has."""
    import numpy as np

    ids = vocabulary.encode(text)
    if not special:
        return ids
    first = [vocabulary.bos_id] if vocabulary.adds_bos and vocabulary.bos_id is not None else []
    last = [vocabulary.eos_id] if vocabulary.eos_id is not None else []
    return np.concatenate([np.asarray(first, np.int32), ids, np.asarray(last, np.int32)]).astype(np.int32)


def _rows(lengths: tuple[int, int], chunks: list[list[int]]) -> list[Row]:
    """The chunks with the gaps between them, in order; every token is in exactly one row."""
    rows: list[Row] = []
    s = t = 0
    for s0, s1, t0, t1 in [*chunks, [lengths[0], lengths[0], lengths[1], lengths[1]]]:
        if s < s0 or t < t0:
            rows.append(("gap", list(range(s, s0)), list(range(t, t0))))
        if s0 < s1:
            rows.append(("chunk", list(range(s0, s1)), list(range(t0, t1))))
        s, t = s1, t1
    return rows


def _visible(token: str) -> str:
    """A token's text with its blanks made visible."""
    return token.replace(" ", "·").replace("\n", "⏎").replace("\t", "⇥").replace("\r", "␍")


def _print_json(text: str, sides: tuple["Vocabulary", "Vocabulary"], ids: list[Any], chunks: list[list[int]]) -> None:
    rows = _rows((len(ids[0]), len(ids[1])), chunks)
    out: dict[str, Any] = {"text": text}
    for which, (name, side) in enumerate(zip(("student", "teacher"), sides, strict=True)):
        out[name] = {
            "tokenizer": side.name,
            "ids": [int(i) for i in ids[which]],
            "tokens": [side.display(int(i)) for i in ids[which]],
            "gaps": [index for row in rows if row[0] == "gap" for index in row[1 + which]],
        }
    out["chunks"] = chunks
    print(json.dumps(out, ensure_ascii=False))


def _draw(sides: tuple["Vocabulary", "Vocabulary"], ids: list[Any], chunks: list[list[int]], path: Path) -> None:
    from nemo_xtoken.report.alignment_figure import draw_alignment

    tokens = [[side.display(int(i)) for i in ids[which]] for which, side in enumerate(sides)]
    rows = [
        (kind, [tokens[0][i] for i in student], [tokens[1][i] for i in teacher])
        for kind, student, teacher in _rows((len(ids[0]), len(ids[1])), chunks)
    ]
    draw_alignment((Path(sides[0].name).name, Path(sides[1].name).name), rows, path)


def _cell(vocabulary: "Vocabulary", ids: Any, indices: list[int], style: str) -> "Text":
    """The tokens of one side of a row, with bars between them."""
    from rich.text import Text

    cell = Text()
    for n, index in enumerate(indices):
        if n:
            cell.append(" | ", style="dim")
        cell.append(_visible(vocabulary.display(int(ids[index]))), style=style)
    return cell


def _print_table(sides: tuple["Vocabulary", "Vocabulary"], ids: list[Any], chunks: list[list[int]]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    rows = _rows((len(ids[0]), len(ids[1])), chunks)
    table = Table(show_edge=False, pad_edge=False)
    table.add_column("", justify="right", style="dim")
    table.add_column(f"student: {escape(sides[0].name)}", overflow="fold")
    table.add_column(f"teacher: {escape(sides[1].name)}", overflow="fold")
    table.add_column("", no_wrap=True)
    number = one_to_one = 0
    gaps = [0, 0]
    for kind, *tokens in rows:
        if kind == "gap":
            gaps = [gaps[0] + len(tokens[0]), gaps[1] + len(tokens[1])]
            style, label, first = "bold red", "gap", ""
        else:
            single = len(tokens[0]) == len(tokens[1]) == 1
            style, label = ("green", "") if single else ("yellow", f"{len(tokens[0])} to {len(tokens[1])}")
            first, number, one_to_one = str(number), number + 1, one_to_one + single
        cells = [_cell(side, ids[i], tokens[i], style) for i, side in enumerate(sides)]
        table.add_row(first, *cells, f"[{style}]{label}[/]")
    console = Console()
    console.print(table)
    share = f" ({one_to_one / number:.0%})" if number else ""
    console.print(
        f"\n{number:,} chunks, {one_to_one:,} of them 1 to 1{share}; "
        f"{len(ids[0]):,} student and {len(ids[1]):,} teacher tokens; in no chunk: {gaps[0]:,} and {gaps[1]:,}",
        highlight=False,
        soft_wrap=True,
    )


VERB = Verb(
    name="align",
    summary="show how a text's tokens align under two tokenizers",
    description=(
        "Prints the finest chunks that cover the same bytes on both sides: 1 to 1 in green, others in yellow, and in "
        "red the gaps, tokens that belong to no chunk and take no part in the loss. A space is shown as '·', a line "
        "end as '⏎'; '|' stands between tokens."
    ),
    options=(
        Option("student", "the student's tokenizer: a folder, a tokenizer file or a hub name", required=True),
        Option("teacher", "the teacher's tokenizer, in the same forms", required=True),
        Option("text", "the text; @FILE reads a UTF-8 file, - standard input", required=True, empty=True),
        Option(
            "method", "spans (byte offsets) or dp (the dynamic programme)", default="spans", choices=("spans", "dp")
        ),
        Option("special", "add the beginning and end of a training document", bool, False),
        Option("figure", "a picture (.png) of the chunks, to be written", writes="file"),
        Option("json", "print JSON: ids, tokens, chunks, gaps", bool, False),
    ),
    examples=(
        ('align student=models/llama teacher=models/qwen text="It costs 1234 €"', "one line of text"),
        ("align student=a teacher=b text=@sample.txt --special", "a file, as training sees it"),
        ("align student=a teacher=b text=@sample.txt figure=chunks.png", "also as a picture"),
        ("align student=a teacher=b text=- --json < sample.txt", "standard input to JSON"),
    ),
    run=_run,
)

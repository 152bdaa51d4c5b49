"""``xtoken audit``: which classes of student tokens the teacher has, and the loss that fits the pair."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemo_xtoken.commands.verb import Option, Verb
from nemo_xtoken.commands.verbs.texts import read_text

if TYPE_CHECKING:
    from nemo_xtoken.data.conversation_counts import ConversationCounts
    from nemo_xtoken.losses.text_coverage import Parts, TextCoverage
    from nemo_xtoken.projection.audit import CoverageAudit
    from nemo_xtoken.vocab.vocabulary import Vocabulary

__all__ = ["VERB"]

#: The share of tokens without any signal from the teacher from which a loss is marked.
SILENT = 0.01


def _run(arguments: Mapping[str, Any]) -> int:
    from nemo_xtoken.losses.options import DEFAULT_LOSS, recommend
    from nemo_xtoken.projection.audit import audit_coverage
    from nemo_xtoken.projection.build import load_or_build
    from nemo_xtoken.vocab.loading import load_vocabulary

    folder = Path(arguments["out"]) if arguments["out"] else None
    student, teacher = load_vocabulary(arguments["student"]), load_vocabulary(arguments["teacher"])
    audit = audit_coverage(student, teacher, load_or_build(student, teacher))
    loss, title, reason = recommend(audit)
    record = audit.to_json() | {"loss": loss, "reason": reason}
    on_texts = {} if arguments["text"] is None else _on_texts(arguments["text"], student, teacher, arguments["model"])
    if on_texts:
        record["texts"] = {
            kind: {name: asdict(covered) for name, covered in losses.items()} for kind, losses in on_texts.items()
        }
    talked = _on_conversations(arguments, student, teacher)
    if talked is not None:
        record["conversations"] = asdict(talked)
    text = json.dumps(record, ensure_ascii=False, indent=None if folder is None else 1)
    written = _write(audit, title, text, folder) if folder is not None else []
    if arguments["json"]:
        print(text)
    else:
        default = "" if audit.finding == "one tokenizer" else f"; the default, {DEFAULT_LOSS}, suits every pair"
        heading = "Recommended loss" if not default else "Of the paper's two losses"
        _print(audit, f"[bold]{heading}: {title}[/] (loss={loss}{default})", reason, written)
        _print_texts(on_texts)
        if talked is not None:
            print(talked)
    return 0


def _on_conversations(
    arguments: Mapping[str, Any], student: "Vocabulary", teacher: "Vocabulary"
) -> "ConversationCounts | None":
    if arguments["chat"] is None:
        return None
    from nemo_xtoken.data.conversation_counts import count_conversations
    from nemo_xtoken.data.sources import Reading

    reading = Reading(
        "chat",
        messages_key=arguments["messages_key"],
        tools_key=arguments["tools_key"],
        learn=arguments["learn"],
        on_error="skip",
    )
    template = None if arguments["chat_template"] is None else read_text(f"@{arguments['chat_template']}")
    return count_conversations([arguments["chat"]], student, teacher, reading, template=template)


def _on_texts(
    text: str, student: "Vocabulary", teacher: "Vocabulary", model: str | None
) -> "dict[str, dict[str, TextCoverage]]":
    """By the kind of text and the name of each loss that can compare the pair."""
    from nemo_xtoken.certify.variants import EVERY, variants_for
    from nemo_xtoken.evaluate.bits import bits_of_tokens
    from nemo_xtoken.losses.pair import VocabularyPair
    from nemo_xtoken.losses.sample_texts import SAMPLES
    from nemo_xtoken.losses.text_coverage import losses_on_text

    texts = SAMPLES if text == "samples" else {"text": read_text(text)}
    names = list(dict.fromkeys(variant.loss for variant in variants_for(EVERY, student, teacher)))
    pair = VocabularyPair(student, teacher)
    contents = list(texts.values())
    bits = [None] * len(texts) if model is None else [*bits_of_tokens(model, teacher, contents)]
    covered = [losses_on_text(pair, names, content, b) for content, b in zip(contents, bits, strict=True)]
    return dict(zip(texts, covered, strict=True))


def _print_texts(on_texts: "dict[str, dict[str, TextCoverage]]") -> None:
    for unit, whose in (("tokens", "student tokens"), ("bits", "the teacher's bits")):
        columns = {
            kind: {name: parts for name, covered in losses.items() if (parts := getattr(covered, unit)) is not None}
            for kind, losses in on_texts.items()
        }
        if any(columns.values()):
            _print_shares(whose, columns)


def _print_shares(whose: str, columns: "dict[str, dict[str, Parts]]") -> None:
    """
    Args:
        columns: by kind of text, of each loss.
    """
    from rich.console import Console
    from rich.table import Table

    title = f"{whose} scored in full / in part / not"
    table = Table(title=title, title_style="bold", min_width=len(title))
    table.add_column("loss", no_wrap=True)
    for kind, losses in columns.items():
        table.add_column(f"{kind} ({next(iter(losses.values())).total:,.0f})", justify="right")
    for name in next(iter(columns.values())):
        cells = []
        for losses in columns.values():
            shares = [losses[name].share(part) for part in ("full", "part", "none")]
            cell = " / ".join(f"{share:.1%}" for share in shares)
            cells.append(f"[red]{cell}[/]" if shares[2] > SILENT else cell)
        table.add_row(name, *cells)
    Console().print(table)


def _write(audit: "CoverageAudit", loss: str, text: str, folder: Path) -> list[Path]:
    from nemo_xtoken.files import atomic_path
    from nemo_xtoken.report.coverage import draw_coverage

    data, picture = folder / "coverage.json", folder / "coverage.png"
    with atomic_path(data) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")
    title = f"{Path(audit.student).name} -> {Path(audit.teacher).name}"
    draw_coverage(title, f"recommended loss: {loss}", audit.to_json()["classes"], picture)
    return [data, picture]


def _print(audit: "CoverageAudit", recommended: str, reason: str, written: list[Path]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(
        title=escape(f"{audit.student} ({audit.student_size:,}) -> {audit.teacher} ({audit.teacher_size:,})"),
        title_style="bold",
    )
    table.add_column("student tokens", no_wrap=True)
    for name, style in (("number", ""), ("exact", "green"), ("multi", "yellow"), ("empty", "red")):
        table.add_column(name, justify="right", style=style)
    table.add_column("in C", justify="right")
    table.add_column("examples", overflow="fold")
    for c in audit.classes:
        if not c.total:
            continue
        examples = [c.examples[kind][0] for kind in ("multi", "empty", "exact") if kind in c.examples][:2]
        share = f"{c.exact / c.total:.0%}"
        table.add_row(
            f"[bold]{c.label}[/]" if c.critical else c.label,
            *(f"{n:,}" for n in (c.total, c.exact, c.multi, c.empty)),
            f"[red]{share}[/]" if c.outside else share,
            escape(",  ".join(examples)),
        )
    console = Console()
    console.print(table)
    plain: dict[str, Any] = {"highlight": False, "soft_wrap": True}
    fragments = sum(c.fragments for c in audit.classes if c.critical)
    if fragments:
        console.print(
            f"Bold classes decide. {fragments} of their tokens are single bytes, counted as in the paper, that do not.",
            **plain,
        )
    console.print(recommended, **plain)
    console.print(escape(reason), **plain)
    for path in written:
        console.print(f"saved in {path}", markup=False, **plain)


VERB = Verb(
    name="audit",
    summary="count which student tokens the teacher has, and recommend a loss",
    description=(
        "Counts, per class of student tokens, how many are a token of the teacher (exact: the set C), are cut into "
        "several (multi), or have no row (empty). Where numerals or punctuation lie outside C, the loss for "
        "this pair is P-KL; where they lie inside, H-KL. A run with loss=auto does the same. With text=.. it also "
        "prints which share of the student's tokens of a text each loss scores: in full, where it compares the "
        "distributions at the token's position; in part, where a chunk of several tokens is compared at one position; "
        "or not; with model=.. also which share of the bits that the teacher needs for the text. With chat=.. it "
        "renders and aligns conversations by both sides' chat templates: how many one of them cannot render, what they "
        "leave out, and which share of the labels is compared."
    ),
    options=(
        Option("student", "the student's tokenizer: a folder, a tokenizer file or a hub name", required=True),
        Option("teacher", "the teacher's tokenizer, in the same forms", required=True),
        Option("text", "also look at a text: the text, @FILE, or samples for five short ones of different kinds"),
        Option(
            "model",
            "the teacher's model, in Hugging Face's format: also the share of its bits that each loss scores",
            goes_with="text",
        ),
        Option("chat", "also look at conversations: a file, glob or folder, of which the first 1,000 are read"),
        Option("messages_key", "the column that holds the messages", default="messages", goes_with="chat"),
        Option("tools_key", "the column that holds the tools, where there is one", default="tools", goes_with="chat"),
        Option(
            "chat_template", "a file with the student's chat template, where its tokenizer has none", goes_with="chat"
        ),
        Option("learn", "what of them is learned", default="answers,reasoning,calls", goes_with="chat"),
        Option("out", "a folder for coverage.json and coverage.png", writes="folder"),
        Option("json", "print JSON", bool, False),
    ),
    examples=(
        ("audit student=models/llama teacher=models/qwen", "the table and the recommended loss"),
        ("audit student=a teacher=b out=audit", "also as JSON and as a figure"),
        ("audit student=a teacher=b chat=chat.jsonl", "also what both chat templates make of conversations"),
        ("audit student=a teacher=b text=@code.txt", "also what each loss scores of a text"),
        ("audit student=a teacher=models/b text=samples model=models/b", "of what the teacher finds hard, too"),
    ),
    run=_run,
)

"""``xtoken audit``: which classes of student tokens the teacher has, and the loss that fits the pair."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemo_xtoken.commands.verb import Option, Verb
from nemo_xtoken.errors import InputError

if TYPE_CHECKING:
    from nemo_xtoken.projection.audit import CoverageAudit

__all__ = ["VERB"]


def _run(arguments: Mapping[str, Any]) -> int:
    from nemo_xtoken.losses.options import recommend
    from nemo_xtoken.projection.audit import audit_coverage
    from nemo_xtoken.projection.build import load_or_build
    from nemo_xtoken.vocab.loading import load_vocabulary

    folder = Path(arguments["out"]) if arguments["out"] else None
    if folder is not None and folder.exists() and not folder.is_dir():
        raise InputError(f"out={folder} is a file", "a folder, which is made when missing", "name another")
    student, teacher = load_vocabulary(arguments["student"]), load_vocabulary(arguments["teacher"])
    audit = audit_coverage(student, teacher, load_or_build(student, teacher))
    loss, title, reason = recommend(audit)
    record = audit.to_json() | {"loss": loss, "reason": reason}
    text = json.dumps(record, ensure_ascii=False, indent=None if folder is None else 1)
    written = _write(audit, title, text, folder) if folder is not None else []
    if arguments["json"]:
        print(text)
    else:
        _print(audit, f"[bold]Recommended loss: {title}[/] (loss={loss})", reason, written)
    return 0


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
        "several (multi), or into more than W keeps (empty). Where numerals or punctuation lie outside C, the loss for "
        "this pair is P-KL; where they lie inside, H-KL. A run with loss=auto does the same."
    ),
    options=(
        Option("student", "the student's tokenizer: a folder, a tokenizer file or a hub name", required=True),
        Option("teacher", "the teacher's tokenizer, in the same forms", required=True),
        Option("out", "a folder for coverage.json and coverage.png"),
        Option("json", "print JSON", bool, False),
    ),
    examples=(
        ("audit student=models/llama teacher=models/qwen", "the table and the recommended loss"),
        ("audit student=a teacher=b out=audit", "also as JSON and as a figure"),
    ),
    run=_run,
)

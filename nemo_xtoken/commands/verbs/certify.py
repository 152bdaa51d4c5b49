"""``xtoken certify``: what each loss does to a student that already agrees with its teacher."""

import contextlib
import gc
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemo_xtoken.commands.verb import Option, Verb
from nemo_xtoken.commands.verbs.texts import read_text
from nemo_xtoken.limits import MOST_WORKERS

if TYPE_CHECKING:
    from rich.console import Console

    from nemo_xtoken.certify.certificate import Certificates, Finding

__all__ = ["VERB"]

#: A text for people to look at has far fewer; a step takes a millisecond; no larger rate is stable for any loss.
MOST_CHUNKS, MOST_STEPS, LARGEST_RATE = 10_000, 1_000_000, 1000

#: Between two lines of progress.
SECONDS = 5.0
#: Of the table, with their widths: 80 columns in all.
COLUMNS = {"chunks": 18, "value": 7, "least": 7, "gradient": 8, "right token": 12, "says then": 8, "verdict": 12}
VERDICT_STYLES = {"certified": "bold green", "kept": "green", "falling": "yellow", "lost": "bold red"}


def _run(arguments: Mapping[str, Any]) -> int:
    from nemo_xtoken.certify.cases import build_cases
    from nemo_xtoken.certify.certify_config import DEFAULT_TEXT, CertifyConfig
    from nemo_xtoken.certify.side_by_side import beside
    from nemo_xtoken.certify.spellings import Spellings
    from nemo_xtoken.progress import Pace, Phase
    from nemo_xtoken.sharing.forked_children import cores_here
    from nemo_xtoken.vocab.loading import load_vocabulary

    workers = cores_here() if arguments["workers"] is None else arguments["workers"]
    folder = Path(arguments["out"]) if arguments["out"] else None
    config = CertifyConfig(**{name: arguments[name] for name in ("probability", "chunks", "steps", "rate")})
    text = DEFAULT_TEXT if arguments["text"] is None else read_text(arguments["text"])
    with _without_collections():
        here = os.path.exists(os.path.expanduser(arguments["teacher"]))  # two downloads at once would mix their bars
        second = beside(lambda: load_vocabulary(arguments["teacher"]), workers if here else 0)
        with Phase("reading the tokenizers"), second as read:
            student, teacher = load_vocabulary(arguments["student"]), read()
        with beside(lambda: build_cases(Spellings(student, teacher), text, config), workers) as built:
            from nemo_xtoken.certify.certificate import certify  # loads torch, which takes as long
            from nemo_xtoken.certify.variants import variants_for

            variants = variants_for(arguments["loss"], student, teacher)
            cases = built()
    pace = Pace(SECONDS)
    with Phase("measuring", len(variants), "losses" if len(variants) > 1 else "loss") as phase:

        def tell(name: str, number: int, total: int) -> None:
            phase.at(number, {"now": name}, line=pace.due())

        found = certify(student, teacher, cases, variants, config, tell, workers)
    data = json.dumps(found.to_json(), ensure_ascii=False)
    written = _write(found, data, folder) if folder is not None else []
    if arguments["json"]:
        print(data)
    else:
        _print(found, written)
    return 0


@contextlib.contextmanager
def _without_collections() -> Iterator[None]:
    """Tokenizers are a million objects that stay: looking for garbage among them takes a tenth of the time."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


def _write(found: "Certificates", data: str, folder: Path) -> list[Path]:
    from nemo_xtoken.certify.cases import KINDS
    from nemo_xtoken.certify.certificate import falls_most
    from nemo_xtoken.files import atomic_path
    from nemo_xtoken.report.certificates import Curve, draw_certificates

    file, picture = folder / "certificates.json", folder / "certificates.png"
    with atomic_path(file) as temporary:
        temporary.write_text(data + "\n", encoding="utf-8")
    panels: dict[str, dict[str, list[Curve]]] = {}
    for d in found.descents:
        for kind, which in found.kinds.items():
            curves = panels.setdefault(d.variant.loss, {}).setdefault(KINDS[kind], [])
            if d.scored[which].any():
                probability = d.probability[:, which]
                worst = probability[:, falls_most(probability)]  # as in the table
                curves.append((d.variant.settings, d.steps.tolist(), worst.tolist()))
    draw_certificates(f"{Path(found.student).name} -> {Path(found.teacher).name}", panels, picture)
    return [file, picture]


def _print(found: "Certificates", written: list[Path]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from nemo_xtoken.certify.cases import KINDS

    console = Console()
    _print_chunks(found, console)
    console.print(f"[bold]{escape(Path(found.student).name)} -> {escape(Path(found.teacher).name)}[/]")
    for number, descent in enumerate(found.descents):
        table = Table(box=None, show_header=number == 0, padding=(0, 1, 0, 0))
        for name, width in COLUMNS.items():
            justify: Any = "left" if name in ("chunks", "says then", "verdict") else "right"
            table.add_column(name, width=width, justify=justify, overflow="fold")
        for kind, finding in found.findings(descent).items():
            chunks = KINDS.get(kind, kind)
            if 0 < finding.scored < finding.chunks:
                chunks += f" ({finding.scored} of {finding.chunks} compared)"
            table.add_row(chunks, *_cells(finding), style="bold" if kind == "all" else "")
        console.print()
        console.print(f"[bold]{escape(descent.variant.name)}[/]", highlight=False, soft_wrap=True)
        console.print(table)
    plain: dict[str, Any] = {"highlight": False, "soft_wrap": True}
    console.print(
        f"\nEach row is the worst of its chunks. Value: where student and teacher agree. Least: there and along "
        f"{found.config.steps} steps of gradient descent (rate {found.config.rate:g}) on free logits over "
        f"{found.sizes[0]:,} and {found.sizes[1]:,} tokens. Right token: its probability before and after, "
        "and the first token that is most probable then, where it did not stay.\n"
        "Certified: never negative, and 0 and no gradient where they agree, and the right token stays. Kept, falling, "
        "lost: not so, and the right token stays, has less, or has less than half.",
        **plain,
    )
    for path in written:
        console.print(f"saved in {path}", markup=False, **plain)


def _print_chunks(found: "Certificates", console: "Console") -> None:
    from nemo_xtoken.certify.cases import KINDS

    console.print("chunks, by their student and teacher tokens", highlight=False)
    for kind, which in found.kinds.items():
        texts = "  ".join(repr(found.cases[i].text) for i in which)
        console.print(f"  {KINDS[kind]}: {texts}", markup=False, highlight=False, soft_wrap=True)
    console.print()


def _cells(finding: "Finding") -> list[str]:
    if not finding.scored:
        return ["", "", "", "", "", "[dim]not compared[/]"]

    def judged(text: str, good: bool) -> str:
        return text if good else f"[red]{text}[/]"

    from rich.markup import escape

    style = VERDICT_STYLES[finding.verdict]
    return [
        judged(_number(finding.value), finding.zero_there),
        judged(_number(finding.least), finding.never_negative),
        judged(_number(finding.gradient), finding.still_there),
        judged(f"{_share(finding.before)} -> {_share(finding.after)}", finding.keeps),
        "" if finding.keeps else f"{escape(repr(finding.instead))} {_share(finding.instead_probability)}",
        f"[{style}]{finding.verdict}[/]",
    ]


def _share(probability: float) -> str:
    return f"{probability:.3f}".removeprefix("0")


def _number(value: float) -> str:
    """Of at most 7 characters, a column's width, for anything between -1e99 and 1e99."""
    from nemo_xtoken.certify.certificate import ZERO

    size = abs(value)
    if size <= ZERO:
        return "0"
    if size < 0.001 or size >= 99.9995:
        return f"{value:.1e}".replace("e-0", "e-").replace("e+0", "e")
    return f"{value:.2g}" if size < 0.1 else f"{value:.3f}"


VERB = Verb(
    name="certify",
    summary="show what each loss does to a student that already agrees with its teacher",
    description=(
        "Takes chunks of a text and lets a student and a teacher agree perfectly on what is said there: both define "
        "the same distribution over strings, each in its own tokens. A loss that is to be trusted is 0 there, has no "
        "gradient, is never negative, and leaves the student where it is. Each loss is measured, through the code "
        "that trains, by the kind of chunk: tokens that both have; a student token that the teacher writes as several, "
        "such as 201; several student tokens that the teacher writes as one."
    ),
    options=(
        Option("student", "the student's tokenizer: a folder, a tokenizer file or a hub name", required=True),
        Option("teacher", "the teacher's tokenizer, in the same forms", required=True),
        Option("loss", "a loss, several with commas, auto (what the audit recommends), or all", default="all"),
        Option(
            "text", "the text; @FILE reads a UTF-8 file, - standard input; by default one of many kinds", empty=True
        ),
        Option("probability", "of the right token where both agree", float, 0.986, above=0, most=0.999999),
        Option("chunks", "chunks of each kind, at most", int, 4, least=1, most=MOST_CHUNKS),
        Option("steps", "steps of gradient descent", int, 200, least=1, most=MOST_STEPS),
        Option("rate", "its step size; a plain KL is stable below 4", float, 2.0, above=0, most=LARGEST_RATE),
        Option(
            "workers", "processes; default one for each core that this one may use", int, least=0, most=MOST_WORKERS
        ),
        Option("out", "a folder for certificates.json and certificates.png", writes="folder"),
        Option("json", "print JSON", bool, False),
    ),
    examples=(
        ("certify student=models/llama teacher=models/qwen", "every loss on the embedded text"),
        ("certify student=a teacher=b loss=p_kl,gold text=@sample.txt out=certificates", "two losses on a file"),
        ("certify student=a teacher=b loss=auto --json", "the recommended loss, as JSON"),
    ),
    run=_run,
)

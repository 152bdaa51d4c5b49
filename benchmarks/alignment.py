"""How many tokens a second the aligner takes on one core, on five kinds of text from 1k to 128k tokens.

  library   nemo_xtoken.alignment.Aligner: the cuts common to both sides, by running sums of byte lengths
  loop      the same cuts by two pointers in a Python loop: the plain way, and a check, since both must give the same.
            It knows no tokens without text and no differing bytes, so it runs where the bytes of both sides are equal
  paper     X-Token's dynamic programme over the whole sequences (here vectorised by rows; the published program is a
            Python loop).  Its time and memory grow with the square, so it runs up to --paper-tokens only

Tokens are the student's.  All run in turns in one process on one core, timed by the processor time that the process
took, so that waiting for a core that others use does not count.  In the last kind of text, "accents apart",
bytes differ every few words wherever one tokenizer normalises (as Qwen's does) and the other does not.

examples:
  python benchmarks/alignment.py
  python benchmarks/alignment.py --student meta-llama/Llama-3.2-1B --teacher Qwen/Qwen3-4B --json alignment.json
  python benchmarks/alignment.py --text news=news.txt --sizes 1000 10000
"""

import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from bench import Parser, in_turns, load_pair, machine_line, ratio, wide_console, write_json
from texts import KINDS, text_of

from nemo_xtoken.alignment import Aligner
from nemo_xtoken.alignment.aligner import MAX_DP_TOKENS
from nemo_xtoken.vocab import Vocabulary

SIZES = [1000, 2000, 4000, 8000, 16000, 32000, 64000, 128000]
CHARACTERS = 20_000  # from which a kind's characters per token are taken


def by_loop(student: Vocabulary, teacher: Vocabulary, s_ids: np.ndarray, t_ids: np.ndarray) -> np.ndarray:
    """int32 ``[K, 4]``, the chunks of two tokenizations of the same bytes, by two pointers."""
    if student.decode_bytes(s_ids) != teacher.decode_bytes(t_ids):
        raise ValueError("the loop is for equal bytes")
    s_lengths, t_lengths = student.byte_length[s_ids].tolist(), teacher.byte_length[t_ids].tolist()
    chunks: list[list[int]] = []
    i = j = start_i = start_j = s_end = t_end = 0
    while i < len(s_lengths) or j < len(t_lengths):
        if s_end <= t_end:
            s_end += s_lengths[i]
            i += 1
        else:
            t_end += t_lengths[j]
            j += 1
        if s_end == t_end:
            chunks.append([start_i, i, start_j, j])
            start_i, start_j = i, j
    return np.array(chunks, np.int32).reshape(-1, 4)


def repeated(text: str, characters: int) -> str:
    """So many characters of a text, which starts anew when it ends."""
    return (text * (characters // max(len(text), 1) + 1))[:characters]


def measure(
    student: Vocabulary, teacher: Vocabulary, text: Callable[[int], str], sizes: list[int], rounds: int, most: int
) -> list[dict[str, Any]]:
    """A row of figures per size, as plain values.

    Args:
        text: so many characters of a text.
        most: tokens up to which the paper's dynamic programme runs.
    """
    aligner, paper = Aligner(student, teacher), Aligner(student, teacher, "dp")
    per_token = CHARACTERS / len(student.encode(text(CHARACTERS)))
    rows = []
    for size in sizes:
        sample = text(round(size * per_token))
        s_ids, t_ids = student.encode(sample), teacher.encode(sample)
        competitors: dict[str, Callable[[], Any]] = {"library": partial(aligner.align, s_ids, t_ids)}
        equal_bytes = student.decode_bytes(s_ids) == teacher.decode_bytes(t_ids)
        if equal_bytes:
            competitors["loop"] = partial(by_loop, student, teacher, s_ids, t_ids)
            if not np.array_equal(competitors["library"](), competitors["loop"]()):
                raise SystemExit(f"error: the loop gives other chunks than the library on {size} tokens")
        if max(len(s_ids), len(t_ids)) <= min(most, MAX_DP_TOKENS):
            competitors["paper"] = partial(paper.align, s_ids, t_ids)
        seconds = in_turns(competitors, rounds, time.process_time)
        row: dict[str, Any] = {"student_tokens": len(s_ids), "teacher_tokens": len(t_ids), "equal_bytes": equal_bytes}
        row["chunks"] = {name: len(call()) for name, call in competitors.items()}
        row["seconds"] = {name: statistics.median(times) for name, times in seconds.items()}
        row["tokens_per_second"] = {name: len(s_ids) / time for name, time in row["seconds"].items()}
        row["ratios"] = {name: ratio(seconds, name, "library") for name in seconds if name != "library"}
        rows.append(row)
    return rows


def show(result: dict[str, Any]) -> None:
    """Prints one table."""
    from rich.table import Table

    table = Table(title="tokens a second of processor time", title_style="bold")
    table.add_column("text", no_wrap=True)
    for name in ("tokens", "teacher's", "chunks", "library", "loop", "paper", "loop takes", "paper takes"):
        table.add_column(name, justify="right")
    for kind, rows in result["texts"].items():
        for row in rows:
            speed, ratios = row["tokens_per_second"], row["ratios"]
            table.add_row(
                kind if row is rows[0] else "",
                *(f"{row[name]:,}" for name in ("student_tokens", "teacher_tokens")),
                f"{row['chunks']['library']:,}",
                *(f"{speed[name]:,.0f}" if name in speed else "" for name in ("library", "loop", "paper")),
                *(f"{ratios[name]:,.1f} times" if name in ratios else "" for name in ("loop", "paper")),
            )
        table.add_section()
    console = wide_console()
    console.print(table)
    every = [row for rows in result["texts"].values() for row in rows]
    for equal, meaning in ((True, "equal"), (False, "not equal")):
        speeds = [row["tokens_per_second"]["library"] for row in every if row["equal_bytes"] == equal]
        if speeds:
            text = f"slowest where the bytes of both sides are {meaning}: {min(speeds):,.0f} tokens a second"
            console.print(text, highlight=False)
    for kind, rows in result["texts"].items():
        each = [1e9 / row["tokens_per_second"]["library"] for row in rows]
        console.print(f"{kind}: {', '.join(f'{e:.0f}' for e in each)} ns a token, by size", highlight=False)
    console.print(f"before the first text: {result['start_seconds']:.2f} s for both vocabularies", highlight=False)


def main(arguments: list[str]) -> None:
    """Runs the benchmark."""
    parser = Parser(__doc__)
    parser.add_pair()
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, metavar="TOKENS", help="(default: 1k to 128k)")
    parser.add_argument("--text", action="append", default=[], metavar="NAME=FILE", help="a UTF-8 file of your own")
    parser.add_argument("--rounds", type=int, default=7, help="how often each is timed (default: 7)")
    parser.add_argument(
        "--paper-tokens",
        type=int,
        default=MAX_DP_TOKENS,
        help=f"most for the paper's aligner (default and most: {MAX_DP_TOKENS})",
    )
    parser.add_output()
    given = parser.parse_args(arguments)
    texts: dict[str, Callable[[int], str]] = {kind: partial(text_of, kind) for kind in KINDS}
    for named in given.text:
        name, equals, file = named.partition("=")
        if not equals:
            parser.error(f"--text {named}: NAME=FILE is expected")
        texts[name] = partial(repeated, Path(file).read_text("utf-8"))
    student, teacher = load_pair(given)
    print(machine_line())
    start = time.perf_counter()
    Aligner(student, teacher).align(student.encode("a"), teacher.encode("a"))
    result: dict[str, Any] = {"start_seconds": time.perf_counter() - start}
    result |= {"student": student.name, "teacher": teacher.name, "rounds": given.rounds, "texts": {}}
    for name, text in texts.items():
        print(f"{name} ..", file=sys.stderr, flush=True)
        result["texts"][name] = measure(student, teacher, text, given.sizes, given.rounds, given.paper_tokens)
    show(result)
    write_json(given.json, result)


if __name__ == "__main__":
    main(sys.argv[1:])

"""How long it takes to build W, and how much memory, beside two other ways to build it.

  library   nemo_xtoken.projection.build.build_projection: a table of byte strings, one batch through the tokenizer
  loop      the plain way: for each student token its decoded text; looked up among the teacher's decoded texts, else
            encoded by itself
  dense     W as a full array, as the paper writes it: all pairs of tokens compared, rows filled and normalised, the
            four largest entries of each kept.  It takes V_S * V_T * 4 bytes and time in proportion, so it runs on the
            first tokens of both vocabularies only; what it would take for all is worked out from the largest run

The first two run in turns in one process, and so do their ratios.  Loading the tokenizers is timed on its own.

examples:
  python benchmarks/projection.py
  python benchmarks/projection.py --student meta-llama/Llama-3.2-1B --teacher Qwen/Qwen3-4B --json projection.json
"""

import statistics
import sys
import time
from functools import partial
from typing import Any

import numpy as np
from bench import Parser, in_turns, load_pair, machine_line, peak_memory, ratio, wide_console, write_json

from nemo_xtoken.projection.build import ProjectionRule, build_projection
from nemo_xtoken.projection.matrix import ProjectionMatrix
from nemo_xtoken.projection.rows import row_distances
from nemo_xtoken.projection.token_classes import is_text
from nemo_xtoken.vocab import Vocabulary

RULE = ProjectionRule()
MIB = 2**20


def by_loop(student: Vocabulary, teacher: Vocabulary) -> ProjectionMatrix:
    """W from decoded strings, token by token."""
    id_of_text: dict[str, int] = {}
    for t in range(teacher.size):
        id_of_text.setdefault(teacher.decode_bytes([t]).decode("utf-8", "replace"), t)
    ids = np.full((student.size, RULE.max_pieces), -1, np.int32)
    weights = np.zeros((student.size, RULE.max_pieces), np.float32)
    for s in range(student.size):
        text = student.decode_bytes([s]).decode("utf-8", "replace")
        same = id_of_text.get(text) if text else teacher.id_of_role.get(student.roles.get(s, ""))
        if same is not None:
            ids[s, 0], weights[s, 0] = same, 1.0
        if same is not None or not text:
            continue
        pieces = teacher.encode(text).tolist()
        if len(pieces) > RULE.max_pieces:
            continue
        row: dict[int, float] = {}
        for piece, weight in zip(pieces, RULE.weights(len(pieces)), strict=True):
            row[piece] = row.get(piece, 0.0) + float(weight)
        ids[s, : len(row)], weights[s, : len(row)] = list(row), list(row.values())
    return ProjectionMatrix(ids, weights, teacher.size, student.digest, teacher.digest)


def by_dense_array(student: Vocabulary, teacher: Vocabulary, tokens: int) -> tuple[np.ndarray, np.ndarray]:
    """Ids and weights ``[tokens, 4]`` of the first tokens of both vocabularies, by way of ``[tokens, tokens]``."""
    ours, theirs = student.token_bytes[:tokens], teacher.token_bytes[:tokens]
    numbers: dict[bytes, int] = {}
    here, there = (
        [numbers.setdefault(b, len(numbers)) if b else -1 - i for b in side] for i, side in enumerate((ours, theirs))
    )
    array = (np.array(here)[:, None] == np.array(there)[None, :]).astype(np.float32)
    for s in np.flatnonzero(~array.any(axis=1)):
        pieces = teacher.encode((ours[s] or b"").decode("utf-8", "replace"))
        if 0 < len(pieces) <= RULE.max_pieces and max(pieces) < array.shape[1]:
            np.add.at(array[s], pieces, RULE.weights(len(pieces)))
    array /= np.maximum(array.sum(axis=1, keepdims=True), 1e-30)
    ids = np.argpartition(-array, RULE.max_pieces, axis=1)[:, : RULE.max_pieces]
    return ids, np.take_along_axis(array, ids, 1)


def measure(student: Vocabulary, teacher: Vocabulary, rounds: int, dense: list[int]) -> dict[str, Any]:
    """Every figure, as plain values: seconds and bytes."""
    matrix, memory = peak_memory(lambda: build_projection(student, teacher))
    other, loop_memory = peak_memory(lambda: by_loop(student, teacher))
    seconds = in_turns(
        {"library": lambda: build_projection(student, teacher), "loop": lambda: by_loop(student, teacher)}, rounds
    )
    rows = {
        name: {"seconds": statistics.median(times), "least": min(times), "most": max(times), "memory": peak}
        for (name, times), peak in zip(seconds.items(), (memory, loop_memory), strict=True)
    }
    rows["loop"]["ratio"] = ratio(seconds, "loop", "library")
    differing = np.flatnonzero(row_distances(matrix, other) > 1e-6).tolist()
    arrays = []
    for tokens in dense:
        if tokens > min(student.size, teacher.size):
            continue
        start = time.perf_counter()
        _, peak = peak_memory(partial(by_dense_array, student, teacher, tokens))
        arrays.append({"tokens": tokens, "seconds": time.perf_counter() - start, "memory": peak})
    return {
        "rounds": rounds,
        "coverage": matrix.coverage,
        "methods": rows,
        "rows_that_differ": len(differing),
        "fragments_that_differ": sum(not is_text(student.token_bytes[s] or b"") for s in differing),
        "dense": arrays,
    }


def show(result: dict[str, Any], student: Vocabulary, teacher: Vocabulary) -> None:
    """Prints the table."""
    from rich.table import Table

    table = Table(title=f"W of {student.size:,} x {teacher.size:,} tokens", title_style="bold")
    table.add_column("method", no_wrap=True)
    for name in ("median s", "least", "most", "extra MiB", "times as long"):
        table.add_column(name, justify="right")
    table.add_row("load both tokenizers", f"{result['load_seconds']:.2f}", "", "", "", "")
    table.add_section()
    for name, row in result["methods"].items():
        times = f"{row['ratio']:.1f}" if "ratio" in row else "1"
        cells = (f"{row[k]:.2f}" for k in ("seconds", "least", "most"))
        table.add_row(name, *cells, _mebibytes(row["memory"]), times)
    library = result["methods"]["library"]["seconds"]
    table.add_section()
    for row in result["dense"]:
        name = f"dense, first {row['tokens']:,} tokens of both"
        table.add_row(name, f"{row['seconds']:.2f}", "", "", _mebibytes(row["memory"]), "")
    if result["dense"]:
        last = result["dense"][-1]
        factor = student.size * teacher.size / last["tokens"] ** 2
        seconds, memory = last["seconds"] * factor, _mebibytes(student.size * teacher.size * 4)
        table.add_row("dense, all tokens (worked out)", f"{seconds:,.0f}", "", "", memory, f"{seconds / library:,.0f}")
    console = wide_console()
    console.print(table)
    rows = ", ".join(f"{count:,} {kind}" for kind, count in result["coverage"].items())
    console.print(f"rows: {rows}", highlight=False, soft_wrap=True)
    fragments = f"{result['fragments_that_differ']:,} of them byte fragments, which all decode to one sign"
    console.print(f"rows of the loop that differ: {result['rows_that_differ']:,}, {fragments}", highlight=False)


def _mebibytes(size: int | None) -> str:
    return "?" if size is None else f"{size / MIB:,.0f}"


def main(arguments: list[str]) -> None:
    """Runs the benchmark."""
    parser = Parser(__doc__)
    parser.add_pair()
    parser.add_argument("--rounds", type=int, default=5, help="how often each is timed (default: 5)")
    parser.add_argument(
        "--dense",
        type=int,
        nargs="*",
        default=[2048, 4096, 8192],
        metavar="TOKENS",
        help="sizes for the dense form; 8192 takes 1 GB (default: 2048 4096 8192; none to leave it out)",
    )
    parser.add_output()
    given = parser.parse_args(arguments)
    start = time.perf_counter()
    student, teacher = load_pair(given)
    load_seconds = time.perf_counter() - start
    result = {"student": student.name, "teacher": teacher.name, "load_seconds": load_seconds}
    print(machine_line())
    result |= measure(student, teacher, given.rounds, given.dense)
    show(result, student, teacher)
    write_json(given.json, result)


if __name__ == "__main__":
    main(sys.argv[1:])

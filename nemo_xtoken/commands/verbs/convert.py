"""``xtoken convert``: W from and to NeMo-RL's projection files."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nemo_xtoken.commands.verb import Option, UsageError, Verb
from nemo_xtoken.limits import MOST_ROWS

__all__ = ["VERB"]


def _run(arguments: Mapping[str, Any]) -> int:
    from nemo_xtoken.projection.matrix import ProjectionMatrix
    from nemo_xtoken.projection.nemo_rl import is_torch_file, read_nemo_rl, write_nemo_rl
    from nemo_xtoken.vocab.loading import load_vocabulary

    source, target = Path(arguments["from"]), Path(arguments["to"])
    exporting = is_torch_file(target)
    if is_torch_file(source) == exporting:
        raise UsageError(
            f"from={source} to={target}: one is a .pt file of NeMo-RL, the other a .safetensors file of ours"
        )
    if arguments["rows"] is not None and not exporting:
        raise UsageError("rows= is for writing a .pt file")
    student, teacher = load_vocabulary(arguments["student"]), load_vocabulary(arguments["teacher"])
    if exporting:
        matrix = ProjectionMatrix.load(source, student, teacher)
        write_nemo_rl(matrix, target, student, teacher, arguments["rows"])
        print(f"saved in {target}, weights rounded to bfloat16")
        return 0
    matrix, report = read_nemo_rl(source, student, teacher)
    for warning in report.warnings():
        print(f"warning: {warning}", file=sys.stderr)
    matrix.save(target)
    counts = ", ".join(f"{matrix.coverage[kind]:,} {kind}" for kind in ("exact", "multi", "empty"))
    print(f"saved in {target}: {matrix.student_size:,} rows ({counts})")
    return 0


VERB = Verb(
    name="convert",
    summary="convert W from and to NeMo-RL's projection files",
    description=(
        "Reads a projection file of NeMo-RL (.pt) and writes ours (.safetensors), or the other way round. No code in a "
        ".pt file is run. Rows that do not sum to 1 are divided by their sum, with a warning that "
        "says how many; what else the file has is kept, and `inspect` reports what of it is junk."
    ),
    options=(
        Option("from", "the file to read: .pt or .safetensors", required=True),
        Option("to", "the file to write: .safetensors or .pt", required=True, writes="file"),
        Option("student", "the student's tokenizer: a folder, a tokenizer file or a hub name", required=True),
        Option("teacher", "the teacher's tokenizer, in the same forms", required=True),
        Option(
            "rows",
            "rows of a .pt file, for an output layer that is wider than the vocabulary",
            int,
            least=1,
            most=MOST_ROWS,
        ),
    ),
    examples=(
        ("convert from=projection.pt to=w.safetensors student=models/llama teacher=models/qwen", "use their W here"),
        ("convert from=w.safetensors to=projection.pt student=a teacher=b rows=128256", "use ours there"),
    ),
    run=_run,
)

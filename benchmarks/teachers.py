"""What teachers on disk and in other processes cost.

  disk      states of random numbers, in pieces of 512 tokens: written, then read in random order; the first reading
            compares checksums.  Files stay in the page cache, and a core's seconds count, not those of the disk
  sources   a student takes --step seconds for a step of --rows rows, and asks two steps ahead.  Its teacher is a pause
            as well, which computes --teacher-rate tokens a second: beside it, or as replicas in processes of their own;
            or its states are on disk.  The share of the student's time that it waits, and bytes on the wire beside
            those of the states
  service   one replica and one student without either pause
  training  with --training: short trainings of the models of xtoken_tiny by a teacher beside the student and by each
            form on disk; needs NeMo, and some minutes
  models    with --models: for each form in which a teacher can be stored, and for plain top-k lists, the angle between
            the gradient by it and by exact states, for each loss; and, by --train, what a short training by it comes to

Figures in the documents are those of benchmarks/teachers.json; --page writes them there.

examples:
  python benchmarks/teachers.py --steps 8 --json benchmarks/teachers.json
  python benchmarks/teachers.py --hidden 4096 --replicas 1 2 4 8
  python benchmarks/teachers.py --training runs/forms --json benchmarks/teachers.json
  python benchmarks/teachers.py --only cached --steps 8 --json benchmarks/teachers.json
  python benchmarks/teachers.py --models models/student models/teacher text.txt --json benchmarks/teachers.json
  python benchmarks/teachers.py --page
"""

import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench import Parser, machine, machine_line, write_json
from teacher_sources import Shape, beside, elsewhere, fingerprint, on_disk
from teachers_page import fill_documents, merged, with_rows

from nemo_xtoken.teachers.store.state_formats import format_for
from nemo_xtoken.teachers.store.state_store import StateStore
from nemo_xtoken.teachers.store.state_writer import StateWriter

PIECE = 512
COLUMNS = ("teacher", "tokens/s", "waiting", "wire")


def core_share(seconds: float = 1.0) -> float:
    """The share of a core that a busy process gets beside what else runs here."""
    begin, own = time.perf_counter(), time.process_time()
    while time.perf_counter() - begin < seconds:
        pass
    return (time.process_time() - own) / (time.perf_counter() - begin)


def disk(name: str, hidden: int, tokens: int) -> dict[str, Any]:
    """Rates of one format, in tokens for a second of a core, and its bytes a token."""
    of, kind = fingerprint(hidden), format_for(name, "bfloat16")
    states, ids = torch.randn(PIECE, hidden).bfloat16(), np.arange(PIECE, dtype=np.int32)
    pieces = max(1, tokens // PIECE)
    with tempfile.TemporaryDirectory() as folder:
        begin = time.process_time()
        with StateWriter(Path(folder), of, kind) as writer:
            for number in range(pieces):
                writer.add(number.to_bytes(16, "big"), 0, ids, states)
            writer.finish()
        seconds = {"write": time.process_time() - begin}
        size = sum(path.stat().st_size for path in Path(folder).rglob("*.safetensors"))
        store = StateStore(Path(folder), of)
        for turn in ("read, checked", "read again"):
            begin = time.process_time()
            for number in np.random.default_rng(0).permutation(pieces).tolist():
                (segment,) = store.segments(number.to_bytes(16, "big"), 0, PIECE)
                store.read(segment, ids, torch.bfloat16)
            seconds[turn] = time.process_time() - begin
    rates = {turn: pieces * PIECE / s for turn, s in seconds.items()}
    return {"format": name, "bytes a token": size / (pieces * PIECE), **rates}


def sources(shape: Shape, replicas: Sequence[int]) -> Mapping[str, Callable[[], dict[str, Any]]]:
    """The same student by each: a call that takes its steps."""
    remote = {f"remote, {count}": partial(elsewhere, shape, count) for count in replicas}
    cached = {f"cached, {form}": partial(on_disk, shape, form) for form in ("bf16", "fp8")}
    return {"colocated": partial(beside, shape), **remote, **cached}


def shown(rows: Iterable[dict[str, Any]], columns: Sequence[str] = ()) -> list[dict[str, Any]]:
    """The rows, each printed as soon as it is there.

    Args:
        columns: default those of the first row.
    """
    found: list[dict[str, Any]] = []
    for row in rows:
        if not found:
            columns = columns or list(row)
            print("  ".join(f"{name:>20}" for name in columns))
        found.append(row)
        values = [row.get(name, "") for name in columns]
        print("  ".join(f"{v:>20,.4g}" if isinstance(v, float) else f"{v!s:>20}" for v in values), flush=True)
    print()
    return found


def by_models(names: Sequence[str], losses: Sequence[str], texts: int, characters: int, steps: int) -> dict[str, Any]:
    """What the forms of a stored teacher do; shows it."""
    from stored_teachers import DRAWS, LOSSES, Models, gradients, training

    models = Models.load(*names, batches=5, texts=texts, characters=characters)
    rows = int((models.batches[0].teacher_labels >= 0).sum()), models.batches[0].chunks.shape[0]
    print(f"{rows[0]:,} positions of the teacher in {rows[1]:,} chunks")
    student, teacher, _ = (Path(name).name for name in names)
    shape = {"student": student, "teacher": teacher, "positions": rows[0], "chunks": rows[1], "draws": DRAWS}
    results: dict[str, Any] = {"shape": shape, "gradients": shown(gradients(models, losses or LOSSES))}
    if steps:
        results["training"] = shown(training(models, steps))
    return results


def by_sources(shape: Shape, tokens: int, replicas: Sequence[int]) -> dict[str, Any]:
    """What a teacher on disk and in other processes costs; shows it."""
    results: dict[str, Any] = {"shape": asdict(shape), "core": core_share()}
    print(f"a busy process has {results['core']:.0%} of a core\n")
    results["disk"] = shown(disk(name, shape.hidden, tokens) for name in ("bf16", "fp8"))
    if replicas:
        results["sources"] = shown((take() for take in sources(shape, replicas).values()), COLUMNS)
        fastest = replace(shape, seconds=0.0, rate=float("inf"))
        [results["service"]] = shown([elsewhere(fastest, 1)], COLUMNS)
    return results


def some_sources(shape: Shape, replicas: Sequence[int], only: Sequence[str]) -> list[dict[str, Any]]:
    """The sources whose names begin so, each with where it was measured; shows them."""
    about = {"machine": machine(), "core": core_share()}
    chosen = [take for name, take in sources(shape, replicas).items() if name.startswith(tuple(only))]
    return [row | about for row in shown((take() for take in chosen), COLUMNS)]


def by_training(folder: Path, steps: int, teacher_steps: int) -> dict[str, Any]:
    """What the forms of a stored teacher do to whole trainings; shows it."""
    from stored_training import BATCH, trainings

    columns = ("form", "bytes a token", "CE", "KD", "held-out bits a byte", "seconds a step")
    shape = {"steps": steps, "teacher_steps": teacher_steps, "batch": BATCH}
    return {"shape": shape, "training": shown(trainings(folder, steps, teacher_steps), columns)}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs what is asked for."""
    parser = Parser(__doc__)
    parser.add_argument("--hidden", type=int, default=2560, help="width of the states")
    parser.add_argument("--tokens", type=int, default=100_000, help="on disk")
    parser.add_argument("--replicas", type=int, nargs="*", default=[1, 2, 3], help="of the service; none: leave it out")
    parser.add_argument("--length", type=int, default=4096, help="tokens of a row")
    parser.add_argument("--rows", type=int, default=2, help="of a step")
    parser.add_argument("--step", type=float, default=1.0, help="seconds of a step of the student")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--teacher-rate", type=float, default=5000.0, help="tokens a second of a replica")
    parser.add_argument("--only", nargs="+", metavar="TEACHER", help="the sources whose names begin so, and their rows")
    parser.add_argument("--training", type=Path, metavar="FOLDER", help="in place of the others: whole trainings there")
    parser.add_argument("--training-steps", type=int, nargs=2, default=(120, 300), metavar=("STUDENT", "TEACHER"))
    parser.add_argument("--page", action="store_true", help="only write the figures of teachers.json to the documents")
    parser.add_argument("--models", nargs=3, metavar=("STUDENT", "TEACHER", "TEXT"), help="in place of the others")
    parser.add_argument("--losses", nargs="*", help="of --models; default all across tokenizers that have no top-k")
    parser.add_argument("--texts", type=int, default=4, help="of a batch of --models")
    parser.add_argument("--characters", type=int, default=800, help="of a text")
    parser.add_argument("--train", type=int, default=24, help="steps of the short training; 0: none")
    parser.add_output()
    given = parser.parse_args(arguments)
    if given.page:
        fill_documents()
        return 0
    shape = Shape(given.hidden, given.length, given.rows, given.step, given.steps, given.teacher_rate)
    about = machine()
    print(machine_line(), "\n")
    if given.models:
        part = "models", by_models(given.models, given.losses, given.texts, given.characters, given.train)
    elif given.training:
        part = "training", by_training(given.training, *given.training_steps)
    elif given.only:
        rows = some_sources(shape, given.replicas, given.only)
        if given.json:
            write_json(given.json, with_rows(given.json, asdict(shape), rows))
        return 0
    else:
        part = "sources", by_sources(shape, given.tokens, given.replicas)
    if given.json:
        write_json(given.json, merged(given.json, part[0], {"machine": about, **part[1]}))
    return 0


if __name__ == "__main__":
    sys.exit(main())

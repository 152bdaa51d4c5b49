"""What teachers on disk and in other processes cost.

  disk      states of random numbers, in pieces of 512 tokens: written, then read in random order; the first reading
            compares checksums.  Files stay in the page cache, and a core's seconds count, not those of the disk
  service   replicas in processes of their own, whose model is a pause: each computes --teacher-rate tokens a second.
            A student takes --step seconds for a step of --rows rows and asks two steps ahead.  Bytes on the wire
            beside those of the states, and the share of the time that it waits, by the number of replicas
  models    with --models: for each form in which a teacher can be stored, and for plain top-k lists, the angle between
            the gradient by it and by exact states, for each loss; and what a short training by it comes to

examples:
  python benchmarks/teachers.py
  python benchmarks/teachers.py --hidden 4096 --replicas 1 2 4 8 --json teachers.json
  python benchmarks/teachers.py --models models/student models/teacher text.txt
"""

import multiprocessing
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench import Parser, machine_line, write_json

from nemo_xtoken.teachers.fingerprint import Fingerprint
from nemo_xtoken.teachers.service.asked_rows import Row
from nemo_xtoken.teachers.service.replica_server import Limits, ReplicaServer
from nemo_xtoken.teachers.service.service_folder import ServiceFolder
from nemo_xtoken.teachers.service.service_pool import ServicePool
from nemo_xtoken.teachers.store.state_formats import format_for
from nemo_xtoken.teachers.store.state_store import StateStore
from nemo_xtoken.teachers.store.state_writer import StateWriter

PIECE, VOCABULARY = 512, 1000


def fingerprint(hidden: int, dtype: str = "bfloat16") -> Fingerprint:
    """Of a teacher that there is not."""
    return Fingerprint("w" * 64, "a" * 64, "t" * 64, hidden, dtype)


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


def replica(folder: str, name: str, hidden: int, length: int, rate: float) -> None:
    """Answers after as long as a teacher of this rate takes; for ever."""
    limits = Limits(length, VOCABULARY, 8 * length)
    server = ReplicaServer(ServiceFolder(Path(folder)), name, fingerprint(hidden), limits, "127.0.0.1")
    states = torch.randn(length, hidden).bfloat16()
    free = time.monotonic()
    while True:
        asked = server.take(1, 1.0)
        if asked:
            free = max(free, time.monotonic()) + asked[0].row.tokens / rate
            time.sleep(max(0.0, free - time.monotonic()))
            server.answer(asked, [states[: asked[0].row.tokens]])
        else:
            free = time.monotonic()


def service(replicas: int, hidden: int, length: int, rows: int, step: float, steps: int, rate: float) -> dict[str, Any]:
    """The share of its time that a student waits, and what travels."""
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        made = [
            context.Process(target=replica, args=(folder, f"r{n}", hidden, length, rate), daemon=True)
            for n in range(replicas)
        ]
        pool = None
        try:
            for one in made:
                one.start()
            pool = ServicePool(ServiceFolder(Path(folder)), fingerprint(hidden))
            while pool.alive() < replicas:
                time.sleep(0.01)
            numbers = np.random.default_rng(0)
            data = [
                [Row(length, (length,), numbers.integers(0, VOCABULARY, length).astype(np.int32)) for _ in range(rows)]
                for _ in range(steps)
            ]
            begin = time.perf_counter()
            for number, own in enumerate(data):
                for row in (row for ahead in data[number : number + 3] for row in ahead):
                    pool.want(row)
                for row in own:
                    pool.get(row.key)
                    pool.forget(row.key)
                if number == 0:  # nothing could be asked for before the first step
                    begin, pool.statistics.waited = time.perf_counter(), 0.0
                time.sleep(step)
            seconds, seen = time.perf_counter() - begin, pool.statistics
            return {
                "replicas": replicas,
                "needed": rows * length / step / rate,
                "tokens/s": rows * length * steps / seconds,
                "wire": seen.wire / (seen.tokens * hidden * 2),
                "waiting": seen.waited / seconds,
            }
        finally:
            if pool is not None:
                pool.close()
            for one in made:
                one.kill()
                one.join()


def shown(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows, each printed as soon as it is there."""
    found: list[dict[str, Any]] = []
    for row in rows:
        found.append(row)
        show([row], heading=len(found) == 1, end="")
    print()
    return found


def show(rows: Sequence[dict[str, Any]], heading: bool = True, end: str = "\n") -> None:
    """A table."""
    if heading:
        print("  ".join(f"{name:>14}" for name in rows[0]))
    for row in rows:
        print("  ".join(f"{v:>14,.4g}" if isinstance(v, float) else f"{v!s:>14}" for v in row.values()), flush=True)
    print(end=end)


def by_models(names: Sequence[str], losses: Sequence[str], texts: int, characters: int, steps: int) -> dict[str, Any]:
    """What the forms of a stored teacher do; shows it."""
    from stored_teachers import LOSSES, Models, gradients, training

    models = Models.load(*names, batches=5, texts=texts, characters=characters)
    rows = int((models.batches[0].teacher_labels >= 0).sum()), models.batches[0].chunks.shape[0]
    print(f"{rows[0]:,} positions of the teacher in {rows[1]:,} chunks")
    results: dict[str, Any] = {"gradients": shown(gradients(models, losses or LOSSES))}
    if steps:
        results["training"] = shown(training(models, steps))
    return results


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
    parser.add_argument("--models", nargs=3, metavar=("STUDENT", "TEACHER", "TEXT"), help="in place of the others")
    parser.add_argument("--losses", nargs="*", help="of --models; default all across tokenizers that have no top-k")
    parser.add_argument("--texts", type=int, default=4, help="of a batch of --models")
    parser.add_argument("--characters", type=int, default=800, help="of a text")
    parser.add_argument("--train", type=int, default=24, help="steps of the short training; 0: none")
    parser.add_output()
    given = parser.parse_args(arguments)
    print(machine_line(), "\n")
    if given.models:
        write_json(given.json, by_models(given.models, given.losses, given.texts, given.characters, given.train))
        return 0
    results: dict[str, Any] = {"disk": [disk(name, given.hidden, given.tokens) for name in ("bf16", "fp8")]}
    show(results["disk"])
    if given.replicas:
        sizes = given.hidden, given.length, given.rows, given.step, given.steps, given.teacher_rate
        results["service"] = [service(n, *sizes) for n in given.replicas]
        show(results["service"])
    write_json(given.json, results)
    return 0


if __name__ == "__main__":
    sys.exit(main())

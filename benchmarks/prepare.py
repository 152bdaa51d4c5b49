"""How much of the time of `xtoken prepare` the two tokenizers take: preparing text against encoding it alone.

  prepare   all of it: reading the file twice (a look at all of it comes first), tokenising, aligning, writing
  alone     both tokenizers as they are published on the same texts, in as many processes, and nothing else; long texts
            as a whole

Three shapes of the same text: documents of --document characters, many of 50, and one of all.  Each run is a process of
its own (and its workers), with an empty cache; the figures are processor seconds, of all processes, what the memory of
the main process grew by, and, of longer runs, what the largest worker had.  The two take turns for some rounds; of each
the round with the fewest processor seconds counts, which other work on the machine has disturbed least.  With
--together they run at the same time instead, so that the same work disturbs both, for long runs on a busy machine.  The
share is the tokenizers' part of the processor time: alone / prepare; and, without workers, within: what the tokenizers'
calls of the very same preparation took of it, which other work on the machine hardly changes.

examples:
  python benchmarks/prepare.py --student tok/llama3 --teacher tok/qwen3 --text docs.txt --megabytes 10
  python benchmarks/prepare.py --student tok/llama3 --teacher tok/qwen3 --megabytes 300 --shapes documents --workers 2 \
      --rounds 1 --together
"""

import contextlib
import functools
import json
import multiprocessing
import os
import re
import resource
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from bench import Parser, load_pair, machine_line, show_table, write_json
from texts import KINDS, text_of

from nemo_xtoken.alignment.aligned import AlignedBatch
from nemo_xtoken.data import prepare_documents
from nemo_xtoken.data.workers import Text, align_documents
from nemo_xtoken.vocab import Vocabulary
from nemo_xtoken.vocab.seams import Piece

SHAPES = ("documents", "tiny", "whole")
TINY = 50  # characters
MOST_TINY = 100_000  # documents


@dataclass(frozen=True)
class TokenizersAlone:
    """In the place of what aligns: only encodes."""

    student: Vocabulary
    teacher: Vocabulary

    def __call__(self, texts: Sequence[Text]) -> AlignedBatch:
        tokens = 0
        for vocabulary in (self.student, self.teacher):
            tool = self.tools.get(vocabulary.name)
            batch = [text.piece.text for text in texts]
            if tool is not None:
                tokens += sum(map(len, tool.encode_batch_fast(batch, add_special_tokens=False)))
            else:
                tokens += sum(map(len, vocabulary.encode_batch(batch)))
        nothing = np.empty(0, np.int64)
        return AlignedBatch(b"", np.array([tokens]), nothing, nothing, nothing, nothing, nothing)

    @functools.cached_property
    def tools(self) -> dict[str, Any]:
        """Straight to the library where it is Hugging Face's: no arrays of ids either."""
        tools = {}
        for vocabulary in (self.student, self.teacher):
            text = getattr(vocabulary.__dict__["_encoder"], "text", None)
            if text is not None:
                from tokenizers import Tokenizer

                tools[vocabulary.name] = Tokenizer.from_str(text)
        return tools

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "tools"}

    def pieces(self, text: str) -> Iterable[Piece]:
        """A text as a whole."""
        return [Piece(text)]

    def settle(self, student_ids: np.ndarray, teacher_ids: np.ndarray) -> np.ndarray:
        """Never called."""
        raise NotImplementedError


class TimedTool:
    """A tokenizer of Hugging Face's, with the processor seconds of its calls."""

    def __init__(self, tool: Any) -> None:
        self.tool, self.seconds = tool, 0.0
        self.encode_batch = tool.encode_batch  # of versions without the fast one

    def encode(self, *arguments: Any, **options: Any) -> Any:
        """As the library's."""
        return self._timed(self.tool.encode, *arguments, **options)

    def encode_batch_fast(self, *arguments: Any, **options: Any) -> Any:
        """As the library's."""
        return self._timed(self.tool.encode_batch_fast, *arguments, **options)

    def _timed(self, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        start = time.process_time()
        found = function(*arguments, **options)
        self.seconds += time.process_time() - start
        return found


def documents_of(text: str, shape: str, size: int) -> list[str]:
    """The text cut into documents, as a shape says."""
    if shape == "whole":
        return [text]
    size = TINY if shape == "tiny" else size
    cut = [text[i : i + size] for i in range(0, len(text), size)]
    return [document for document in cut[: MOST_TINY if shape == "tiny" else None] if document.strip()]


def in_processes(*works: Callable[[], dict[str, Any]]) -> list[dict[str, Any]]:
    """What each of ``works`` gives, and what it cost; they run at the same time, each in a process of its own."""
    context = multiprocessing.get_context("fork")

    def run(work: Callable[[], dict[str, Any]], result: Any) -> None:
        workers: list[int] = [0]
        threading.Thread(target=_watch_children, args=(workers,), daemon=True).start()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        start, cpu = time.perf_counter(), time.process_time()
        found = work()
        children = resource.getrusage(resource.RUSAGE_CHILDREN)
        found["seconds"] = time.perf_counter() - start
        found["cpu_seconds"] = time.process_time() - cpu + children.ru_utime + children.ru_stime
        found["memory_mib"] = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
        found["worker_mib"] = max(workers) / 1024
        result.send(found)

    running = []
    for work in works:
        ours, theirs = context.Pipe(False)
        process = context.Process(target=run, args=(work, theirs))
        process.start()
        theirs.close()
        running.append((process, ours))
    try:
        return [ours.recv() for _, ours in running]
    except EOFError:
        sys.exit("a run failed: see above")
    finally:
        for process, _ in running:
            process.join()


def _watch_children(kib: list[int]) -> None:
    """Keeps the most memory that a child process has had; `getrusage` would count what ours has when it starts one."""
    while True:
        for children in Path("/proc/self/task").glob("*/children"):
            with contextlib.suppress(OSError):
                for pid in children.read_text().split():
                    found = re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
                    kib.append(int(found[1]) if found else 0)
        kib[:] = [max(kib)]
        time.sleep(0.5)


def measure(
    student: Vocabulary, teacher: Vocabulary, documents: list[str], workers: int, rounds: int, together: bool = False
) -> dict[str, Any]:
    """Both, on the same documents, in turns or together; of each the round that took the least."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "text.jsonl"
        with path.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps({"text": document}) + "\n" for document in documents)

        def ours() -> dict[str, Any]:
            cache, timed = Path(folder) / "cache", []
            for encoder in (v.__dict__["_encoder"] for v in (student, teacher)):
                if hasattr(encoder, "text"):  # in this process alone, which is a fork
                    encoder._built = TimedTool(encoder._tool)
                    timed.append(encoder._built)
            start = time.process_time()
            options: dict[str, Any] = {"workers": workers, "cache_dir": cache, "progress": False}
            found = prepare_documents(path, student, teacher, **options)
            seconds = time.process_time() - start
            shutil.rmtree(cache)
            tokens = int(found.student_lengths.sum() + found.teacher_lengths.sum())
            within = None if workers or len(timed) < 2 else sum(tool.seconds for tool in timed) / seconds
            return {"tokens": tokens, "within": within}

        def alone() -> dict[str, Any]:
            batches = align_documents(tools, ((b"", d) for d in documents), workers)
            return {"tokens": sum(int(batch.student_lengths[0]) for batch in batches)}

        import prepare  # worker processes find it by this name, and not in the script

        tools = prepare.TokenizersAlone(student, teacher)
        tools.tools  # noqa: B018 (made here: the time of reading them is not that of texts)
        turns = [(ours, alone)] if together else [(ours,), (alone,)]
        every = [[found for works in turns for found in in_processes(*works)] for _ in range(rounds)]
        found = {
            name: min((times[at] for times in every), key=_cpu_seconds) for at, name in enumerate(("prepare", "alone"))
        }
    size = sum(len(document.encode()) for document in documents)
    return {"documents": len(documents), "bytes": size, "share": _share(found)} | found


def _cpu_seconds(found: dict[str, Any]) -> float:
    seconds: float = found["cpu_seconds"]
    return seconds


def _share(found: dict[str, Any]) -> float:
    return _cpu_seconds(found["alone"]) / _cpu_seconds(found["prepare"])


def main(arguments: list[str]) -> None:
    """Runs the benchmark."""
    parser = Parser(__doc__)
    parser.add_pair()
    parser.add_argument("--text", action="append", default=[], type=Path, metavar="FILE", help="UTF-8 text of your own")
    parser.add_argument(
        "--megabytes", type=float, default=3, help="of text, repeated if need be, up to 300 (default: 3)"
    )
    parser.add_argument("--document", type=int, default=2000, help="characters of a document (default: 2000)")
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES), help="(default: all)")
    parser.add_argument("--workers", type=int, default=0, help="processes beside the main one (default: 0)")
    parser.add_argument("--rounds", type=int, default=3, help="of each (default: 3)")
    parser.add_argument("--together", action="store_true", help="both at the same time instead of in turns")
    parser.add_output()
    given = parser.parse_args(arguments)
    if not 0 < given.megabytes <= 300:
        parser.error(f"--megabytes {given.megabytes}: more than 0 and at most 300")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # a process is a process
    characters = int(given.megabytes * 1e6)
    if given.text:
        own = "".join(path.read_text("utf-8") for path in given.text)
        text = (own * (characters // max(len(own), 1) + 1))[:characters]
    else:
        text = "".join(text_of(kind, characters // len(KINDS) + 1) for kind in KINDS)[:characters]
    student, teacher = load_pair(given)
    print(machine_line())
    result: dict[str, Any] = {"student": student.name, "teacher": teacher.name, "workers": given.workers, "shapes": {}}
    for shape in given.shapes:
        documents = documents_of(text, shape, given.document)
        result["shapes"][shape] = measure(student, teacher, documents, given.workers, given.rounds, given.together)
        print(f"{shape}: share {result['shapes'][shape]['share']:.0%}", file=sys.stderr, flush=True)
    rows = [
        [
            shape,
            f"{row['documents']:,}",
            f"{row['bytes'] / 1e6:.1f}",
            f"{row['prepare']['cpu_seconds']:.1f}",
            f"{row['alone']['cpu_seconds']:.1f}",
            f"{row['share']:.0%}",
            "" if row["prepare"]["within"] is None else f"{row['prepare']['within']:.0%}",
            f"{row['prepare']['seconds']:.1f}",
            f"{row['prepare']['tokens'] / row['prepare']['cpu_seconds']:,.0f}",
            f"{row['prepare']['memory_mib']:.0f} / {row['alone']['memory_mib']:.0f}",
            f"{row['prepare']['worker_mib']:.0f} / {row['alone']['worker_mib']:.0f}" if given.workers else "",
        ]
        for shape, row in result["shapes"].items()
    ]
    names = [
        "shape",
        "documents",
        "MB",
        "CPU s",
        "tokenizers",
        "share",
        "within",
        "s",
        "tokens / CPU s",
        "MiB / alone",
        "a worker",
    ]
    show_table(f"prepare, {given.workers} workers", names, rows, [0])
    write_json(given.json, result)


if __name__ == "__main__":
    main(sys.argv[1:])

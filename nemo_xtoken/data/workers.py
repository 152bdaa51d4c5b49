"""Tokenising and aligning documents, here or in a pool of processes; the results come in order in either case."""

import collections
import contextlib
import multiprocessing
import os
import pickle
import signal
import sys
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from nemo_xtoken.alignment.aligner import Aligner
from nemo_xtoken.alignment.cache import AlignedDocument
from nemo_xtoken.vocab import Vocabulary

__all__ = ["AlignFunction", "DocumentAligner", "align_documents", "document_ids"]

#: Digests and texts -> aligned documents; goes to every worker once, pickled.
AlignFunction = Callable[[list[tuple[bytes, str]]], list[AlignedDocument]]

_BATCH_DOCUMENTS, _BATCH_CHARACTERS = 64, 200_000  # of one task: long enough to hide the cost of handing it over
_TASKS_AHEAD = 4  # per worker: bounds the memory of texts and results under way


def document_ids(vocabulary: Vocabulary, text_ids: np.ndarray) -> np.ndarray:
    """int32 ids of a document: BOS where the tokenizer puts one, the text, EOS where it has one."""
    front = [vocabulary.bos_id] if vocabulary.adds_bos and vocabulary.bos_id is not None else []
    back = [] if vocabulary.eos_id is None else [vocabulary.eos_id]
    return np.concatenate([front, text_ids, back]).astype(np.int32)


@dataclass(frozen=True)
class DocumentAligner:
    """Text -> ids on both sides and chunks."""

    student: Vocabulary
    teacher: Vocabulary
    aligner: Aligner

    def __call__(self, documents: list[tuple[bytes, str]]) -> list[AlignedDocument]:
        texts = [text for _, text in documents]
        students = self.student.encode_batch(texts)
        same = self.teacher.digest == self.student.digest
        teachers = students if same else self.teacher.encode_batch(texts)
        out = []
        for (digest, _), student, teacher in zip(documents, students, teachers, strict=True):
            student_ids, teacher_ids = document_ids(self.student, student), document_ids(self.teacher, teacher)
            out.append(AlignedDocument(digest, student_ids, teacher_ids, self.aligner.align(student_ids, teacher_ids)))
        return out


def align_documents(
    align: AlignFunction, documents: Iterable[tuple[bytes, str]], workers: int
) -> Generator[AlignedDocument, None, None]:
    """Aligned documents in the order of ``documents``, for any number of workers.

    Args:
        documents: digest and text; read as the results are consumed, a bounded number ahead.
            Close the generator to end the processes early.
        workers: processes; 0 does the work in this one.
    """
    batches = _batches(documents)
    if workers == 0:
        for batch in batches:
            yield from align(batch)
        return
    pool = ProcessPoolExecutor(
        workers,
        # Not fork: the caller may hold threads (torch, CUDA) and the cache's lock, and a child would inherit both.
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_start_worker,
        initargs=(pickle.dumps(align),),
    )
    ahead: collections.deque[Future[list[AlignedDocument]]] = collections.deque()
    try:
        for batch in batches:
            with _light_children():
                ahead.append(pool.submit(_work, batch))
            if len(ahead) >= workers * _TASKS_AHEAD:
                yield from ahead.popleft().result()
        while ahead:
            yield from ahead.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _batches(documents: Iterable[tuple[bytes, str]]) -> Iterator[list[tuple[bytes, str]]]:
    batch: list[tuple[bytes, str]] = []
    characters = 0
    for document in documents:
        batch.append(document)
        characters += len(document[1])
        if len(batch) == _BATCH_DOCUMENTS or characters >= _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


@contextlib.contextmanager
def _light_children() -> Iterator[None]:
    """Processes started in here do not import the caller's main module, nor let their tokenizers start threads.

    A spawned process imports ``__main__`` anew, which for a training command means seconds and gigabytes of NeMo in
    every worker, and in a script without a ``__main__`` guard starts the script again.  The workers need none of it.
    """
    main = sys.modules["__main__"]
    hidden: dict[str, Any] = {
        name: main.__dict__.pop(name) for name in ("__spec__", "__file__") if name in main.__dict__
    }
    before = os.environ.get("TOKENIZERS_PARALLELISM")
    main.__dict__["__spec__"] = None
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    try:
        yield
    finally:
        del main.__dict__["__spec__"]
        main.__dict__.update(hidden)
        if before is None:
            del os.environ["TOKENIZERS_PARALLELISM"]
        else:
            os.environ["TOKENIZERS_PARALLELISM"] = before


_align: AlignFunction  # of this worker process


def _start_worker(pickled: bytes) -> None:
    global _align
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends the pool
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _align = pickle.loads(pickled)  # noqa: S301  (from the parent process, not from a file)


def _end_with_parent() -> None:
    """Ends this worker with its parent: a killed one cannot end its pool, siblings keep each other's queues open."""
    if (parent := multiprocessing.parent_process()) is not None:
        parent.join()
        os._exit(1)


def _work(batch: list[tuple[bytes, str]]) -> list[AlignedDocument]:
    return _align(batch)

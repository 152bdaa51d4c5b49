"""Tokenising and aligning documents, here or in a pool of processes; the results come in order in either case."""

import collections
import contextlib
import functools
import itertools
import multiprocessing
import os
import pickle
import signal
import sys
import threading
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np

from nemo_xtoken.alignment.aligned import AlignedBatch, Part
from nemo_xtoken.alignment.aligner import Aligner
from nemo_xtoken.sharing.forked_children import without_tokenizers_threads
from nemo_xtoken.vocab import Vocabulary
from nemo_xtoken.vocab.seams import Piece, Seams, encode_pieces

__all__ = ["AlignFunction", "DocumentAligner", "Text", "align_documents", "document_ids", "heed_parent_alone"]


class Text(NamedTuple):
    """A document, or a piece of one.

    Attributes:
        digest: of the document.
        piece: its text.
    """

    digest: bytes
    piece: Piece


class AlignFunction(Protocol):
    """Texts -> aligned documents; goes to every worker once, pickled."""

    def __call__(self, texts: Sequence[Text]) -> AlignedBatch:
        """Either whole documents, or one piece of one."""
        ...

    def pieces(self, text: str) -> Iterable[Piece]:
        """A long document in pieces that can be aligned one by one."""
        ...

    def settle(self, student_ids: np.ndarray, teacher_ids: np.ndarray) -> np.ndarray:
        """The chunks of a document whose pieces could not be aligned one by one, int32 ``[K, 4]``."""
        ...


_BATCH_DOCUMENTS, _BATCH_CHARACTERS = 2000, 100_000  # of one task: long enough to hide the cost of handing it over
_PIECE_CHARACTERS = 50_000  # a document of more than two of these is cut; tokenizers take some 200 bytes for each
_TASKS_AHEAD = 4  # per worker: bounds the memory of texts and results under way


@dataclass(frozen=True)
class DocumentAligner:
    """Text -> ids on both sides and chunks; BOS where the tokenizer puts one, the text, EOS where it has one."""

    student: Vocabulary
    teacher: Vocabulary
    aligner: Aligner

    def __call__(self, texts: Sequence[Text]) -> AlignedBatch:
        pieces = [text.piece for text in texts]
        student, student_lengths = _ids(self.student, pieces)
        if self.teacher.digest == self.student.digest:
            teacher, teacher_lengths = student, student_lengths
        else:
            teacher, teacher_lengths = _ids(self.teacher, pieces)
        digests, part = b"".join(text.digest for text in texts), None
        if len(pieces) == 1 and not (pieces[0].first and pieces[0].last):
            first, last = pieces[0].first, pieces[0].last
            found = self.aligner.align_part(student, teacher, first, last)
            part = Part(first, last, found is not None)
            chunks = np.empty((0, 4), np.int32) if found is None else found
            counts = np.array([len(chunks)])
        else:
            chunks, counts = self.aligner.align_many(student, student_lengths, teacher, teacher_lengths)
        return AlignedBatch(digests, student_lengths, teacher_lengths, counts, student, teacher, chunks, part)

    def pieces(self, text: str) -> Iterable[Piece]:
        """See `AlignFunction`."""
        if self.aligner.method != "spans":
            return [Piece(text)]
        return self._seams.pieces(text, _PIECE_CHARACTERS)

    def settle(self, student_ids: np.ndarray, teacher_ids: np.ndarray) -> np.ndarray:
        """See `AlignFunction`."""
        return self.aligner.align(student_ids, teacher_ids)

    @functools.cached_property
    def _seams(self) -> Seams:
        return Seams([self.student, self.teacher])

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_seams"}


def document_ids(vocabulary: Vocabulary, text_ids: np.ndarray) -> np.ndarray:
    """int32 ids of a document: BOS where the tokenizer puts one, the text, EOS where it has one."""
    return _with_ends(vocabulary, [text_ids], np.ones(1, bool), np.ones(1, bool))[0]


def _ids(vocabulary: Vocabulary, pieces: Sequence[Piece]) -> tuple[np.ndarray, np.ndarray]:
    """int32 ids of all of them, and int64, how many each has."""
    first, last = np.array([not p.before for p in pieces]), np.array([not p.after for p in pieces])
    return _with_ends(vocabulary, encode_pieces(vocabulary, pieces), first, last)


def _with_ends(
    vocabulary: Vocabulary, encoded: Sequence[np.ndarray], first: np.ndarray, last: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """int32 ids of all pieces one after the other, and int64, how many each has.

    Args:
        first, last: bool ``[n]``, which pieces begin, and end, a document.
    """
    lengths = np.fromiter(map(len, encoded), np.int64, len(encoded))
    front = vocabulary.bos_id if vocabulary.adds_bos else None
    lengths += int(front is not None) * first + int(vocabulary.eos_id is not None) * last
    ends = np.cumsum(lengths)
    ids, text = np.empty(int(ends[-1]), np.int32), np.ones(int(ends[-1]), bool)
    for token, places in ((front, (ends - lengths)[first]), (vocabulary.eos_id, (ends - 1)[last])):
        if token is not None:
            ids[places], text[places] = token, False
    ids[text] = np.concatenate(encoded)
    return ids, lengths


def align_documents(
    align: AlignFunction, documents: Iterable[tuple[bytes, str]], workers: int
) -> Generator[AlignedBatch, None, None]:
    """Aligned documents in the order of ``documents``, for any number of workers.

    Args:
        documents: digest and text; read as the results are consumed, a bounded number ahead.
            Close the generator to end the processes early.
        workers: processes; 0 does the work in this one.
    """
    batches = _batches(align, documents)
    if workers == 0:
        yield from map(align, batches)
        return
    pool = ProcessPoolExecutor(
        workers,
        # Not fork: the caller may hold threads (torch, CUDA) and the cache's lock, and a child would inherit both.
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_start_worker,
        initargs=(pickle.dumps(align),),
    )
    ahead: collections.deque[Future[AlignedBatch]] = collections.deque()
    try:
        for batch in batches:
            with _light_children():
                ahead.append(pool.submit(_work, batch))
            if len(ahead) >= workers * _TASKS_AHEAD:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _batches(align: AlignFunction, documents: Iterable[tuple[bytes, str]]) -> Iterator[list[Text]]:
    """Whole documents, so many in a batch; a piece of a long one has a batch to itself."""
    batch: list[Text] = []
    characters = 0
    for digest, text in documents:
        if len(text) > 2 * _PIECE_CHARACTERS:
            pieces = iter(align.pieces(text))
            piece = next(pieces)
            if not piece.last:
                if batch:
                    yield batch
                batch, characters = [], 0
                yield from ([Text(digest, part)] for part in itertools.chain([piece], pieces))
                continue
        batch.append(Text(digest, Piece(text)))
        characters += len(text)
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
    main.__dict__["__spec__"] = None
    try:
        with without_tokenizers_threads():
            yield
    finally:
        del main.__dict__["__spec__"]
        main.__dict__.update(hidden)


_align: AlignFunction  # of this worker process


def _start_worker(pickled: bytes) -> None:
    global _align
    for number in (signal.SIGINT, signal.SIGTERM):  # to a whole process group: for the parent, which ends the pool
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _align = pickle.loads(pickled)  # noqa: S301  (from the parent process, not from a file)


def heed_parent_alone(_worker: int = 0) -> None:
    """For a process that reads samples: no signal ends it but its parent's SIGTERM, and its parent's end.

    A signal to the whole process group, or to all processes of a job's step, is for the parent, which finishes its step
    and saves; without its readers it could not.  Called in the process, before it starts threads; PyTorch's loaders
    end their processes by SIGTERM, and those see by themselves that their parent has ended.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_end_at_parents_wish, daemon=True).start()


def _end_at_parents_wish() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)


def _end_with_parent() -> None:
    """Ends this worker with its parent: a killed one cannot end its pool, siblings keep each other's queues open."""
    if (parent := multiprocessing.parent_process()) is not None:
        parent.join()
        os._exit(1)


def _work(batch: list[Text]) -> AlignedBatch:
    return _align(batch)

"""Text -> documents that are tokenised, aligned and on disk.  Documents that are in the cache are not done again."""

import contextlib
import errno
import os
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import BrokenExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nemo_xtoken.alignment.aligner import Aligner
from nemo_xtoken.alignment.cache import AlignedDocument, AlignmentCache
from nemo_xtoken.data.documents import Survey, read_documents, survey
from nemo_xtoken.data.prepared import PreparedDocuments
from nemo_xtoken.data.sources import Reading, Source, resolve_sources
from nemo_xtoken.data.templates import ChatTemplate
from nemo_xtoken.data.turns import ConversationAligner
from nemo_xtoken.data.workers import AlignFunction, DocumentAligner, align_documents
from nemo_xtoken.errors import InputError
from nemo_xtoken.files import cache_root, digest_of
from nemo_xtoken.progress import Pace, Phase, say
from nemo_xtoken.vocab import Vocabulary

__all__ = ["Pair", "open_cache", "prepare_documents", "prepare_pairs", "survey_folder"]

_TEXT = Reading()
_SHARD_TOKENS = 8_000_000  # both sides together: a shard has about 100 MB, and as much is held in memory
_LINE_SECONDS = 60.0  # between lines in a log
_SHARD_SECONDS = 60.0  # an interrupted preparation loses no more than this
_CANNOT_WRITE = {getattr(errno, name) for name in ("EACCES", "EPERM", "EROFS", "ENOTDIR", "EEXIST", "ENOSPC", "EDQUOT")}


def open_cache(
    student: Vocabulary,
    teacher: Vocabulary,
    aligner: Aligner,
    cache_dir: str | os.PathLike[str] | None = None,
    templates: Sequence[ChatTemplate] = (),
    part: str | None = None,
) -> AlignmentCache:
    """The alignment cache of a pair of tokenizers below ``cache_dir`` (default: `nemo_xtoken.files.cache_root`).

    Args:
        templates: for conversations, those of student and teacher.
        part: see `AlignmentCache`.

    Raises:
        InputError: one of the tokenizers has no EOS, which every text ends with.
    """
    if templates:
        added = repr([template.digest for template in templates])
    else:
        for side, vocabulary in (("student", student), ("teacher", teacher)):
            if vocabulary.eos_id is None:
                raise InputError(
                    f"the {side}'s tokenizer {vocabulary.name} has no EOS token",
                    "one that ends every document",
                    "name it as eos_token in its tokenizer_config.json",
                )
        added = repr([(v.adds_bos and v.bos_id, v.eos_id) for v in (student, teacher)])
    pair_digest = digest_of("documents 1", student.digest, teacher.digest, aligner.settings, added)
    about = {
        "content": "chat" if templates else "text",
        "student": student.name,
        "student_digest": student.digest,
        "teacher": teacher.name,
        "teacher_digest": teacher.digest,
        "alignment": aligner.settings,
    }
    folder = _folder(cache_dir)
    return AlignmentCache(folder / "alignment" / pair_digest, pair_digest, about, part)


def prepare_documents(
    paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    student: Vocabulary,
    teacher: Vocabulary,
    aligner: Aligner | None = None,
    *,
    reading: Reading = _TEXT,
    chat_template: str | None = None,
    workers: int = 0,
    cache_dir: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> PreparedDocuments:
    """`prepare_pairs` for one teacher.

    Args:
        aligner: default ``Aligner(student, teacher)``.
        others: see `prepare_pairs`.
    """
    pair = Pair.of(aligner or Aligner(student, teacher), cache_dir, reading, chat_template)
    return _prepare([pair], paths, reading, workers, progress, cache_dir)[0]


def prepare_pairs(
    paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    student: Vocabulary,
    teachers: Sequence[Vocabulary],
    align: str = "spans",
    *,
    reading: Reading = _TEXT,
    chat_template: str | None = None,
    workers: int = 0,
    cache_dir: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> list[PreparedDocuments]:
    """Every document of ``paths``, in order, tokenised for the student and each teacher, and aligned.

    Teachers with one tokenizer share what is prepared, and so do runs: a cache belongs to a pair of tokenizers.  Any
    number of processes may call this at once, on any number of nodes that share the cache folder: one does the work,
    the others wait for the result.  An interrupted call keeps its finished shards.

    Args:
        paths: see `nemo_xtoken.data.sources.resolve_sources`.
        align: see `nemo_xtoken.alignment.aligner.Aligner`.
        reading: what the documents of ``paths`` are.
        chat_template: of the student, Jinja source, for conversations; default its tokenizer's own.
        workers: processes that tokenise and align; 0: this one.
        cache_dir: default `nemo_xtoken.files.cache_root`.
        progress: show a bar on a terminal, otherwise a line at start and end; False: nothing.

    Raises:
        InputError: data that cannot be read or holds no text (before anything is written), a tokenizer without EOS or,
            for conversations, without a chat template, a cache folder that cannot be written.
    """
    pairs = [Pair.of(Aligner(student, t, align), cache_dir, reading, chat_template) for t in teachers]
    different = {pair.cache.pair_digest: pair for pair in pairs}
    prepared = dict(
        zip(different, _prepare(different.values(), paths, reading, workers, progress, cache_dir), strict=True)
    )
    return [prepared[pair.cache.pair_digest] for pair in pairs]


@dataclass(frozen=True)
class Pair:
    """A student and a teacher: what aligns their documents, and where these are kept."""

    align: AlignFunction
    cache: AlignmentCache

    @classmethod
    def of(
        cls,
        aligner: Aligner,
        cache_dir: str | os.PathLike[str] | None,
        reading: Reading,
        chat_template: str | None,
        part: str | None = None,
    ) -> "Pair":
        """For the documents of ``reading``; see `prepare_pairs`."""
        student, teacher = aligner.student, aligner.teacher
        if reading.format != "chat":
            cache = open_cache(student, teacher, aligner, cache_dir, part=part)
            return cls(DocumentAligner(student, teacher, aligner), cache)
        templates = ChatTemplate(student, chat_template), ChatTemplate(teacher)
        cache = open_cache(student, teacher, aligner, cache_dir, templates, part)
        return cls(ConversationAligner(*templates, aligner), cache)

    def align_missing(
        self, sources: Sequence[Source], found: Survey, workers: int, progress: bool, dealt: np.ndarray | None = None
    ) -> int:
        """Aligns and writes what is not in the cache yet.

        Args:
            dealt: bool ``[N]``, the documents to prepare; default all.

        Returns:
            tokens of both sides that were written.

        Raises:
            InputError: see `prepare_pairs`.
        """
        cache = self.cache
        if not _missing(cache, found, dealt).any():
            return 0
        try:
            with cache.lock(lambda: say(f"waiting for the process that writes to {cache.folder}", progress)):
                wanted = _missing(cache, found, dealt)  # another process may have written it meanwhile
                phase = Phase("aligning text", int(wanted.sum()), "documents", progress and bool(wanted.any()))
                size = f"{found.characters[wanted].sum():,} characters, {workers or 'no'} worker processes"
                with phase.begin(said=size):
                    documents = read_documents(sources, found, wanted)
                    with contextlib.closing(align_documents(self.align, documents, workers)) as aligned:
                        written = _write_shards(cache, aligned, phase)
                    rate = f"{written / max(phase.seconds, 1e-9):,.0f}"
                    counts = f"{phase.done:,} documents, {written:,} tokens"
                    phase.end(f"{counts}, in {phase.seconds:.1f} s ({rate} tokens/s)", {"tokens/s": rate})
                    return written
        except OSError as error:
            if error.errno not in _CANNOT_WRITE:
                raise
            raise InputError(
                f"the cache folder {cache.folder} cannot be written: {error}",
                "a folder for tokenised and aligned documents",
                "set cache_dir or NEMO_XTOKEN_CACHE to a folder that you may write to, with room in it",
            ) from error


def survey_folder(cache_dir: str | os.PathLike[str] | None) -> Path:
    """Where the surveys of files are kept."""
    return _folder(cache_dir) / "surveys"


def _folder(cache_dir: str | os.PathLike[str] | None) -> Path:
    return Path(cache_dir) if cache_dir is not None else cache_root()


def _prepare(
    pairs: Iterable[Pair],
    paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    reading: Reading,
    workers: int,
    progress: bool,
    cache_dir: str | os.PathLike[str] | None,
) -> list[PreparedDocuments]:
    if workers < 0:
        raise InputError(f"workers={workers}", "0 or more processes", "correct workers")
    sources = resolve_sources(paths, reading)
    found = survey(sources, survey_folder(cache_dir), progress)
    prepared = []
    for pair in pairs:
        pair.align_missing(sources, found, workers, progress)
        prepared.append(PreparedDocuments(pair.cache, found.digests))
    return prepared


def _missing(cache: AlignmentCache, found: Survey, dealt: np.ndarray | None) -> np.ndarray:
    """bool ``[N]``: dealt, not in the cache, and the first of its copies."""
    at = np.arange(len(found)) if dealt is None else np.flatnonzero(dealt)
    wanted = np.zeros(len(found), bool)
    wanted[at[np.unique(found.digests[at], return_index=True)[1]]] = True
    return wanted & (cache.find(found.digests)[0] < 0)


def _write_shards(cache: AlignmentCache, documents: Iterable[AlignedDocument], phase: Phase) -> int:
    shard: list[AlignedDocument] = []
    total, tokens, since = 0, 0, time.monotonic()
    lines, moments = Pace(_LINE_SECONDS), Pace(0.1)
    try:
        for document in documents:
            shard.append(document)
            added = len(document.student_ids) + len(document.teacher_ids)
            tokens += added
            total += added
            phase.done += 1
            if moments.due():
                phase.at(phase.done, {"tokens/s": f"{total / phase.seconds:,.0f}"}, lines.due())
            if tokens >= _SHARD_TOKENS or time.monotonic() - since >= _SHARD_SECONDS:
                cache.write(shard)
                shard, tokens, since = [], 0, time.monotonic()
    except (KeyboardInterrupt, SystemExit, BrokenExecutor):  # what has been aligned so far is good
        if shard:
            cache.write(shard)
        raise
    if shard:
        cache.write(shard)
    return total

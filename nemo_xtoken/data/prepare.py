"""Text -> documents that are tokenised, aligned and on disk.  What is there already is not done again."""

import contextlib
import errno
import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nemo_xtoken.alignment.aligner import Aligner
from nemo_xtoken.alignment.cache import AlignedDocument, AlignmentCache
from nemo_xtoken.data.documents import Survey, read_documents, survey
from nemo_xtoken.data.prepared import PreparedDocuments
from nemo_xtoken.data.progress import Progress, say
from nemo_xtoken.data.sources import Source, resolve_sources
from nemo_xtoken.data.workers import DocumentAligner, align_documents
from nemo_xtoken.errors import InputError
from nemo_xtoken.files import cache_root, digest_of
from nemo_xtoken.vocab import Vocabulary

__all__ = ["open_cache", "prepare_documents", "prepare_pairs"]

_SHARD_TOKENS = 8_000_000  # both sides together: a shard has about 100 MB, and as much is held in memory
_SHARD_SECONDS = 60.0  # an interrupted preparation loses no more than this
_CANNOT_WRITE = {getattr(errno, name) for name in ("EACCES", "EPERM", "EROFS", "ENOTDIR", "EEXIST", "ENOSPC", "EDQUOT")}


def open_cache(
    student: Vocabulary, teacher: Vocabulary, aligner: Aligner, cache_dir: str | os.PathLike[str] | None = None
) -> AlignmentCache:
    """The alignment cache of a pair of tokenizers below ``cache_dir`` (default: `nemo_xtoken.files.cache_root`).

    Raises:
        InputError: one of the tokenizers has no EOS.
    """
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
        "student": student.name,
        "student_digest": student.digest,
        "teacher": teacher.name,
        "teacher_digest": teacher.digest,
        "alignment": aligner.settings,
    }
    folder = Path(cache_dir) if cache_dir is not None else cache_root()
    return AlignmentCache(folder / "alignment" / pair_digest, pair_digest, about)


def prepare_documents(
    paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    student: Vocabulary,
    teacher: Vocabulary,
    aligner: Aligner | None = None,
    *,
    text_key: str = "text",
    text_split: str = "file",
    split: str = "train",
    workers: int = 0,
    cache_dir: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> PreparedDocuments:
    """`prepare_pairs` for one teacher.

    Args:
        aligner: default ``Aligner(student, teacher)``.
        others: see `prepare_pairs`.
    """
    pair = _Pair.of(student, teacher, aligner or Aligner(student, teacher), cache_dir)
    return _prepare([pair], paths, text_key, text_split, split, workers, progress)[0]


def prepare_pairs(
    paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    student: Vocabulary,
    teachers: Sequence[Vocabulary],
    align: str = "spans",
    *,
    text_key: str = "text",
    text_split: str = "file",
    split: str = "train",
    workers: int = 0,
    cache_dir: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> list[PreparedDocuments]:
    """Every document of ``paths``, in order, tokenised for the student and each teacher, and aligned.

    Teachers with one tokenizer share what is prepared, and so do runs: a cache belongs to a pair of tokenizers.  Any
    number of processes may call this at once, on any number of nodes that share the cache folder: one does the work,
    the others wait for it and find it done.  An interrupted call keeps its finished shards.

    Args:
        paths: see `nemo_xtoken.data.sources.resolve_sources`.
        align: see `nemo_xtoken.alignment.aligner.Aligner`.
        text_key, text_split, split: see `nemo_xtoken.data.sources.Source`.
        workers: processes that tokenise and align; 0: this one.
        cache_dir: default `nemo_xtoken.files.cache_root`.
        progress: show a bar on a terminal, else a line at start and end; False: nothing.

    Raises:
        InputError: data that cannot be read or holds no text (before anything is written), a tokenizer without EOS, a
            cache folder that cannot be written.
    """
    pairs = {t.digest: _Pair.of(student, t, Aligner(student, t, align), cache_dir) for t in teachers}
    prepared = _prepare(pairs.values(), paths, text_key, text_split, split, workers, progress)
    by_digest = dict(zip(pairs, prepared, strict=True))
    return [by_digest[teacher.digest] for teacher in teachers]


@dataclass(frozen=True)
class _Pair:
    align: DocumentAligner
    cache: AlignmentCache

    @classmethod
    def of(
        cls, student: Vocabulary, teacher: Vocabulary, aligner: Aligner, cache_dir: str | os.PathLike[str] | None
    ) -> "_Pair":
        return cls(DocumentAligner(student, teacher, aligner), open_cache(student, teacher, aligner, cache_dir))


def _prepare(
    pairs: Iterable[_Pair],
    paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    text_key: str,
    text_split: str,
    split: str,
    workers: int,
    progress: bool,
) -> list[PreparedDocuments]:
    if workers < 0:
        raise InputError(f"workers={workers}", "0 or more processes", "correct workers")
    sources = resolve_sources(paths, text_key, text_split, split)
    found = survey(sources)
    return [_prepare_pair(pair.align, pair.cache, sources, found, workers, progress) for pair in pairs]


def _prepare_pair(
    align: DocumentAligner,
    cache: AlignmentCache,
    sources: list[Source],
    found: Survey,
    workers: int,
    progress: bool,
) -> PreparedDocuments:
    if (cache.find(found.digests)[0] < 0).any():
        try:
            with cache.lock(lambda: say(f"waiting for the process that writes to {cache.folder}", progress)):
                missing = cache.find(found.digests)[0] < 0  # another process may have been here meanwhile
                wanted = np.zeros(len(missing), bool)
                wanted[np.unique(found.digests, return_index=True)[1]] = True  # copies of a text are aligned once
                wanted &= missing
                with Progress(int(wanted.sum()), int(found.characters[wanted].sum()), workers, progress) as shown:
                    documents = read_documents(sources, found, wanted)
                    with contextlib.closing(align_documents(align, documents, workers)) as aligned:
                        _write_shards(cache, aligned, shown)
        except OSError as error:
            if error.errno not in _CANNOT_WRITE:
                raise
            raise InputError(
                f"the cache folder {cache.folder} cannot be written: {error}",
                "a folder for tokenised and aligned documents",
                "set cache_dir or NEMO_XTOKEN_CACHE to a folder that you may write to, with room in it",
            ) from error
    return PreparedDocuments(cache, found.digests)


def _write_shards(cache: AlignmentCache, documents: Iterable[AlignedDocument], shown: Progress) -> None:
    shard: list[AlignedDocument] = []
    tokens, since = 0, time.monotonic()
    for document in documents:
        shard.append(document)
        added = len(document.student_ids) + len(document.teacher_ids)
        tokens += added
        shown.advance(1, added)
        if tokens >= _SHARD_TOKENS or time.monotonic() - since >= _SHARD_SECONDS:
            cache.write(shard)
            shard, tokens, since = [], 0, time.monotonic()
    if shard:
        cache.write(shard)

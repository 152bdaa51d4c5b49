"""Text -> documents that are tokenised, aligned and on disk.  Documents that are in the cache are not done again."""

import contextlib
import errno
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import BrokenExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nemo_xtoken.alignment.aligned import AlignedBatch
from nemo_xtoken.alignment.aligner import Aligner
from nemo_xtoken.alignment.cache import AlignmentCache
from nemo_xtoken.alignment.shard_writer import Settle
from nemo_xtoken.alignment.told import Told
from nemo_xtoken.data.conversation.parts import learned_kinds
from nemo_xtoken.data.documents import DataChanged, Survey, forget_surveys, place_of, read_documents, survey
from nemo_xtoken.data.prepared import PreparedDocuments
from nemo_xtoken.data.sources import Reading, Source, resolve_sources, unread_files
from nemo_xtoken.data.templates import ChatTemplate
from nemo_xtoken.data.turns import ConversationAligner, is_refused
from nemo_xtoken.data.workers import AlignFunction, DocumentAligner, align_documents
from nemo_xtoken.errors import InputError
from nemo_xtoken.files import cache_root, digest_of
from nemo_xtoken.progress import Pace, Phase, say
from nemo_xtoken.vocab import Vocabulary

__all__ = [
    "Pair",
    "forgetting",
    "open_cache",
    "prepare_documents",
    "prepare_pairs",
    "survey_folder",
    "told_lines",
    "unread_lines",
]

_TEXT = Reading()
_SHARD_TOKENS = 100_000_000  # both sides together: a shard has about 1.2 GB
_KEEP_TOKENS = 8_000_000  # so many are worth a file of their own, which a killed process leaves to the next
_CHARACTERS_A_TOKEN = 1.5  # of either side, about: for the progress within a long document
_NAMED = 5  # of the files that are not read
_PLACES = 5  # of conversations of which something is told; to find one, the data is read up to it
_LINE_SECONDS = 60.0  # between lines in a log
_KEEP_SECONDS = 60.0  # a killed preparation loses no more than this
_WORTH_A_LINE = 2_000_000  # characters that take long enough to announce them


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
        learn = learned_kinds(reading.learn)
        templates = ChatTemplate(student, chat_template, learn), ChatTemplate(teacher, learn=learn)
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
        with clear_errors(cache.folder):
            if not _missing(cache, found, dealt).any():
                return 0
            with cache.lock(lambda who: say(f"waiting for {who}, to write to {cache.folder}", progress)):
                wanted = _missing(cache, found, dealt)  # another process may have written it meanwhile
                characters, shown = int(found.characters[wanted].sum()), progress and bool(wanted.any())
                announced = characters > _WORTH_A_LINE
                phase = Phase("aligning text", characters, "characters", shown, announced=announced)
                size = f"{int(wanted.sum()):,} documents, {workers or 'no'} worker processes"
                with phase.begin(said=size):
                    documents = read_documents(sources, found, wanted)
                    with contextlib.closing(align_documents(self.align, documents, workers)) as aligned:
                        lengths = found.characters[wanted]
                        written = _write_shards(cache, aligned, phase, lengths, self.align.settle)
                    rate = f"{written / max(phase.seconds, 1e-9):,.0f}"
                    counts = f"{int(wanted.sum()):,} documents, {written:,} tokens"
                    phase.end(f"{counts}, in {phase.seconds:.1f} s ({rate} tokens/s)", {"tokens/s": rate})
                    return written


@contextlib.contextmanager
def clear_errors(folder: Path) -> Iterator[None]:
    """What the file system says about the cache, as one message.

    Raises:
        InputError: instead of OSError.
    """
    try:
        yield
    except OSError as error:
        expected, fix = _ADVICE.get(error.errno or 0, (_WRITABLE, _ELSEWHERE))
        raise InputError(f"the cache folder {folder} cannot be used: {error}", expected, fix) from error


_WRITABLE = "a folder for tokenised and aligned documents, which can be written"
_ELSEWHERE = "set cache_dir or NEMO_XTOKEN_CACHE to a folder that you may write to, with room in it"
_ADVICE = {
    errno.EMFILE: ("a process that may open a few hundred files", "raise the limit: ulimit -n 65536"),
    errno.ENFILE: ("a machine that may open more files", "close other programs, or have fs.file-max raised"),
    errno.ELOOP: ("files of its own there, and no link to elsewhere in their place", "remove the symbolic link"),
    errno.EIO: ("a disk or a file server that answers", "see to it and start again: nothing was deleted"),
    errno.ESTALE: ("a file server that answers", "mount it again and start again: nothing was deleted"),
}


def told_lines(prepared: PreparedDocuments, sources: Sequence[Source]) -> list[str]:
    """What templates leave out, with the place of one conversation each.

    Raises:
        InputError: they can render none of the conversations.
    """
    told = Told.sum(Told.of(shard.metadata) for shard in prepared.shards())
    lines: list[str] = []
    for sentence, count, digest in told:
        known = len(lines) < _PLACES and bool((prepared.digests == np.array(digest, prepared.digests.dtype)).any())
        place = place_of(sources, digest) if known else ""
        lines.append(f"{count:,} conversations {sentence}" + (f" ({place})" if place else ""))
    refused = is_refused(prepared.student_lengths, prepared.teacher_lengths)
    if len(refused) and refused.all() and lines:
        raise InputError(
            f"none of {len(refused):,} conversations can be rendered by both templates:\n  " + "\n  ".join(lines),
            "conversations that both sides' chat templates take",
            "correct the data, or give another template (for the student: chat_template)",
        )
    return lines


def unread_lines(unread: Mapping[str, Sequence[str]]) -> list[str]:
    """A line for each reason for which files are not read, with a few of them."""
    lines = []
    for reason, files in unread.items():
        some = ", ".join(files[:_NAMED]) + (", .." if len(files) > _NAMED else "")
        lines.append(f"not read: {len(files):,} {reason} ({some})")
    return lines


def _tell_what_is_left_out(
    paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]], found: Survey, progress: bool
) -> None:
    """A line for the files of folders that are not read, and one for the rows that are no document."""
    for line in unread_lines(unread_files(paths)):
        say(line, progress)
    if found.skipped.counts:
        say(str(found.skipped), progress)


def survey_folder(cache_dir: str | os.PathLike[str] | None) -> Path:
    """Where the surveys of files are kept."""
    return _folder(cache_dir) / "surveys"


def _folder(cache_dir: str | os.PathLike[str] | None) -> Path:
    return Path(cache_dir).expanduser() if cache_dir is not None else cache_root()


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
    _tell_what_is_left_out(paths, found, progress)
    prepared = []
    for pair in pairs:
        with forgetting(sources, cache_dir):
            pair.align_missing(sources, found, workers, progress)
        prepared.append(PreparedDocuments(pair.cache, found.digests))
        for line in told_lines(prepared[-1], sources):
            say(line, progress)
    return prepared


@contextlib.contextmanager
def forgetting(sources: Sequence[Source], cache_dir: str | os.PathLike[str] | None) -> Iterator[None]:
    """Data that is not what its survey says is surveyed anew by the next call."""
    try:
        yield
    except DataChanged:
        forget_surveys(sources, survey_folder(cache_dir))
        raise


def _missing(cache: AlignmentCache, found: Survey, dealt: np.ndarray | None) -> np.ndarray:
    """bool ``[N]``: dealt, not in the cache, and the first of its copies."""
    at = np.arange(len(found)) if dealt is None else np.flatnonzero(dealt)
    wanted = np.zeros(len(found), bool)
    wanted[at[np.unique(found.digests[at], return_index=True)[1]]] = True
    return wanted & (cache.find(found.digests)[0] < 0)


def _write_shards(
    cache: AlignmentCache, batches: Iterable[AlignedBatch], phase: Phase, characters: np.ndarray, settle: Settle
) -> int:
    """Writes what comes, in shards.

    Args:
        characters: int64, of each document that comes.

    Returns:
        tokens of both sides.
    """
    ends = np.concatenate([[0], np.cumsum(characters)])
    total, documents, tokens, since = 0, 0, 0, time.monotonic()
    lines, moments = Pace(_LINE_SECONDS), Pace(0.1)
    with contextlib.closing(cache.writer(settle, _SHARD_TOKENS)) as writer:
        try:
            for batch in batches:
                writer.add(batch)
                tokens += batch.tokens
                total += batch.tokens
                documents += len(batch) if batch.part is None else batch.part.last
                phase.done = int(ends[documents])
                if writer.unfinished_tokens:  # within a long document
                    inside = int(writer.unfinished_tokens * _CHARACTERS_A_TOKEN)
                    phase.done += min(inside, int(characters[documents]) - 1)
                if moments.due():
                    seen = {"tokens/s": f"{total / max(phase.seconds, 1e-9):,.0f}", "documents": f"{documents:,}"}
                    phase.at(phase.done, seen, lines.due())
                enough = tokens >= _KEEP_TOKENS or time.monotonic() - since >= _KEEP_SECONDS
                if enough and writer.keep():
                    tokens, since = 0, time.monotonic()
        except (KeyboardInterrupt, SystemExit, BrokenExecutor) as stop:  # what has been aligned so far is good
            writer.publish()
            if not isinstance(stop, BrokenExecutor):
                raise
            raise InputError(
                "a worker process ended before its work was done: killed, as where the memory is full, or by an error "
                "of its own, which it has printed",
                "memory for all of them; each has both tokenizers",
                "start again with fewer workers, or a job with more memory; what is already aligned is kept",
            ) from stop
        writer.publish()
    cache.refresh()
    return total

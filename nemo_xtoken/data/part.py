"""One part of a preparation that several tasks share: which documents belong to it, and the counts of the result."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from nemo_xtoken.alignment.aligner import Aligner
from nemo_xtoken.data.config import DataConfig
from nemo_xtoken.data.documents import Survey, survey
from nemo_xtoken.data.prepare import Pair, forgetting, survey_folder, told_lines
from nemo_xtoken.data.prepared import PreparedDocuments
from nemo_xtoken.data.sources import Source, resolve_sources, unread_files
from nemo_xtoken.data.turns import is_refused
from nemo_xtoken.errors import InputError
from nemo_xtoken.files import raise_open_files
from nemo_xtoken.progress import Phase, say
from nemo_xtoken.vocab import Vocabulary

__all__ = ["PartReport", "TeacherReport", "array_part", "deal", "prepare_part"]

_BYTES_A_DOCUMENT = 48  # beside ids and chunks: digest, offsets, counts, checksum


@dataclass(frozen=True)
class TeacherReport:
    """What is prepared for one teacher, of the documents of a part.

    Attributes:
        name: its tokenizer.
        student_tokens, teacher_tokens: with BOS and EOS, or all that the templates write.
        chunks, scored_chunks: all, and those with a predictor on both sides.
        student_coverage, teacher_coverage: share of the labels that are in a chunk, over the shards that hold them.
        shards: the files that they are in.
        bytes: what they take on disk.
        new_tokens: of both sides, written by this call.
        seconds: that took.
        without_chunks: documents that have none, and are learned by cross-entropy alone.
        refused: documents that a chat template cannot render, which are left out.
        told: what templates leave out, a line each, over the shards that hold the documents.
    """

    name: str
    student_tokens: int
    teacher_tokens: int
    chunks: int
    scored_chunks: int
    student_coverage: float
    teacher_coverage: float
    shards: int
    bytes: int
    new_tokens: int
    seconds: float
    without_chunks: int = 0
    refused: int = 0
    told: Sequence[str] = ()


@dataclass(frozen=True)
class PartReport:
    """What a part holds.

    Attributes:
        part, parts: which one.
        files, documents, characters: how many.
        teachers: of each.
        skipped: reason -> rows that are no document.
        examples: of refused rows the first few messages.
        unread: reason -> files in the folders that are not read.
    """

    part: int
    parts: int
    files: int
    documents: int
    characters: int
    teachers: tuple[TeacherReport, ...]
    skipped: Mapping[str, int] = field(default_factory=dict)
    examples: Sequence[str] = ()
    unread: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def array_part(part: int | None, parts: int | None, environment: Mapping[str, str]) -> tuple[int, int]:
    """Which part this process is, and of how many: as given, else the task of a Slurm array, else all of it.

    Args:
        part: from 0.
        environment: the process's.

    Raises:
        InputError: ``part`` and ``parts`` contradict each other, or the array has gaps.
    """
    task = environment.get("SLURM_ARRAY_TASK_ID")
    if parts is None and part is not None:
        raise InputError(f"part={part} without parts", "both", "say parts=N as well")
    if parts is None and task is not None:
        numbers = [int(environment.get(f"SLURM_ARRAY_TASK_{name}", "-1")) for name in ("MIN", "MAX", "COUNT")]
        low, high, count = numbers
        if high - low + 1 != count:
            raise InputError(
                f"an array of {count} tasks, numbered {low} to {high}",
                "every number in between, or parts=N",
                "say parts=N with the number of tasks of the whole array, numbered from 0",
            )
        part, parts = int(task) - low, count
    elif parts is not None and part is None:
        if task is None and parts != 1:
            raise InputError(f"parts={parts} without part", "part=0 and so on, or a Slurm array", "say part=N as well")
        part = int(task or 0)
    part, parts = part or 0, 1 if parts is None else parts
    if not 0 <= part < parts:
        raise InputError(f"part={part} of parts={parts}", f"a part from 0 to {parts - 1}", "correct part or parts")
    return part, parts


def deal(files: int, parts: int) -> list[list[tuple[int, int, int]]]:
    """The work of each part: a list of (file, share, shares).

    Whole files if there are enough of them; otherwise every file is divided into shares, where share s has the
    documents s, s + shares, .. of the file.  No part has more than one piece more than another.
    """
    shares = -(-parts // files)
    pieces = [(file, share, shares) for file in range(files) for share in range(shares)]
    return [pieces[part::parts] for part in range(parts)]


def prepare_part(
    data: DataConfig,
    student: Vocabulary,
    teachers: Sequence[Vocabulary],
    part: int = 0,
    parts: int = 1,
    clock: Callable[[], float] = time.monotonic,
    verify: bool = False,
) -> PartReport:
    """Tokenises and aligns one part of a data set into the cache; what is there already is not done again.

    Parts may run at once, anywhere that sees the cache folder: each writes to a folder of its own, and training reads
    all of them.  It finds documents by their text and tokenizers, however many parts there were.

    Args:
        data: which text (of one source), and where to.
        teachers: without their lengths: what is prepared fits any.
        verify: compare all documents with their checksums, as training does with each when it first reads it.

    Raises:
        InputError: see `nemo_xtoken.data.prepare.prepare_pairs`; a file of the cache is damaged.
    """
    data.check()
    raise_open_files()
    sources = resolve_sources(data.paths, data.reading)
    name = f"{part:05d}-of-{parts:05d}" if parts > 1 else None
    different = {t.digest: t for t in teachers}.values()
    template = data.template()
    pairs = [Pair.of(Aligner(student, t, data.align), data.cache_dir, data.reading, template, name) for t in different]
    unread = unread_files(data.paths)
    pieces = deal(len(sources), parts)[part]
    own = [sources[file] for file, _, _ in pieces]
    if parts > 1:
        say(f"part {part} of {parts}: {len(own)} of {len(sources)} files", data.progress)
    if not own:
        return PartReport(part, parts, 0, 0, 0, (), unread=unread)
    found = survey(own, survey_folder(data.cache_dir), data.progress, partial=parts > 1)
    dealt = _dealt(found.counts, pieces)
    reports = []
    for teacher, pair in zip(different, pairs, strict=True):
        start = clock()
        with forgetting(own, data.cache_dir):
            written = pair.align_missing(own, found, data.workers, data.progress, dealt)
        if verify:
            _verify(PreparedDocuments(pair.cache, found.digests[dealt]), teacher.name, data.progress)
        reports.append(_report(teacher, pair, found, dealt, written, clock() - start, own))
    counts = part, parts, len(own), int(dealt.sum()), int(found.characters[dealt].sum())
    return PartReport(*counts, tuple(reports), found.skipped.counts, found.skipped.examples, unread)


def _dealt(counts: Sequence[int], pieces: Sequence[tuple[int, int, int]]) -> np.ndarray:
    """bool ``[N]``: the documents of this part."""
    marks = []
    for count, (_, share, shares) in zip(counts, pieces, strict=True):
        mine = np.zeros(count, bool)
        mine[share::shares] = True
        marks.append(mine)
    return np.concatenate(marks)


def _verify(prepared: PreparedDocuments, teacher: str, shown: bool) -> None:
    with Phase(f"comparing checksums, {teacher}", len(prepared), "documents", shown) as phase:
        for number in range(len(prepared)):
            prepared.document(number)
            phase.at(number + 1)


def _report(
    teacher: Vocabulary,
    pair: Pair,
    found: Survey,
    dealt: np.ndarray,
    written: int,
    seconds: float,
    sources: Sequence[Source],
) -> TeacherReport:
    prepared = PreparedDocuments(pair.cache, found.digests[dealt])
    headers = [shard.metadata for shard in prepared.shards()]
    refused = is_refused(prepared.student_lengths, prepared.teacher_lengths)

    def coverage(side: str) -> float:
        labels, aligned = (
            sum(int(header.get(f"{side}_{what}", 0)) for header in headers) for what in ("labels", "aligned")
        )
        return aligned / max(labels, 1)

    return TeacherReport(
        name=teacher.name,
        student_tokens=int(prepared.student_lengths.sum()),
        teacher_tokens=int(prepared.teacher_lengths.sum()),
        chunks=int(prepared.chunk_counts.sum()),
        scored_chunks=int(prepared.scored.sum()),
        student_coverage=coverage("student"),
        teacher_coverage=coverage("teacher"),
        shards=len(headers),
        bytes=int(
            4 * (prepared.student_lengths.sum() + prepared.teacher_lengths.sum())
            + 16 * prepared.chunk_counts.sum()
            + _BYTES_A_DOCUMENT * len(prepared)
        ),
        new_tokens=written,
        seconds=seconds,
        without_chunks=int(((prepared.chunk_counts == 0) & ~refused).sum()),
        refused=int(refused.sum()),
        told=tuple(told_lines(prepared, sources)),
    )

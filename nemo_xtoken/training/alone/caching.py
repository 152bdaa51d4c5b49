"""``xtoken cache``: a teacher by itself reads prepared text, and its states go to a folder."""

import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist

from nemo_xtoken.data.config import DataConfig, Tokenization
from nemo_xtoken.data.mixture import sources_of
from nemo_xtoken.errors import InputError
from nemo_xtoken.parallel.ownership import Ownership
from nemo_xtoken.progress import Pace, Phase, say
from nemo_xtoken.teachers.contract import Teacher, TeacherHost
from nemo_xtoken.teachers.fill.document_windows import DocumentWindows
from nemo_xtoken.teachers.fill.filling import Readable, SamplesOfRun, Work, agreed, fill, work_of
from nemo_xtoken.teachers.fingerprint import Fingerprint
from nemo_xtoken.teachers.store.sampled_rows import Sampler
from nemo_xtoken.teachers.store.state_formats import StateFormat, format_for
from nemo_xtoken.teachers.store.state_store import StateStore
from nemo_xtoken.teachers.store.state_writer import StateWriter
from nemo_xtoken.teachers.teacher_sources import open_teacher
from nemo_xtoken.vocab.vocabulary import Vocabulary

__all__ = ["CacheReport", "cache_states", "readable_text"]

_LINE_SECONDS = 60.0  # between lines in a log
MARGIN = 1.02  # on disk, what lies beside the states


@dataclass(frozen=True)
class CacheReport:
    """What a folder of states holds of a text.

    Attributes:
        folder, format: where, and how they are stored.
        tokens: of this part, whose states are there now.
        new_tokens: that this call has computed.
        bytes_a_token: of the states.
        seconds: that the teacher took.
        files: of the folder, all parts.
    """

    folder: str
    format: str
    tokens: int
    new_tokens: int
    bytes_a_token: int
    seconds: float
    files: int

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def readable_text(
    text: DataConfig,
    student: Vocabulary | None,
    teacher: Vocabulary,
    beside: Sequence[Tokenization] = (),
) -> list[Readable]:
    """What a teacher is to read, source by source.  Tokenises and aligns what is not in the cache yet.

    Args:
        text: the settings of the run that the states are for.
        student: of that run: the pieces that its samples hold, with the held-out ones.  None: all documents, whole.
        beside: other teachers of that run, which have a say in where documents are cut.

    Raises:
        InputError: see ``DataConfig.build``.
    """
    if student is not None:
        parts = text.build(student, [Tokenization(teacher), *beside])
        return [SamplesOfRun(one) for part in parts for one in sources_of(part)]
    padding = next((i for i in (teacher.pad_id, teacher.eos_id) if i is not None), 0)
    found: list[Readable] = []
    for part in (text.parts() if text.sources else {"": text}).values():
        for documents in part.prepare(teacher, [teacher]):
            if documents is not None:
                found.append(DocumentWindows(documents[0], text.lengths[1], padding))
    return found


def cache_states(
    host: TeacherHost,
    sources: Sequence[Readable],
    folder: Path,
    format_name: str | None,
    micro_batch: int,
    part: int = 0,
    parts: int = 1,
) -> CacheReport:
    """Computes the states that are missing, and writes them and the index.  Collective over all processes.

    Args:
        host: of the teacher; its settings say whether a service gives the states, or the model in these processes.
        sources: what it is to read.
        format_name: of what is written; None: one that loses nothing.
        micro_batch: samples at a time.
        part, parts: which share of the samples; each part may run as a job of its own.

    Raises:
        InputError: states of another teacher in the folder, no room on its disk, or it cannot be written.
    """
    from megatron.core import parallel_state as ps

    first = not dist.is_initialized() or dist.get_rank() == 0
    fingerprint = host.fingerprint()
    kind = format_for(format_name, fingerprint.dtype)
    folder.mkdir(parents=True, exist_ok=True)
    store = StateStore(folder, fingerprint)
    if store.format is not None and store.format.sampled != kind.sampled:
        raise InputError(
            f"format={kind.name} in {folder}, which has {store.format.name}",
            "a folder for samples, or one for states",
            "name another folder",
        )
    work = agreed(work_of(sources, store, part, parts))
    _check_room(folder, work, kind, fingerprint)
    name = f"{part:05d}-of-{parts:05d}-copy-{ps.get_data_parallel_rank():04d}"
    writes = ps.is_pipeline_last_stage() and not ps.get_tensor_model_parallel_rank()
    writes = writes and not ps.get_context_parallel_rank()
    copies, seconds = ps.get_data_parallel_world_size(), 0.0
    if work.samples:
        teacher = open_teacher(host, host.settings.source)
        made_of = _sampler(teacher, host) if kind.sampled else None
        phase = Phase("the teacher reads", work.tokens, "tokens", first)
        lines, moments, done = Pace(_LINE_SECONDS), Pace(0.1), 0

        def told(tokens: int) -> None:
            nonlocal done
            done += tokens * copies  # copies go on at the same pace
            if moments.due():
                rate = f"{done / max(phase.seconds, 1e-9):,.0f}"
                phase.at(min(done, work.tokens), {"tokens/s": rate}, lines.due())

        room = f"{work.tokens * kind.row_bytes(fingerprint.hidden_size):,} bytes as {kind.name}, in {folder}"
        with phase.begin(said=room):
            at_once = 1 if teacher.one_at_a_time else 4 * ps.get_pipeline_model_parallel_world_size()
            try:
                if writes:
                    with StateWriter(folder, fingerprint, kind, name) as writer:
                        fill(teacher, sources, work, writer, micro_batch, at_once, told, made_of)
                else:
                    fill(teacher, sources, work, None, micro_batch, at_once, made_of=made_of)
            finally:
                teacher.close()
        seconds = phase.seconds
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.barrier()
    store = StateStore(folder, fingerprint)
    if first and (work.samples or not store.indexed):  # a run before this one had no room for the index
        store.write_index()
        say(f"{store.tokens:,} tokens in {len(store.names):,} files in {folder}")
    row = kind.row_bytes(fingerprint.hidden_size)
    tokens = work.tokens + work.there
    return CacheReport(str(folder), kind.name, tokens, work.tokens, row, seconds, len(store.names))


def _sampler(teacher: Teacher, host: TeacherHost) -> Sampler | None:
    """What makes samples of states, on the ranks that do: the output layer takes an order of its own."""
    from megatron.core import parallel_state as ps

    if not ps.is_pipeline_last_stage():
        teacher.lay_out()
        return None
    order = Ownership.even(host.vocabulary_size, ps.get_tensor_model_parallel_group())
    (head,) = teacher.lay_out(order)
    return None if ps.get_context_parallel_rank() else Sampler(head, order)


def _check_room(folder: Path, work: Work, kind: StateFormat, of: Fingerprint) -> None:
    needed = int(work.tokens * kind.row_bytes(of.hidden_size) * MARGIN)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise InputError(
            f"{needed:,} bytes for the states of {work.tokens:,} tokens as {kind.name}, and {free:,} free in {folder}",
            "room for all of them",
            "name a folder with more room, write format=fp8, or compute parts of the data in folders of their own",
        )

"""What a folder of states holds: tokens, bytes, teacher, and whether it is whole."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nemo_xtoken.data.dataset import TeacherPieces
from nemo_xtoken.errors import InputError
from nemo_xtoken.teachers.fingerprint import Fingerprint
from nemo_xtoken.teachers.store.state_shard import DamagedShard, StateShard, UnusableShard
from nemo_xtoken.teachers.store.state_store import StateStore, state_files, unusable

__all__ = ["Coverage", "StoreReport", "coverage_of", "inspect_store"]


@dataclass(frozen=True)
class StoreReport:
    """A folder of states.

    Attributes:
        folder: it.
        files, records, tokens, documents: how many.
        bytes: on disk.
        formats: tokens in each.
        fingerprint: of the teacher.
        damaged: what is wrong with files, by name; also those that the index knows and that are gone.
        verified: whether all states were compared with their checksums.
    """

    folder: str
    files: int
    records: int
    documents: int
    tokens: int
    bytes: int
    formats: dict[str, int]
    fingerprint: Fingerprint
    damaged: dict[str, str]
    verified: bool

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self) | {"fingerprint_digest": self.fingerprint.digest}

    def lines(self) -> list[str]:
        """For people."""
        of = self.fingerprint
        each = self.bytes / max(self.tokens, 1)
        formats = ", ".join(f"{n:,} as {name}" for name, n in self.formats.items())
        lines = [
            f"{self.folder}: {self.tokens:,} tokens ({formats})",
            f"  of              {self.documents:,} documents, in {self.files:,} files",
            f"  on disk         {self.bytes:,} bytes, {each:,.1f} a token",
            f"  teacher         {of.digest[:12]}: hidden size {of.hidden_size}, {of.dtype}",
            f"                  weights {of.weights[:12]}, architecture {of.architecture[:12]}, "
            f"tokenizer {of.tokenizer[:12]}",
        ]
        lines += [f"  damaged         {name}: {what}" for name, what in self.damaged.items()]
        if self.damaged:
            lines.append("delete what is damaged, and give the command that made it again: it computes that alone")
        elif self.verified:
            lines.append("  verified        all states have their checksums")
        return lines


def inspect_store(folder: Path, verify: bool = False) -> StoreReport:
    """Looks at all files.

    Args:
        verify: read all states, too, and compare them with their checksums.

    Raises:
        InputError: there are no states, or a file that may be intact cannot be read.
    """
    files = sorted(state_files(folder))
    if not files:
        raise InputError(f"no states in {folder}", "a folder that `xtoken cache` has written", "correct out=")
    damaged: dict[str, str] = {}
    formats: dict[str, int] = {}
    documents: set[bytes] = set()
    records = tokens = size = 0
    of: Fingerprint | None = None
    for path in files:
        name = str(path.relative_to(folder))
        try:
            shard = StateShard(path)
            if of is not None and shard.fingerprint != of:
                raise DamagedShard(f"of another teacher: {of.differences(shard.fingerprint)}")
            for row in range(len(shard) if verify else 0):
                shard.verify(row)
        except DamagedShard as damage:
            damaged[name] = str(damage)
            continue
        except UnusableShard as error:  # the report says to delete what is damaged
            raise unusable(path, error) from error
        of = shard.fingerprint
        count = int(shard.counts.sum())
        formats[shard.format.name] = formats.get(shard.format.name, 0) + count
        documents |= set(shard.digests.tolist())
        records, tokens, size = records + len(shard), tokens + count, size + path.stat().st_size
    if of is None:
        raise InputError(
            f"no file of states in {folder} can be read: {json.dumps(damaged)}",
            "whole files",
            "delete them, and give the command that made them again",
        )
    if not damaged:
        store = StateStore(folder, of)
        damaged = {store.names[number]: "it is in the index, and gone" for number in sorted(store.absent)}
    return StoreReport(
        str(folder), len(files), records, len(documents), tokens, size, formats, of, damaged, verify and not damaged
    )


@dataclass(frozen=True)
class Coverage:
    """How much of a text's states a folder has.

    Attributes:
        tokens, pieces: that a teacher reads of the text.
        there: tokens of those pieces that are here.
        in_documents: the same for a run with ``cache.context=document``.
    """

    tokens: int
    pieces: int
    there: int
    in_documents: int

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    def lines(self) -> list[str]:
        """For people."""
        whole = max(self.tokens, 1)
        lines = [
            f"  covers          {self.there:,} of the text's {self.tokens:,} tokens ({self.there / whole:.1%}), in "
            f"{self.pieces:,} pieces"
        ]
        if self.there < self.tokens:
            lines.append(
                f"                  {self.in_documents:,} ({self.in_documents / whole:.1%}) with cache.context=document"
            )
        return lines


def coverage_of(folder: Path, sources: Iterable[TeacherPieces]) -> Coverage:
    """How much of what a teacher is to read is here.

    Args:
        sources: the pieces of each source of a text.

    Raises:
        InputError: see `StateStore`.
    """
    store = StateStore(folder, None)
    tokens = pieces = there = in_documents = 0
    for of in sources:
        places = of.digests, of.starts, of.counts
        tokens, pieces = tokens + int(of.counts.sum()), pieces + len(of.counts)
        there += int(of.counts[~store.lacking(*places)].sum())
        in_documents += int(of.counts[~store.lacking(*places, "document")].sum())
    return Coverage(tokens, pieces, there, in_documents)

"""The documents of a list of sources: first all of them are surveyed, then those that are needed are read."""

import contextlib
import json
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save

from nemo_xtoken.alignment.cache import DIGEST_BYTES, text_digest
from nemo_xtoken.data.skipped import Skipped
from nemo_xtoken.data.sources import Source
from nemo_xtoken.errors import InputError
from nemo_xtoken.files import atomic_path, digest_of
from nemo_xtoken.progress import Pace, Phase

__all__ = ["DataChanged", "Survey", "forget_surveys", "place_of", "read_documents", "survey"]

_LINE_SECONDS = 10.0  # between lines in a log


@dataclass(frozen=True)
class Survey:
    """Every document of the sources in order, without its text.

    Attributes:
        digests: of the texts, ``[N]`` of ``S16``.
        characters: int64 ``[N]``.
        counts: documents of each source.
        skipped: rows that are no document.
    """

    digests: np.ndarray
    characters: np.ndarray
    counts: tuple[int, ...]
    skipped: Skipped = field(default_factory=Skipped)

    def __len__(self) -> int:
        return len(self.digests)


def survey(sources: Sequence[Source], keep: Path | None = None, shown: bool = False, partial: bool = False) -> Survey:
    """Reads everything once, so that errors in the data are found before anything is written.

    Args:
        keep: a folder in which the surveys of files are kept; a file that is unchanged (see `Source.state`) is not
            read again.
        shown: show the progress, if it takes a while.
        partial: this is a part of the data, which may be empty.

    Raises:
        InputError: unreadable data, or no document with text in all of it.
    """
    parts = []
    lines = Pace(_LINE_SECONDS)
    with Phase("reading", len(sources), "files", shown and len(sources) > 1, announced=False) as phase:
        for number, source in enumerate(sources, 1):
            parts.append(_survey_one(source, keep))
            phase.at(number, {"documents": f"{sum(map(len, parts)):,}"}, lines.due())
    skipped = Skipped.sum(part.skipped for part in parts)
    if not partial and not any(map(len, parts)):
        names = ", ".join(source.name for source in sources[:5]) + (", ..." if len(sources) > 5 else "")
        raise InputError(
            f"no document with any text in {names}" + (f" ({skipped})" if skipped.counts else ""),
            "at least one document that is not empty",
            "correct paths (and text_key or messages_key, where the data has columns)",
        )
    return Survey(
        np.concatenate([part.digests for part in parts]),
        np.concatenate([part.characters for part in parts]),
        tuple(map(len, parts)),
        skipped,
    )


def _survey_one(source: Source, keep: Path | None) -> Survey:
    state = source.state()
    path = _kept_at(keep, state)
    if path is not None and (found := _kept(path)) is not None:
        return found
    digests, characters, skipped = bytearray(), array("q"), Skipped()
    for _, text in source.numbered(skipped):
        digests += text_digest(text)
        characters.append(len(text))
    raw = np.frombuffer(bytes(digests), np.uint8).reshape(-1, DIGEST_BYTES)
    lengths = np.array(characters, np.int64)
    if path is not None and len(lengths) and source.state() == state:
        about = {"source": source.name, "skipped": json.dumps(asdict(skipped))}
        about["checksum"] = _checksum(raw, lengths, about["skipped"])
        # Without a writable folder, or room in it, it is read again next time.
        with contextlib.suppress(OSError), atomic_path(path) as temporary:
            temporary.write_bytes(save({"digests": raw, "characters": lengths}, about))
    return Survey(raw.view(f"S{DIGEST_BYTES}").reshape(-1), lengths, (), skipped)


def _kept_at(keep: Path | None, state: str | None) -> Path | None:
    return None if keep is None or state is None else keep / f"{digest_of('survey 3', state)}.safetensors"


def _kept(path: Path) -> Survey | None:
    """A survey in a file; one that is damaged is removed, so that it is made again."""
    try:
        found = load_file(path)
        digests, characters = found["digests"], found["characters"]
        with safe_open(path, "numpy") as file:
            about = file.metadata()
        if about["checksum"] != _checksum(digests, characters, about["skipped"]):
            raise ValueError("another checksum")
        skipped = Skipped(**json.loads(about["skipped"]))
        return Survey(digests.view(f"S{DIGEST_BYTES}").reshape(len(characters)), characters, (), skipped)
    except FileNotFoundError:
        return None
    except (SafetensorError, KeyError, TypeError, ValueError):
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
    except OSError:  # it cannot be read now, which says nothing about it
        pass
    return None


def _checksum(digests: np.ndarray, characters: np.ndarray, skipped: str) -> str:
    return digest_of(digests.tobytes(), characters.tobytes(), skipped)


def forget_surveys(sources: Sequence[Source], keep: Path) -> None:
    """Removes what is kept of these sources: they are not what was surveyed."""
    for source in sources:
        path = _kept_at(keep, source.state())
        if path is not None:
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)


def place_of(sources: Sequence[Source], digest: bytes) -> str:
    """Where the first document with this digest stands, for error messages; the data is read up to there."""
    for source in sources:
        for number, text in source.numbered():
            if text_digest(text) == digest:
                return source.place(number)
    return "a document"


def read_documents(sources: Sequence[Source], found: Survey, wanted: np.ndarray) -> Iterator[tuple[bytes, str]]:
    """Digest and text of the documents whose numbers in the survey are in ``wanted`` (bool ``[N]``), in order.

    Raises:
        DataChanged: the data is not what was surveyed.
    """
    raw, size = memoryview(found.digests.tobytes()), DIGEST_BYTES
    needed = wanted.tobytes()
    number, last = 0, needed.rfind(1)
    for source in sources:
        for _, text in source.numbered():
            if number > last:
                return
            if needed[number]:
                digest = text_digest(text)
                if digest != raw[number * size : (number + 1) * size]:
                    raise _changed(source)
                yield digest, text
            number += 1
    if number <= last:
        raise _changed(sources[-1])


class DataChanged(InputError):
    """The data is not what was surveyed."""


def _changed(source: Source) -> DataChanged:
    return DataChanged(
        f"the data changed while it was being prepared (seen in {source.name})",
        "files that stay as they are",
        "start again when nothing writes to them any more; what is already aligned is kept",
    )

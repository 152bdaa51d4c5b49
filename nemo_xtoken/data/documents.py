"""The documents of a list of sources: first all of them are surveyed, then those that are needed are read."""

import contextlib
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from nemo_xtoken.alignment.cache import DIGEST_BYTES, text_digest
from nemo_xtoken.data.sources import Source
from nemo_xtoken.errors import InputError
from nemo_xtoken.files import atomic_path, digest_of
from nemo_xtoken.progress import Pace, Phase

__all__ = ["Survey", "read_documents", "survey"]

_LINE_SECONDS = 10.0  # between lines in a log


@dataclass(frozen=True)
class Survey:
    """Every document of the sources in order, without its text.

    Attributes:
        digests: of the texts, ``[N]`` of ``S16``.
        characters: int64 ``[N]``.
        counts: documents of each source.
    """

    digests: np.ndarray
    characters: np.ndarray
    counts: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.digests)


def survey(sources: Sequence[Source], keep: Path | None = None, shown: bool = False, partial: bool = False) -> Survey:
    """Reads everything once, so that errors in the data are found before anything is written.

    Args:
        keep: a folder in which the surveys of files are kept; a file that is unchanged (path, size and time) is not
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
    if not partial and not any(map(len, parts)):
        names = ", ".join(source.name for source in sources[:5]) + (", ..." if len(sources) > 5 else "")
        raise InputError(
            f"no document with any text in {names}",
            "at least one document that is not empty",
            "correct paths (and text_key or messages_key, where the data has columns)",
        )
    return Survey(
        np.concatenate([part.digests for part in parts]),
        np.concatenate([part.characters for part in parts]),
        tuple(map(len, parts)),
    )


def _survey_one(source: Source, keep: Path | None) -> Survey:
    state = source.state()
    path = keep / f"{digest_of('survey 1', state)}.safetensors" if keep is not None and state is not None else None
    if path is not None and path.is_file():
        try:
            found = load_file(path)
            return Survey(found["digests"].view(f"S{DIGEST_BYTES}").reshape(-1), found["characters"], ())
        except (OSError, SafetensorError, KeyError, ValueError):
            path.unlink(missing_ok=True)  # damaged: make it again
    digests, characters = bytearray(), array("q")
    for text in source.texts():
        digests += text_digest(text)
        characters.append(len(text))
    raw = np.frombuffer(bytes(digests), np.uint8).reshape(-1, DIGEST_BYTES)
    lengths = np.array(characters, np.int64)
    if path is not None and len(lengths) and source.state() == state:
        # Without a writable folder it is read again next time.
        with contextlib.suppress(OSError), atomic_path(path) as temporary:
            save_file({"digests": raw, "characters": lengths}, temporary, metadata={"source": source.name})
    return Survey(raw.view(f"S{DIGEST_BYTES}").reshape(-1), lengths, ())


def read_documents(sources: Sequence[Source], found: Survey, wanted: np.ndarray) -> Iterator[tuple[bytes, str]]:
    """Digest and text of the documents whose numbers in the survey are in ``wanted`` (bool ``[N]``), in order.

    Raises:
        InputError: the data is not what was surveyed.
    """
    raw = found.digests.view(np.uint8).reshape(-1, DIGEST_BYTES)
    number, last = 0, int(np.flatnonzero(wanted)[-1]) if wanted.any() else -1
    for source in sources:
        for text in source.texts():
            if number > last:
                return
            if wanted[number]:
                digest = text_digest(text)
                if digest != raw[number].tobytes():
                    raise _changed(source)
                yield digest, text
            number += 1
    if number <= last:
        raise _changed(sources[-1])


def _changed(source: Source) -> InputError:
    return InputError(
        f"the data changed while it was being prepared (seen in {source.name})",
        "files that stay as they are",
        "start again when nothing writes to them any more; what is already aligned is kept",
    )

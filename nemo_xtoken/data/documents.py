"""The documents of a list of sources: first all of them are surveyed, then those that are needed are read."""

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from nemo_xtoken.alignment.cache import DIGEST_BYTES, text_digest
from nemo_xtoken.data.sources import Source
from nemo_xtoken.errors import InputError

__all__ = ["Survey", "read_documents", "survey"]


@dataclass(frozen=True)
class Survey:
    """Every document of the sources in order, without its text.

    Attributes:
        digests: of the texts, ``[N]`` of ``S16``.
        characters: int64 ``[N]``.
    """

    digests: np.ndarray
    characters: np.ndarray


def survey(sources: Sequence[Source]) -> Survey:
    """Reads everything once, so that whatever is wrong with the data is found before anything is written.

    Raises:
        InputError: unreadable data, or no document with text in all of it.
    """
    digests, characters = bytearray(), array("q")
    for source in sources:
        for text in source.texts():
            digests += text_digest(text)
            characters.append(len(text))
    if not characters:
        names = ", ".join(source.name for source in sources[:5]) + (", ..." if len(sources) > 5 else "")
        raise InputError(
            f"no document with any text in {names}",
            "at least one document that is not empty",
            "correct paths (and text_key, where the data has columns)",
        )
    return Survey(np.frombuffer(bytes(digests), f"S{DIGEST_BYTES}"), np.array(characters, np.int64))


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

"""Indexed data sets of NeMo and Megatron (``.idx`` and ``.bin``), turned back into the text that they were made of.

The ``.idx`` file, little-endian: ``MMIDIDX\\0\\0``, version (u64, 1), code of the ids' type (u8), number of sequences
(u64), number of document bounds (u64), then the length of each sequence (i32), its offset in the ``.bin`` file in bytes
(i64), and the sequence at which each document begins, with the end (i64).  What may follow is not read.
"""

import functools
import itertools
import struct
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from nemo_xtoken.errors import InputError
from nemo_xtoken.vocab import Vocabulary, load_vocabulary

__all__ = ["INDEX", "IndexedFile", "read_indexed"]

INDEX = ".idx"
_MAGIC = b"MMIDIDX\0\0"
_HEADER = struct.Struct("<9sQBQQ")
_TYPES = {1: "u1", 2: "i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}
_LOOKED_AT, _AGREE = 8, 0.5  # documents that are encoded again, and the share of their ids that must come back


class IndexedFile:
    """One indexed data set, memory-mapped.

    Args:
        path: its ``.idx`` file; the ``.bin`` file is beside it.

    Raises:
        InputError: the file is of another kind, or the two files do not belong together.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        data = Path(path).with_suffix(".bin")
        try:
            index = np.memmap(path, np.uint8, "r")
            self._ids = np.memmap(data, np.uint8, "r") if data.stat().st_size else np.empty(0, np.uint8)
        except (OSError, ValueError) as error:
            raise self._damaged(str(error)) from error
        if len(index) < _HEADER.size:
            raise self._damaged(f"{len(index)} bytes")
        magic, version, code, sequences, bounds = _HEADER.unpack(index[: _HEADER.size].tobytes())
        if magic != _MAGIC or version != 1 or code not in _TYPES:
            raise self._damaged(f"it starts with {magic!r}, version {version}, type {code}")
        self._type = np.dtype(_TYPES[code])
        ends = np.cumsum([_HEADER.size, 4 * sequences, 8 * sequences, 8 * bounds])
        if ends[-1] > len(index):
            raise self._damaged(f"{len(index)} bytes for {sequences} sequences and {bounds} bounds of documents")
        parts = [index[a:b] for a, b in itertools.pairwise(ends)]
        self._lengths, self._offsets = parts[0].view("<i4"), parts[1].view("<i8")
        self._bounds = parts[2].view("<i8")
        if sequences and int(self._offsets[-1]) + int(self._lengths[-1]) * self._type.itemsize > len(self._ids):
            raise self._damaged(f"{data} has {len(self._ids)} bytes, and more are said to be there")

    def __len__(self) -> int:
        """Documents."""
        return max(len(self._bounds) - 1, 0)

    @property
    def tokens(self) -> int:
        """Ids, of all documents."""
        return int(self._lengths.sum(dtype=np.int64))

    def document(self, number: int) -> np.ndarray:
        """int64 ids."""
        first, end = int(self._bounds[number]), int(self._bounds[number + 1])
        parts = [np.empty(0, np.int64)]
        for offset, length in zip(self._offsets[first:end].tolist(), self._lengths[first:end].tolist(), strict=True):
            raw = self._ids[offset : offset + length * self._type.itemsize]
            parts.append(np.frombuffer(raw.tobytes(), self._type).astype(np.int64))
        return np.concatenate(parts)

    def _damaged(self, found: str) -> InputError:
        return InputError(
            f"{self.path} is not an indexed data set: {found}",
            "an .idx file and its .bin file, as NeMo and Megatron write them",
            "check the path, or copy both files again",
        )


def read_indexed(path: str, tokenizer: str) -> Iterator[str]:
    """The documents of an indexed data set as text; special tokens are dropped, broken characters become U+FFFD.

    Args:
        tokenizer: the one that made the ids.

    Raises:
        InputError: the ids show that another tokenizer made them.
    """
    vocabulary, dummy_space = _tokenizer(tokenizer)
    file = IndexedFile(path)
    looked, there, came_back = 0, 0, 0
    for number in range(len(file)):
        ids = file.document(number)
        if len(ids) and not 0 <= ids.min() <= ids.max() < vocabulary.size:
            raise _not_of(path, tokenizer, f"ids {ids.min()} to {ids.max()} in document {number}")
        text = vocabulary.decode_bytes(ids).decode("utf-8", "replace")
        text = text.removeprefix(" ") if dummy_space else text
        if looked < _LOOKED_AT and text:
            plain = Counter(i for i in ids.tolist() if i not in vocabulary.roles)
            looked, there = looked + 1, there + plain.total()
            came_back += (plain & Counter(vocabulary.encode(text).tolist())).total()
            if came_back < _AGREE * there and (looked == _LOOKED_AT or number == len(file) - 1):
                raise _not_of(path, tokenizer, f"{came_back} of {there} ids come back from their text")
        yield text


@functools.lru_cache(maxsize=4)
def _tokenizer(name: str) -> tuple[Vocabulary, bool]:
    """The tokenizer, and whether it puts a space in front of a text."""
    vocabulary = load_vocabulary(name)
    return vocabulary, vocabulary.decode_bytes(vocabulary.encode("a")) == b" a"


def _not_of(path: str, tokenizer: str, found: str) -> InputError:
    return InputError(
        f"{path}: {found}, which {tokenizer} does not have made",
        "the tokenizer that the data set was made with",
        "set indexed_tokenizer to it",
    )

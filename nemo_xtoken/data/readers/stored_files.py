"""Files as bytes and lines, compressed or not, and the errors of what cannot be read."""

import io
import lzma
import os
from collections.abc import Iterator
from typing import BinaryIO, cast

import pyarrow as pa

from nemo_xtoken.errors import InputError

__all__ = ["BOM", "COMPRESSIONS", "Row", "decoded", "not_utf8", "read_lines", "read_whole", "unreadable"]

#: A document's text, "" for an empty one; why the row is no document; None where there is no row, as in a blank line.
Row = str | InputError | None

#: Extensions of compressed files, and what pyarrow calls the compression; xz is Python's own.
COMPRESSIONS = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd", ".xz": "xz"}
MOST_BYTES = 2**30  # of a line, or of a file that is one document; a compressed one may hold more than any memory
BOM = b"\xef\xbb\xbf"
_FAILURES = (pa.ArrowException, OSError, EOFError, lzma.LZMAError)


def read_whole(path: str, most: int | None = None) -> bytes:
    """The bytes of a file, without a byte-order mark.

    Args:
        most: at most so many bytes, and one; by default all.

    Raises:
        InputError: it cannot be read.
    """
    with _open(path) as file:
        try:
            data = file.read((MOST_BYTES if most is None else most) + 1)
        except _FAILURES as error:
            raise unreadable(path, "a whole file", error) from error
    if most is None and len(data) > MOST_BYTES:
        raise InputError(
            f"{path} has more than {MOST_BYTES >> 30} GiB, in one document",
            "documents that fit into memory",
            "set text_split=paragraph or text_split=line, or cut the file",
        )
    return data.removeprefix(BOM)


def read_lines(path: str) -> Iterator[tuple[int, str | InputError]]:
    """Line numbers from 1 and lines with their ends; for a line that is not UTF-8 the error.

    Raises:
        InputError: the file cannot be read on.
    """
    offset = 0
    with _open(path) as file:
        for number in range(1, 1 << 62):
            try:
                data = file.readline(MOST_BYTES + 1)
            except _FAILURES as error:
                raise unreadable(path, "a whole file", error) from error
            if not data:
                return
            if len(data) > MOST_BYTES:
                raise InputError(
                    f"line {number} of {path} has more than {MOST_BYTES >> 30} GiB",
                    "lines that fit into memory",
                    "check that the file is text; cut its documents into smaller ones",
                )
            mark = len(BOM) if number == 1 and data.startswith(BOM) else 0
            yield number, decoded(path, data[mark:], offset + mark, number)
            offset += len(data)


def decoded(path: str, data: bytes, offset: int = 0, line: int = 1) -> str | InputError:
    """Bytes as text, or the error with the place of the first byte that is not UTF-8.

    Args:
        offset, line: where ``data`` begins in the file.
    """
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        line += data.count(b"\n", 0, error.start)
        place = f"byte 0x{data[error.start]:02x} at offset {offset + error.start}, line {line} ({error.reason})"
        return not_utf8(path, place)


def not_utf8(path: str, place: str) -> InputError:
    """The error about text that is not UTF-8."""
    return InputError(
        f"{path} is not UTF-8: {place}",
        "text in UTF-8",
        "convert it, for example with: iconv -f ISO-8859-1 -t UTF-8",
    )


def unreadable(path: str, expected: str, error: BaseException) -> InputError:
    """The error about a file that a library cannot read."""
    reason = str(error).strip().split("\n")[0][:300] or type(error).__name__
    state = "is empty" if os.path.isfile(path) and os.path.getsize(path) == 0 else f"cannot be read: {reason}"
    return InputError(f"{path} {state}", expected, "check the path, or write or fetch it again")


def _open(path: str) -> BinaryIO:
    compression = COMPRESSIONS.get(os.path.splitext(path)[1].lower())
    try:
        if compression == "xz":
            return cast(BinaryIO, lzma.open(path))
        return cast(BinaryIO, io.BufferedReader(pa.input_stream(path, compression=compression)))
    except _FAILURES as error:
        raise unreadable(path, "a file that can be read", error) from error

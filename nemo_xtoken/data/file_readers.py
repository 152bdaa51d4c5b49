"""Texts of one file or data set, streamed: `sources` has the table of which reader reads which files.

Every reader yields what is there, empty texts included, and raises InputError with the place of what it cannot read.
"""

import inspect
import io
import json
import os
from collections.abc import Iterator
from typing import Any, BinaryIO, cast

import pyarrow as pa
import pyarrow.parquet as pq

from nemo_xtoken.data.columns import Column
from nemo_xtoken.errors import InputError

__all__ = ["read_arrow", "read_dataset", "read_jsonl", "read_parquet", "read_text"]

_BATCH_BYTES = 2**20  # of a column in memory at a time: documents may have megabytes each
_BOM = b"\xef\xbb\xbf"


def read_text(path: str, text_split: str) -> Iterator[str]:
    """A text file: whole, or its paragraphs (blank lines between them), or its lines.  A byte-order mark is dropped."""
    if text_split == "file":
        with _open(path) as file:
            data = _read(path, file)
        yield _decode(path, data.removeprefix(_BOM), len(_BOM) if data.startswith(_BOM) else 0, 1)
        return
    paragraph: list[str] = []
    for _, line in _lines(path):
        if text_split == "line":
            yield line.rstrip("\r\n")
        elif line.strip():
            paragraph.append(line)
        elif paragraph:
            yield "".join(paragraph)
            paragraph = []
    if paragraph:
        yield "".join(paragraph)


def read_jsonl(path: str, column: Column) -> Iterator[str]:
    """One JSON object a line; empty lines are skipped, null is an empty document."""
    for number, line in _lines(path):
        if not line.strip():
            continue
        place = f"line {number} of {path}"
        try:
            row = json.loads(line)
        except ValueError as error:
            raise InputError(f"{place} is not JSON: {error}", "one JSON object on each line", "correct it") from error
        if not isinstance(row, dict):
            raise InputError(f"{place} is a JSON {type(row).__name__}", "a JSON object on each line", "correct it")
        if column.name not in row:
            raise column.missing(place, list(row))
        yield column.text(row[column.name], place)


def read_parquet(path: str, column: Column) -> Iterator[str]:
    """A column of a Parquet file, a batch of rows at a time."""
    try:
        with pq.ParquetFile(path) as file:
            column.check(path, file.schema_arrow)
            rows = _BATCH_BYTES * file.metadata.num_rows // max(_uncompressed(file.metadata, column.name), 1)
            batches = file.iter_batches(batch_size=min(max(rows, 1), 1024), columns=[column.name])
            yield from _column_texts(path, column, (batch.column(0) for batch in batches))
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(path, "a Parquet file", error) from error


def _uncompressed(metadata: pq.FileMetaData, name: str) -> int:
    """Uncompressed bytes of a column, nested columns included."""
    columns = [metadata.schema.column(i).path.split(".")[0] for i in range(metadata.num_columns)]
    at = [i for i, column in enumerate(columns) if column == name]
    groups = [metadata.row_group(g) for g in range(metadata.num_row_groups)]
    return sum(group.column(i).total_uncompressed_size for group in groups for i in at)


def read_arrow(path: str, column: Column) -> Iterator[str]:
    """A column of an Arrow IPC file, in its file format or its stream format (as ``datasets`` writes)."""
    try:
        with pa.memory_map(path) as memory:
            try:
                file = pa.ipc.open_file(memory)
                batches: Iterator[pa.RecordBatch] = (file.get_batch(i) for i in range(file.num_record_batches))
                schema = file.schema
            except pa.ArrowInvalid:
                memory.seek(0)
                batches = stream = pa.ipc.open_stream(memory)
                schema = stream.schema
            column.check(path, schema)
            at = schema.get_field_index(column.name)
            yield from _column_texts(path, column, (batch.column(at) for batch in batches))
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(path, "an Arrow IPC file or stream", error) from error


def read_dataset(name: str, hub: bool, split: str, column: Column) -> Iterator[str]:
    """A data set of the ``datasets`` library: a folder that ``save_to_disk`` wrote, or ``name[:config]`` of the hub."""
    import datasets  # takes a second, and only these two need it

    try:
        if hub:
            repository, _, configuration = name.partition(":")
            options: dict[str, Any] = {}
            if "trust_remote_code" in inspect.signature(datasets.load_dataset).parameters:  # gone since version 4
                options["trust_remote_code"] = False
            found = datasets.load_dataset(repository, configuration or None, **options)
        else:
            found = datasets.load_from_disk(name)
    except Exception as error:  # the library raises many types
        raise _unreadable(name, "a data set of the Hugging Face hub" if hub else "a data set folder", error) from error
    if isinstance(found, dict):
        if split not in found:
            raise InputError(
                f"the data set {name} has no split {split!r}",
                f"one of its splits: {', '.join(map(str, found))}",
                "set split",
            )
        found = found[split]
    column.check(name, found.features.arrow_schema)
    batches = found.select_columns([column.name]).with_format("arrow").iter(batch_size=1024)
    yield from _column_texts(name, column, (table.column(0) for table in batches))


def _column_texts(path: str, column: Column, arrays: Iterator[pa.Array]) -> Iterator[str]:
    start = 0
    for array in arrays:
        try:
            values = array.to_pylist()
        except UnicodeDecodeError as error:
            raise _not_utf8(path, f"{error.reason} in one of its rows {start} to {start + len(array) - 1}") from error
        yield from (column.text(value, f"row {row} of {path}") for row, value in enumerate(values, start))
        start += len(values)


def _open(path: str) -> BinaryIO:
    try:
        return cast(BinaryIO, io.BufferedReader(pa.input_stream(path)))  # decompresses by the extension
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(path, "a file that can be read", error) from error


def _read(path: str, file: BinaryIO) -> bytes:
    try:
        return file.read()
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(path, "a whole file", error) from error


def _lines(path: str) -> Iterator[tuple[int, str]]:
    """Line numbers from 1 and lines with their ends."""
    offset = 0
    with _open(path) as file:
        for number in range(1, 1 << 62):
            try:
                data = file.readline()
            except (pa.ArrowException, OSError) as error:
                raise _unreadable(path, "a whole file", error) from error
            if not data:
                return
            mark = len(_BOM) if number == 1 and data.startswith(_BOM) else 0
            yield number, _decode(path, data[mark:], offset + mark, number)
            offset += len(data)


def _decode(path: str, data: bytes, offset: int, line: int) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        line += data.count(b"\n", 0, error.start)
        place = f"byte 0x{data[error.start]:02x} at offset {offset + error.start}, line {line} ({error.reason})"
        raise _not_utf8(path, place) from error


def _not_utf8(path: str, place: str) -> InputError:
    return InputError(
        f"{path} is not UTF-8: {place}",
        "text in UTF-8",
        "convert it, for example with: iconv -f ISO-8859-1 -t UTF-8",
    )


def _unreadable(path: str, expected: str, error: BaseException) -> InputError:
    reason = str(error).strip().split("\n")[0][:300] or type(error).__name__
    state = "is empty" if os.path.isfile(path) and os.path.getsize(path) == 0 else f"cannot be read: {reason}"
    return InputError(f"{path} {state}", expected, "check the path, or write or fetch it again")

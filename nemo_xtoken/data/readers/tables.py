"""Columns of Parquet and Arrow files and of data sets of the ``datasets`` library."""

import inspect
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from nemo_xtoken.data.columns import Column
from nemo_xtoken.data.readers.stored_files import Row, not_utf8, unreadable
from nemo_xtoken.errors import InputError

__all__ = ["read_arrow", "read_dataset", "read_parquet"]

_DEFAULT_SPLIT = "train"  # of `Reading`
_BATCH_BYTES = 2**20  # of a column in memory at a time: documents may have megabytes each


def read_parquet(path: str, column: Column) -> Iterator[Row]:
    """A column of a Parquet file, a batch of rows at a time."""
    try:
        with pq.ParquetFile(path) as file:
            way = column.check(path, file.schema_arrow)
            rows = _BATCH_BYTES * file.metadata.num_rows // max(_uncompressed(file.metadata, ".".join(way)), 1)
            more = column.beside(path, file.schema_arrow.names)
            wanted = [".".join(way), *([more] if more else [])]
            batches = file.iter_batches(batch_size=min(max(rows, 1), 1024), columns=wanted)
            yield from _column_rows(path, column, way, more, batches)
    except (pa.ArrowException, OSError) as error:
        raise unreadable(path, "a Parquet file", error) from error


def _uncompressed(metadata: pq.FileMetaData, name: str) -> int:
    """Uncompressed bytes of a column, nested columns included."""
    columns = [metadata.schema.column(i).path for i in range(metadata.num_columns)]
    at = [i for i, column in enumerate(columns) if column == name or column.startswith(f"{name}.")]
    groups = [metadata.row_group(g) for g in range(metadata.num_row_groups)]
    return sum(group.column(i).total_uncompressed_size for group in groups for i in at)


def read_arrow(path: str, column: Column) -> Iterator[Row]:
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
            way = column.check(path, schema)
            yield from _column_rows(path, column, way, column.beside(path, schema.names), batches)
    except (pa.ArrowException, OSError) as error:
        raise unreadable(path, "an Arrow IPC file or stream", error) from error


def read_dataset(name: str, hub: bool, split: str, column: Column) -> Iterator[Row]:
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
        raise unreadable(name, "a data set of the Hugging Face hub" if hub else "a data set folder", error) from error
    if isinstance(found, dict):
        if split not in found:
            raise InputError(
                f"the data set {name} has no split {split!r}",
                f"one of its splits: {', '.join(map(str, found))}",
                "set split",
            )
        found = found[split]
    elif (own := str(found.split or split).partition("[")[0]) != split and split != _DEFAULT_SPLIT:
        raise InputError(f"the data set {name} is the split {own!r} alone", f"its split {split!r}", "correct split")
    way = column.check(name, found.features.arrow_schema)
    more = column.beside(name, found.column_names)
    wanted = [way[0], *([more] if more else [])]
    batches = found.select_columns(wanted).with_format("arrow").iter(batch_size=1024)
    yield from _column_rows(name, column, way, more, batches)


def _inside(array: Any, way: Sequence[str]) -> Any:
    """What is at the end of the way in structures; null where one of them is."""
    for step in way[1:]:
        array = pc.struct_field(array, step)
    return array


def _column_rows(
    path: str, column: Column, way: Sequence[str], more: str | None, tables: Iterator[Any]
) -> Iterator[Row]:
    """The documents of tables.

    Args:
        way: to the column.
        more: the column beside it.
    """
    start = 0
    for table in tables:
        array, others = _inside(table.column(way[0]), way), table.column(more) if more else None
        for row in range(len(array)):
            yield _row(path, column, array[row], None if others is None else others[row], start + row)
        start += len(array)


def _row(path: str, column: Column, value: pa.Scalar, more: pa.Scalar | None, number: int) -> Row:
    try:
        given = _calls_without_nulls(value.as_py())
        return column.text(given, f"row {number} of {path}", None if more is None else _without_nulls(more.as_py()))
    except UnicodeDecodeError as error:
        return not_utf8(path, f"{error.reason} in row {number}")
    except InputError as error:
        return error


def _calls_without_nulls(value: Any) -> Any:
    """Messages whose calls have the arguments that they were given.

    A column has one type, so that every row's structure has the fields of all; those that a row lacks are null.
    """
    if not isinstance(value, list):
        return value
    return [
        message | {"tool_calls": _without_nulls(message["tool_calls"])}
        if isinstance(message, dict) and message.get("tool_calls")
        else message
        for message in value
    ]


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(inner) for key, inner in value.items() if inner is not None}
    return [_without_nulls(inner) for inner in value] if isinstance(value, list) else value

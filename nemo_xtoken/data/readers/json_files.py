"""JSON: an object on each line (JSON Lines), a list of objects, or one object."""

import itertools
import json
import sys
from collections.abc import Iterator
from typing import Any

from nemo_xtoken.data.columns import Column
from nemo_xtoken.data.readers.stored_files import Row, decoded, read_lines, read_whole
from nemo_xtoken.errors import InputError

__all__ = ["read_json", "read_jsonl"]

_MOST_BYTES = 2**30  # of a file that has to be in memory as a whole
_BLANKS = " \t\n\r"  # of JSON
_scan = json.JSONDecoder().raw_decode


def read_jsonl(path: str, column: Column) -> Iterator[Row]:
    """One JSON object a line; empty lines are none, and null is an empty document."""
    for number, line in read_lines(path):
        if isinstance(line, InputError):
            yield line
        elif not line.strip():
            yield None
        else:
            yield _row_of_line(line, number, path, column)


def read_json(path: str, column: Column) -> Iterator[Row]:
    """JSON Lines under another name; a list of objects; or one object, which is one row.

    Raises:
        InputError: none of these, or a list of more than a GiB, which would have to be in memory as a whole.
    """
    first = next((line for _, line in read_lines(path) if isinstance(line, InputError) or line.strip()), "")
    if isinstance(first, InputError) or (not first.lstrip().startswith("[") and _is_whole(first)):
        yield from read_jsonl(path, column)
        return
    data = read_whole(path, _MOST_BYTES)
    if len(data) > _MOST_BYTES:
        raise InputError(
            f"{path} has more than {_MOST_BYTES >> 30} GiB, and is not one JSON object on each line",
            "JSON Lines, which can be read line by line",
            "convert it: jq -c '.[]' FILE.json > FILE.jsonl",
        )
    text = decoded(path, data)
    if isinstance(text, InputError):
        raise text
    if not text.strip():
        return
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        if _has_rows(path):  # JSON Lines with a first line that is none
            yield from read_jsonl(path, column)
            return
        raise _no_json(path, error, "a list of JSON objects, or one object on each line") from error
    for number, value in enumerate(found if isinstance(found, list) else [found]):
        yield _row(value, f"row {number} of {path}", column)


def _has_rows(path: str) -> bool:
    """Whether the second line that is not blank is an object by itself."""
    lines = (line for _, line in read_lines(path) if isinstance(line, InputError) or line.strip())
    second = next(itertools.islice(lines, 1, None), "")
    return not isinstance(second, InputError) and second.lstrip().startswith("{") and _is_whole(second)


def _is_whole(line: str) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    except RecursionError:
        return True
    return True


def _row_of_line(line: str, number: int, path: str, column: Column) -> Row:
    place = f"line {number} of {path}"
    text = line.strip(_BLANKS)
    try:
        value, end = _scan(text)  # a third of the time of json.loads where lines are short
        if end != len(text):
            json.loads(line)  # says what is wrong
    except (ValueError, RecursionError) as error:
        return _no_json(place, error, "one JSON object on each line")
    return _row(value, place, column)


def _row(value: Any, place: str, column: Column) -> Row:
    if not isinstance(value, dict):
        return InputError(f"{place} is a JSON {type(value).__name__}", "a JSON object for each row", "correct it")
    try:
        return column.of_row(value, place)
    except InputError as error:
        return error


def _no_json(place: str, error: BaseException, expected: str) -> InputError:
    if isinstance(error, RecursionError):
        nesting = f"lists and objects nested more than {sys.getrecursionlimit():,} deep"
        return InputError(f"{place}: {nesting}", expected, "correct it, or leave it out")
    return InputError(f"{place} is not JSON: {error}", expected, "correct it")
